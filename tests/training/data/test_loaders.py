"""Batches of a loader of one's own join into steps, and are dealt to ranks before they are collated."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from harness.plain import network, numbers, quiet
from torch import Tensor, nn, optim
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler, TensorDataset

from quik_nb import QuikSession
from quik_nb.recipe.data import as_source
from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.settings import Settings
from quik_nb.training.carry_over import carry_over
from quik_nb.training.data.batch import Batch, Batches
from quik_nb.training.data.batches import batches_of, eval_batches
from quik_nb.training.data.loaders import collate_advice
from quik_nb.training.progress import Progress
from quik_nb.training.world import World


class Lines(Dataset[Tensor]):
    """Line i is the number i, 1 + i % 4 times."""

    def __len__(self) -> int:
        return 21

    def __getitem__(self, i: int) -> Tensor:
        return torch.full((1 + i % 4,), float(i))


def padded(lines: list[Tensor]) -> Tensor:
    """(lines, longest of them), padded with -1."""
    return nn.utils.rnn.pad_sequence(lines, batch_first=True, padding_value=-1.0)


def dealt(loader: Any, world_size: int, micro_batches: int = 1) -> list[list[list[Batch]]]:
    """The micro-batches of each step, of each rank, for a world of so many ranks: by step, by rank."""
    source = as_source(loader, "train")
    ranks = [batches_of(source, 99, World(rank, world_size), True, micro_batches) for rank in range(world_size)]
    return [list(step) for step in zip(*map(steps_of, ranks), strict=True)]


def steps_of(batches: Batches) -> list[list[Batch]]:
    """The batches of an epoch, by optimizer step."""
    steps: list[list[Batch]] = [[]]
    for batch in batches.epoch(42, 0):
        steps[-1].append(batch)
        if batch.last:
            steps.append([])
    assert steps.pop() == []
    return steps


def numbers_of(batch: Batch) -> list[int]:
    """The lines in a batch."""
    return [int(line) for line in batch.data[: batch.samples, 0]]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_batches_of_a_loader_join(world_size: int) -> None:
    """With accumulate=3 a step has three of the loader's batches, each of which is split over all ranks."""
    steps = dealt(DataLoader(Lines(), batch_size=4, collate_fn=padded), world_size, micro_batches=3)
    lines = [[[i for b in batch for i in numbers_of(b)] for batch in zip(*step, strict=True)] for step in steps]

    assert [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]], [[12, 13, 14, 15], [16, 17, 18, 19], [20]]] == lines
    assert [{12}, {9}] == [{batch.total for rank in step for batch in rank} for step in steps]
    assert 4 // world_size + (4 % world_size > 0) == max(b.samples for step in steps for rank in step for b in rank)


def test_a_batch_is_padded_by_the_rank_that_has_it() -> None:
    """Each rank collates its own lines, as wide as the longest of them."""
    ((first, second),) = dealt(DataLoader(Lines(), batch_sampler=[[0, 4, 1, 3]], collate_fn=padded), 2)

    assert [(2, 1), (2, 4)] == [tuple(first[0].data.shape), tuple(second[0].data.shape)]


class ByLength(Sampler[list[int]]):
    """A batch sampler that puts lines of one length together, and has an empty batch."""

    def __iter__(self) -> Iterator[list[int]]:
        yield from [[0, 4, 8, 12], [1, 5], [], [2], [3, 7, 11]]

    def __len__(self) -> int:
        return 4


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_of_a_batch_sampler_join(world_size: int) -> None:
    """Its batches join as they are, and no padding is made where it made none."""
    loader = DataLoader(Lines(), batch_sampler=ByLength(), collate_fn=padded)
    steps = dealt(loader, world_size, micro_batches=2)
    found = [sorted(i for rank in step for batch in rank for i in numbers_of(batch)) for step in steps]

    assert [[0, 1, 4, 5, 8, 12], [2, 3, 7, 11]] == found
    assert all((batch.data >= 0).all() for step in steps for rank in step for batch in rank)
    assert 2 == batches_of(as_source(loader, "train"), 99, World(), True, 2).steps


def test_a_loader_drops_only_its_short_last_batch() -> None:
    """drop_last leaves out the short batch of the loader, not a step with fewer batches."""
    loader = DataLoader(Lines(), batch_size=4, collate_fn=padded, drop_last=True)
    steps = dealt(loader, 1, micro_batches=3)

    assert [12, 8] == [rank[0].total for (rank,) in steps]
    assert 2 == batches_of(as_source(loader, "train"), 99, World(), True, 3).steps


def linear(train: Any, **settings: Any) -> QuikSession:
    """A session whose data is given."""
    made = quiet(epochs=2, lr=0.1, **settings).add_data(train=train, valid=numbers(37)).add_model(network())
    return (
        made.set_criterion(nn.MSELoss)
        .set_optimizer(optim.AdamW)
        .set_scheduler(optim.lr_scheduler.OneCycleLR, max_lr=0.1)
    )


def test_accumulate_beside_a_loader_equals_a_larger_batch() -> None:
    """Four batches of four are one of sixteen: the same losses, steps, schedule and words of the session."""
    loader = DataLoader(TensorDataset(*numbers(101)), batch_size=4, sampler=SequentialSampler(range(101)))
    joined = linear(loader, accumulate=4)
    whole = linear(DataLoader(TensorDataset(*numbers(101)), batch_size=16, sampler=SequentialSampler(range(101))))
    joined.train()
    whole.train()

    assert "7 per epoch of 16 samples, each in 4 parts" in repr(joined)
    assert list(whole.history.train_loss) == pytest.approx(list(joined.history.train_loss), abs=1e-12)
    assert list(whole.history.lr) == list(joined.history.lr)


@pytest.mark.parametrize(
    ("loader", "expected"),
    [(DataLoader(Lines(), batch_size=4), 0), (DataLoader(Lines(), batch_sampler=ByLength()), 0), (Lines(), 3)],
)
def test_another_accumulate_beside_a_loader_makes_other_steps(loader: Any, expected: int) -> None:
    """An epoch that was begun in steps of other sizes starts again; where the setting cuts, they are the same steps."""
    source = as_source(loader, "train")
    old, new = (Recipe(Settings(accumulate=n), train=source) for n in (2, 4))

    assert expected == carry_over(Progress(epoch=1, step=3), old, new).step
    assert 3 == carry_over(Progress(epoch=1, step=3), old, old).step


SIZES: dict[str, tuple[Any, dict[str, int], int, int]] = {
    "setting": (Lines(), {"batch_size": 8}, 1, 8),
    "parts": (Lines(), {"batch_size": 8, "accumulate": 2}, 1, 4),
    "parts that do not divide": (Lines(), {"batch_size": 8, "accumulate": 3}, 1, 3),
    "ranks": (Lines(), {"batch_size": 8}, 2, 4),
    "ranks and parts": (Lines(), {"batch_size": 8, "accumulate": 2}, 2, 2),
    "loader": (DataLoader(Lines(), batch_size=6), {"batch_size": 8, "accumulate": 2}, 1, 6),
    "loader on ranks": (DataLoader(Lines(), batch_size=6), {"batch_size": 8}, 2, 3),
    "batch sampler": (
        DataLoader(Lines(), batch_sampler=type("Own", (BatchSampler,), {})(RandomSampler(range(21)), 5, False)),
        {"batch_size": 8},
        1,
        5,
    ),
}


@pytest.mark.parametrize("form", ["tensors", "dataset", "own loader"])
@pytest.mark.parametrize("kind", SIZES)
def test_a_forward_without_training_is_one_of_training(kind: str, form: str) -> None:
    """Validation and predictions take as many samples at once as a micro-batch of training, or as their own loader."""
    train, settings, world_size, expected = SIZES[kind]
    recipe = Recipe(Settings(**settings), train=as_source(train, "train"))
    dataset = TensorDataset(torch.arange(48.0)[:, None])
    data = {"tensors": dataset.tensors[0], "dataset": dataset, "own loader": DataLoader(dataset, batch_size=12)}[form]
    passes = [
        list(eval_batches(as_source(data, "valid"), recipe, World(rank, world_size)).epoch(0, 0))
        for rank in range(world_size)
    ]

    assert {12 // world_size if form == "own loader" else expected} == {max(b.samples for b in rank) for rank in passes}
    assert set(range(48)) == {int(i) for rank in passes for b in rank for i in b.data[0][: b.samples].flatten()}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_samples_that_cannot_be_stacked(num_workers: int) -> None:
    """The error says how lines of unequal length become a batch."""
    loader = DataLoader(Lines(), batch_size=4, num_workers=num_workers)

    with pytest.raises(RuntimeError) as caught:
        list(batches_of(as_source(loader, "train"), 4, World(), True).epoch(0, 0))
    assert "collate_fn=pad" in "".join(caught.value.__notes__)


@pytest.mark.parametrize(
    ("samples", "advice"),
    [([[1, 2], [1]], "pad them"), ([object()], "have the dataset give tensors"), ([torch.zeros(1)], "")],
)
def test_advice_on_samples(samples: list[Any], advice: str) -> None:
    """What torch refuses to collate is told with what to do instead."""
    words = ""
    try:
        torch.utils.data.default_collate(samples)
    except (RuntimeError, TypeError) as error:
        words = str(error)

    assert advice in collate_advice(words)
    assert bool(advice) == bool(collate_advice(words))
