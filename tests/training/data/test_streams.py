"""Streams are dealt by samples, ready batches whole, and ranks that read their own share are found out."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness.plain import network, numbers, quiet
from harness.ranks import on_ranks
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, IterableDataset

from quik_nb import QuikSession, QuikWarning
from quik_nb.errors import RecipeError
from quik_nb.recipe.data import as_source
from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.samples import Source, Stream
from quik_nb.training.data.batch import Batch
from quik_nb.training.data.batches import step_to_enter
from quik_nb.training.data.streams import StreamBatches, fingerprint
from quik_nb.training.progress import Progress
from quik_nb.training.world import World

Notices = list[tuple[str, str]]


class Lines(IterableDataset[Tensor]):
    """Line i is the number i, 1 + i % 4 times."""

    def __init__(self, lines: int = 21, first: int = 0, step: int = 1) -> None:
        self.numbers = range(first, lines, step)

    def __iter__(self) -> Iterator[Tensor]:
        return (torch.full((1 + i % 4,), float(i)) for i in self.numbers)


class Sized(Lines):
    """One that says how long it is, whether that is right or not."""

    says = 21

    def __len__(self) -> int:
        return self.says


class Ready(IterableDataset[Any]):
    """Batches of a list of pictures of unequal size and a list of what is in them."""

    def __init__(self, batches: int = 5) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        for i in range(self.batches):
            yield [torch.full((3, 8, 8 + k), float(i)) for k in range(4)], [{"boxes": torch.zeros(2, 4)}] * 4


def padded(lines: list[Tensor]) -> Tensor:
    """(lines, longest of them), padded with -1."""
    return nn.utils.rnn.pad_sequence(lines, batch_first=True, padding_value=-1.0)


def steps_of(batches: StreamBatches, skip: int = 0) -> list[list[Batch]]:
    """The batches of an epoch, by optimizer step."""
    steps: list[list[Batch]] = [[]]
    for batch in batches.epoch(42, 0, skip):
        steps[-1].append(batch)
        if batch.last:
            steps.append([])
    assert steps.pop() == []
    return steps


def stream(data: Any, sharded: bool | None = None) -> Stream:
    """A source of a stream."""
    source: Source = as_source(data, "train")
    assert isinstance(source, Stream)
    return Stream(**{**vars(source), "sharded": sharded})


def dealt(sources: list[Stream], micro_batches: int = 1) -> tuple[list[list[list[Batch]]], Notices]:
    """The micro-batches by step and rank of ranks that read these, and what was told."""
    notices: Notices = []

    def read(world: World) -> list[list[Batch]]:
        def tell(cause: str, text: str) -> None:
            notices.append((cause, text))

        return steps_of(StreamBatches(sources[world.rank], 8, world, micro_batches, tell))

    return [list(step) for step in zip(*on_ranks(len(sources), read), strict=True)], notices


def lines_of(batch: Batch) -> list[int]:
    """The lines in a batch."""
    return [int(line) for line in batch.data[: batch.samples, 0]]


def causes(notices: Notices) -> set[str]:
    """What was told, in short."""
    return {cause for cause, _ in notices}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_stream_is_sharded_before_collation(world_size: int) -> None:
    """Each rank collates its share of the same batch, as wide as its own longest line, and none is cut."""
    loader = DataLoader(Lines(), batch_size=8, collate_fn=padded)
    steps, notices = dealt([stream(loader)] * world_size)
    together = [[i for rank in step for batch in rank for i in lines_of(batch)] for step in steps]

    assert [list(range(8)), list(range(8, 16)), list(range(16, 21))] == together
    assert [{8}, {8}, {5}] == [{batch.total for rank in step for batch in rank} for step in steps]
    assert all((batch.data >= 0).any(0).all() for step in steps for rank in step for batch in rank)
    assert [] == notices


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_batches_of_a_loader_of_a_stream_join(world_size: int) -> None:
    """With accumulate=2 a step has two of the loader's batches, each rank a share of both."""
    steps, _ = dealt([stream(DataLoader(Lines(), batch_size=4, collate_fn=padded))] * world_size, micro_batches=2)
    together = [sorted(i for rank in step for batch in rank for i in lines_of(batch)) for step in steps]

    assert [list(range(8)), list(range(8, 16)), list(range(16, 21))] == together
    assert {2} == {len(rank) for step in steps for rank in step}
    assert 3 == StreamBatches(stream(DataLoader(Sized(), batch_size=4)), 8, World(), 2).steps


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_setting_cuts_a_stream(world_size: int) -> None:
    """Without a loader a step has batch_size samples, and accumulate cuts them."""
    steps, _ = dealt([stream(DataLoader(Lines(), batch_size=None).dataset)] * 1, micro_batches=8)

    assert [8, 8, 5] == [len(step[0]) for step in steps]


@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_stream_that_splits_itself_is_found_out(world_size: int, size: int) -> None:
    """Every sample is used once, in steps as large as those of one process, and it is told."""
    sources = [
        stream(DataLoader(Lines(56, rank, world_size), batch_size=size, collate_fn=padded))
        for rank in range(world_size)
    ]
    steps, notices = dealt(sources)
    together = [i for step in steps for rank in step for batch in rank for i in lines_of(batch)]

    assert list(range(56)) == sorted(together)
    assert {"stream is sharded"} == causes(notices)
    assert [size] * (len(steps) - world_size) == [step[0][0].total for step in steps[:-world_size]]


def test_what_was_declared_is_not_guessed() -> None:
    """sharded=True takes all that each rank reads, sharded=False shards it; neither gives a warning."""
    own = [DataLoader(Lines(20, rank, 2), batch_size=4, collate_fn=padded) for rank in (0, 1)]
    all_of_it, nothing = dealt([stream(loader, sharded=True) for loader in own])
    halves, told = dealt([stream(loader, sharded=False) for loader in own])

    assert list(range(20)) == sorted(i for step in all_of_it for rank in step for b in rank for i in lines_of(b))
    assert [0, 2, 5, 7] == [i for rank in halves[0] for batch in rank for i in lines_of(batch)]
    assert [] == nothing + told


def test_uneven_shares_end_together() -> None:
    """Where one rank has more than the others, all of it is used, and they compute along with weight zero."""
    sources = [stream(DataLoader(Lines(n), batch_size=4, collate_fn=padded), sharded=True) for n in (3, 12)]
    steps, _ = dealt(sources)

    assert 3 + 12 == sum(batch.samples for step in steps for rank in step for batch in rank)
    assert [2, 1, 0, 0, 0, 0] == [rank[0].samples for rank, _ in steps]
    assert [4, 3, 2, 2, 2, 2] == [rank[0].total for rank, _ in steps]


def test_a_rank_without_any_sample_is_refused() -> None:
    """It has nothing to compute along with, so all ranks say so rather than wait."""
    sources = [stream(DataLoader(Lines(n), batch_size=4, collate_fn=padded), sharded=True) for n in (8, 0)]

    with pytest.raises(RecipeError, match="1 of 2 ranks no sample"):
        dealt(sources)


def pictures(batch: Batch) -> int:
    """Which of the ready batches it is."""
    return int(batch.data[0][0][0, 0, 0])


@pytest.mark.parametrize(
    ("world_size", "accumulate", "expected"),
    [
        (1, 1, [[0], [1], [2], [3], [4]]),
        (1, 2, [[0, 1], [2, 3], [4]]),
        (2, 1, [[0, 1], [2, 3], [4]]),
        (2, 2, [[0, 1], [2, 3], [4]]),
        (2, 3, [[0, 1, 2], [3, 4]]),
        (3, 1, [[0, 1, 2], [3, 4]]),
    ],
)
def test_ready_batches_are_never_cut(world_size: int, accumulate: int, expected: list[list[int]]) -> None:
    """Whole batches are sharded: a step has `accumulate` of them, and at least one per rank."""
    steps, notices = dealt([stream(DataLoader(Ready(), batch_size=None))] * world_size, accumulate)
    together = [[pictures(b) for rank in step for b in rank if b.samples] for step in steps]
    batches = [batch for step in steps for rank in step for batch in rank]

    assert expected == together
    assert all(4 == len(batch.data[0]) and (3, 8, 8) == batch.data[0][0].shape for batch in batches)
    assert {4 * len(step) for step in expected} == {batch.total for batch in batches}
    assert ({"ready batches"} if world_size > accumulate else set()) == causes(notices)


@pytest.mark.parametrize(
    ("step", "before", "now", "expected"),
    [(4, 1, 2, 2), (2, 2, 1, 4), (3, 2, 2, 3), (3, 2, 3, 2), (0, 2, 3, 0), (3, 1, 2, None)],
)
def test_an_epoch_of_ready_batches_continues_with_other_ranks(
    step: int, before: int, now: int, expected: int | None
) -> None:
    """Steps have other sizes then, so it is entered at the same batch; where no step begins there, that is said."""
    recipe = Recipe(train=stream(DataLoader(Ready(), batch_size=None)))
    progress = Progress(step=step, rng_states=[{}] * before)

    if expected is None:
        with pytest.raises(RecipeError, match="processes=1"):
            step_to_enter(recipe, progress, World(0, now))
    else:
        assert expected == step_to_enter(recipe, progress, World(0, now))


def test_ready_batches_that_are_each_ranks_own() -> None:
    """A stream of ready batches that splits itself is found out as well, and all of it is used."""

    class Own(Ready):
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def __iter__(self) -> Iterator[Any]:
            yield from (torch.full((3, 2), float(i)) for i in range(self.rank, 7, 2))

    steps, notices = dealt([stream(DataLoader(Own(rank), batch_size=None)) for rank in (0, 1)])
    found = [[int(b.data[0, 0]) for rank in step for b in rank if b.samples] for step in steps]

    assert [[0, 1], [2, 3], [4, 5], [6]] == found
    assert "stream is sharded" in causes(notices)


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_an_epoch_of_a_stream_can_be_entered_at_a_step(skip: int) -> None:
    """With `skip` it goes on at that optimizer step, also where batches join."""
    make = partial(StreamBatches, stream(DataLoader(Lines(), batch_size=3, collate_fn=padded)), 8, World(), 2)
    whole, rest = ([[lines_of(b) for b in step] for step in steps_of(make(), n)] for n in (0, skip))

    assert whole[skip:] == rest


@pytest.mark.parametrize(("says", "word"), [(30, "less than the 30"), (10, "more than the 10"), (21, None)])
def test_a_stream_that_says_a_wrong_length(says: int, word: str | None) -> None:
    """It is told, with `__len__`, by which the bar and schedules count; a right length is not."""
    data = Sized()
    data.says = says
    _, notices = dealt([stream(DataLoader(data, batch_size=4, collate_fn=padded))])

    assert [word is not None] == [bool(notices)]
    assert all(str(word) in text and "__len__" in text for _, text in notices)


class Thing:
    """An object that holds others."""

    def __init__(self, value: Any) -> None:
        self.value = value


@pytest.mark.parametrize(
    "make",
    [
        lambda i: torch.tensor([i, 1]),
        lambda i: torch.tensor(float(i)),
        lambda i: torch.tensor([i]).bfloat16(),
        lambda i: {"text": f"line {i}"},
        lambda i: [torch.zeros(2), i],
        lambda i: Thing(Thing(torch.tensor([i]))),
        lambda i: torch.full((2,), i).numpy(),
        lambda i: torch.tensor([[0, i + 1]]).to_sparse(),
    ],
)
def test_first_batches_are_compared_by_their_contents(make: Any) -> None:
    """Equal contents have equal marks, whatever holds them, and others differ."""
    assert fingerprint(make(1)) == fingerprint(make(1))
    assert fingerprint(make(1)) != fingerprint(make(2))


class Shards(IterableDataset[Any]):
    """Samples of which each process of a group reads its own."""

    def __init__(self, split: bool = True) -> None:
        self.x, self.y = numbers(48)
        self.split = split

    def __iter__(self) -> Iterator[Any]:
        known = self.split and dist.is_initialized()
        rank, size = (dist.get_rank(), dist.get_world_size()) if known else (0, 1)
        return zip(self.x[rank::size], self.y[rank::size], strict=True)


def regression(train: Any, **settings: Any) -> QuikSession:
    """A session on a stream."""
    made = quiet(epochs=2, lr=0.1, **settings).add_data(train=train, valid=numbers(37)).add_model(network())
    return made.set_criterion(nn.MSELoss).set_optimizer(optim.SGD)


def test_two_workers_train_on_the_shares_of_a_stream() -> None:
    """A stream that splits itself gives one process' losses on two, and a warning."""
    alone, split = regression(DataLoader(Shards(), batch_size=8)), regression(DataLoader(Shards(), batch_size=8))
    alone.train()
    with pytest.warns(QuikWarning, match="each rank's own share"):
        split.train(processes=2)

    assert list(alone.history.train_loss) == pytest.approx(list(split.history.train_loss), abs=1e-9)


class ReadyNumbers(Shards):
    """The same samples in ready batches of six."""

    def __iter__(self) -> Iterator[Any]:
        return zip(self.x.split(6), self.y.split(6), strict=True)


def test_two_workers_equal_two_ready_batches_a_step(tmp_path: Path) -> None:
    """With ready batches, processes=2 gives the losses of accumulate=2 in one process."""
    loader = DataLoader(ReadyNumbers(), batch_size=None)
    alone, ranks = regression(loader, accumulate=2), regression(loader)
    alone.train()
    with pytest.warns(QuikWarning, match="come ready"):
        ranks.train(processes=2)

    assert list(alone.history.train_loss) == pytest.approx(list(ranks.history.train_loss), abs=1e-9)
