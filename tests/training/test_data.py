"""Nothing is dropped, nothing counts twice: every batch is dealt out to the ranks, whatever holds the samples."""

import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from quik_nb.recipe.data import as_source
from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.samples import Source, Stream
from quik_nb.recipe.settings import Settings
from quik_nb.recipe.splits import split_off
from quik_nb.training.data import in_memory
from quik_nb.training.data.batch import Batch, Batches, shard_batch
from quik_nb.training.data.batches import batches_of, eval_batches, train_batches
from quik_nb.training.world import World

EIGHT = Recipe(Settings(batch_size=8))


def ranks(world_size: int) -> list[World]:
    """The ranks of a training that do not talk to each other."""
    return [World(rank, world_size) for rank in range(world_size)]


def seen(batch: Batch) -> list[int]:
    """The numbers of the samples in a batch of `counted` data; none where it is a placeholder."""
    first = batch.data[0] if isinstance(batch.data, tuple | list) else batch.data
    return first.flatten().long().tolist()[: batch.samples]


def steps_of(source: Batches, epoch: int = 0, skip: int = 0) -> list[list[Batch]]:
    """The batches of an epoch, by optimizer step."""
    steps: list[list[Batch]] = [[]]
    for batch in source.epoch(42, epoch, skip):
        steps[-1].append(batch)
        if batch.last:
            steps.append([])
    assert steps.pop() == []
    return steps


def counted(samples: int) -> TensorDataset:
    """A dataset whose samples are their own numbers."""
    return TensorDataset(torch.arange(samples).double()[:, None], torch.zeros(samples))


class Fetched(Dataset[tuple[Tensor, Tensor]]):
    """The same, fetched sample by sample."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([float(index)]), torch.zeros(())


class WhoFetches(Fetched):
    """Samples that hold the number of the process that fetched them."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([float(index)]), torch.tensor(os.getpid())


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
def test_every_sample_is_used_once(world_size: int, parts: int) -> None:
    """The cuts of all ranks cover a batch of any length once, in order, and agree on its total."""
    for samples in range(1, 51):
        cuts = [cut for world in ranks(world_size) for cut in shard_batch(100, 100 + samples, world, parts)]
        covered = [i for cut in cuts if cut.samples for i in range(cut.start, cut.stop)]

        assert list(range(100, 100 + samples)) == covered
        assert {samples} == {cut.total for cut in cuts}
        assert samples == sum(cut.samples for cut in cuts)


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
def test_every_rank_takes_part_in_every_step(world_size: int, parts: int) -> None:
    """Each rank has one last micro-batch, none is larger than its share, and one without samples has a placeholder."""
    for samples in range(1, 51):
        for world in ranks(world_size):
            cuts = shard_batch(0, samples, world, parts)

            assert [False] * (len(cuts) - 1) + [True] == [cut.last for cut in cuts]
            assert len(cuts) <= parts
            assert all(0 <= cut.start < cut.stop <= samples for cut in cuts)
            assert max(cut.samples for cut in cuts) <= -(-samples // (world_size * parts)) + 1


def sources(samples: int) -> dict[str, Source]:
    """The same samples in every form that knows them by number."""
    loader = DataLoader(Fetched(samples), batch_size=8, shuffle=True)
    return {
        "tensors": as_source(counted(samples), "train"),
        "half": split_off(as_source(counted(2 * samples), "train"), samples, 0)[1],
        "fetched": as_source(Fetched(samples), "train"),
        "loader": as_source(loader, "train"),
    }


@pytest.mark.parametrize("kind", ["tensors", "half", "fetched", "loader"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("samples", [1, 7, 8, 9, 50])
def test_the_ranks_together_see_each_batch_of_one_rank(kind: str, samples: int, world_size: int) -> None:
    """The samples of step s over all ranks and micro-batches are those of step s on one rank."""
    source = sources(samples)[kind]
    alone = [seen(batch) for (batch,) in steps_of(batches_of(source, 8, World(), shuffle=True))]
    parts = 1 if kind == "loader" else 2  # there they join
    shares = [steps_of(batches_of(source, 8, world, shuffle=True, micro_batches=parts)) for world in ranks(world_size)]
    together = [[i for share in step for batch in share for i in seen(batch)] for step in zip(*shares, strict=True)]

    assert alone == together
    assert samples == len({i for step in alone for i in step})
    assert -(-samples // 8) == len(alone)


@pytest.mark.parametrize("kind", ["tensors", "fetched"])
def test_each_epoch_has_an_order_of_its_own(kind: str) -> None:
    """Epochs are shuffled differently, the same epoch always alike, and both kinds of data in one way."""
    due = [[seen(b) for b in batches_of(sources(50)[kind], 8, World(), True).epoch(42, epoch)] for epoch in (0, 1, 1)]
    tensors = [seen(b) for b in batches_of(sources(50)["tensors"], 8, World(), True).epoch(42, 0)]

    assert due[0] != due[1]
    assert due[1] == due[2]
    assert tensors == due[0]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("chunk", [1, 100, 1000])
@pytest.mark.parametrize("shuffle", [True, False])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, shuffle: bool, chunk: int, world_size: int) -> None:
    """Where the rows are gathered in several chunks, the batches are the same."""
    source, world = sources(50)["tensors"], World(world_size - 1, world_size)
    whole = [(seen(b), b.total, b.last) for b in batches_of(source, 8, world, shuffle, micro_batches=2).epoch(42, 0)]
    monkeypatch.setattr(in_memory, "CHUNK_BYTES", chunk)
    cut = [(seen(b), b.total, b.last) for b in batches_of(source, 8, world, shuffle, micro_batches=2).epoch(42, 0)]

    assert whole == cut


@pytest.mark.parametrize("kind", ["tensors", "fetched"])
@pytest.mark.parametrize("skip", [0, 1, 6, 7])
def test_an_epoch_can_be_entered_at_a_step(kind: str, skip: int) -> None:
    """With `skip` the epoch goes on at that optimizer step, also where steps have micro-batches."""
    source = batches_of(sources(50)[kind], 8, World(), shuffle=True, micro_batches=3)
    whole = [[seen(batch) for batch in step] for step in steps_of(source)]
    rest = [[seen(batch) for batch in step] for step in steps_of(source, skip=skip)]

    assert whole[skip:] == rest


@pytest.mark.parametrize("kind", ["tensors", "half", "fetched", "loader"])
def test_evaluation_is_in_order(kind: str) -> None:
    """A pass without training sees all samples in order, also those of a loader that shuffles."""
    order = [i for batch in eval_batches(sources(20)[kind], EIGHT, World()).epoch(42, 0) for i in seen(batch)]

    assert sorted(order) == order
    assert 20 == len(order)


def test_evaluation_drops_nothing() -> None:
    """A loader that drops the short last batch does so in training only."""
    source = as_source(DataLoader(Fetched(20), batch_size=8, drop_last=True), "valid")
    training, evaluation = (
        batches_of(source, 8, World(), shuffle=True),
        eval_batches(source, EIGHT, World()),
    )

    assert [2, 3] == [training.steps, evaluation.steps]
    assert [16, 20] == [sum(b.samples for b in each.epoch(42, 0)) for each in (training, evaluation)]


class Backwards(Sampler[int]):
    """A sampler of the user's own, which does not tell its length."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(19, -1, -1))


class ByPython(Sampler[int]):
    """A sampler that shuffles with Python's and NumPy's generators."""

    def __iter__(self) -> Iterator[int]:
        order = list(range(20))
        random.shuffle(order)
        return iter(np.random.permutation(order).tolist())

    def __len__(self) -> int:
        return 20


SAMPLERS: list[Any] = [
    Backwards(),
    ByPython(),
    SubsetRandomSampler(range(5, 15)),
    WeightedRandomSampler([1.0] * 20, 30),
    RandomSampler(range(20), replacement=True, num_samples=33),
    RandomSampler(range(20), num_samples=9),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_samplers_of_the_user_decide_for_all_ranks(sampler: Any) -> None:
    """Ranks share out what the sampler draws once, whatever their own generators stand at."""
    source = as_source(DataLoader(Fetched(20), batch_size=8, sampler=sampler), "train")
    alone = [seen(b) for b in batches_of(source, 99, World(), True).epoch(42, 0)]
    shares = []
    for world in ranks(3):
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(world.rank)
        shares.append([seen(b) for b in batches_of(source, 99, world, True).epoch(42, 0)])
    drawn = len(list(sampler))

    assert alone == [a + b + c for a, b, c in zip(*shares, strict=True)]
    assert drawn == sum(map(len, alone))
    assert -(-drawn // 8) == len(alone)


def test_a_sampler_without_length_is_taken() -> None:
    """The number of steps is then unknown, and the order is the sampler's."""
    source = batches_of(
        as_source(DataLoader(Fetched(20), batch_size=8, sampler=Backwards()), "train"), 8, World(), True
    )

    assert source.steps is None
    assert list(range(19, -1, -1)) == [i for batch in source.epoch(42, 0) for i in seen(batch)]


def test_batch_samplers_of_the_user_are_kept() -> None:
    """A batch sampler decides what a step is."""

    class Pairs(Sampler[list[int]]):
        def __iter__(self) -> Iterator[list[int]]:
            return iter([[0, 5], [1], [2, 3, 4]])

    source = batches_of(as_source(DataLoader(Fetched(6), batch_sampler=Pairs()), "train"), 8, World(), True)

    assert [[0, 5], [1], [2, 3, 4]] == [seen(batch) for batch in source.epoch(42, 0)]
    assert source.steps is None


class Bulk(Dataset[Tensor]):
    """A dataset that is asked for whole batches, as fast datasets are."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows).double()[:, None]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_dataset_that_is_asked_for_whole_batches(world_size: int) -> None:
    """The idiom `DataLoader(dataset, sampler=BatchSampler(...), batch_size=None)` keeps its sampler."""
    sampler = BatchSampler(RandomSampler(range(20)), 8, drop_last=False)
    source = as_source(DataLoader(Bulk(), sampler=sampler, batch_size=None), "train")
    alone = batches_of(source, 99, World(), True)
    epochs = [[seen(b) for b in alone.epoch(42, epoch)] for epoch in (0, 1, 0)]

    assert isinstance(source, Stream)
    assert 3 == alone.steps
    assert [8, 8, 4] == [len(batch) for batch in epochs[0]]
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]
    assert list(range(20)) == sorted(i for batch in epochs[0] for i in batch)


class Counting(IterableDataset[Tensor]):
    """A stream of numbers."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(20).double()[:, None])


class Sized(Counting):
    """One that knows its length."""

    def __len__(self) -> int:
        return 20


@pytest.mark.parametrize(("dataset", "steps"), [(Counting(), None), (Sized(), 3)])
def test_streams_are_read_in_order(dataset: Any, steps: int | None) -> None:
    """A stream is read as it comes, every sample once, in steps of the batch size, cut into micro-batches."""
    source = batches_of(as_source(dataset, "train"), 8, World(), shuffle=True, micro_batches=3)
    found = steps_of(source)

    assert steps == source.steps
    assert Counter(range(20)) == Counter(i for step in found for batch in step for i in seen(batch))
    assert [8, 8, 4] == [sum(batch.samples for batch in step) for step in found]
    assert [[3, 3, 2], [3, 3, 2], [2, 2]] == [[batch.samples for batch in step] for step in found]


def test_loading_workers_see_every_sample_once() -> None:
    """With `num_workers=2` the batches come in order and complete, epoch after epoch."""
    loader = DataLoader(Fetched(20), batch_size=8, num_workers=2)
    source = batches_of(as_source(loader, "train"), 8, World(), True)
    epochs = [[i for b in source.epoch(42, epoch) for i in seen(b)] for epoch in (0, 1)]

    assert [list(range(20))] * 2 == epochs


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_setting_num_workers_loads_datasets(num_workers: int) -> None:
    """With the setting, samples of a dataset are fetched by other processes, and batches are the same."""
    recipe = Recipe(Settings(batch_size=8, num_workers=num_workers), train=as_source(WhoFetches(20), "train"))
    epochs = [list(train_batches(recipe, World()).epoch(42, epoch)) for epoch in (0, 1)]

    wanted = [list(batches_of(as_source(Fetched(20), "train"), 8, World(), True).epoch(42, epoch)) for epoch in (0, 1)]
    assert [list(map(seen, batches)) for batches in wanted] == [list(map(seen, batches)) for batches in epochs]
    here = {int(who) == os.getpid() for batches in epochs for batch in batches for who in batch.data[1]}
    assert {num_workers == 0} == here


def test_a_stream_is_loaded_by_one_worker() -> None:
    """Several workers would each read the whole stream, so it gets one, and each sample is there once."""
    recipe = Recipe(Settings(batch_size=8, num_workers=3), train=as_source(Counting(), "train"))

    assert list(range(20)) == [i for batch in train_batches(recipe, World()).epoch(42, 0) for i in seen(batch)]


def test_a_loader_of_the_user_keeps_its_workers() -> None:
    """The setting does not reach a DataLoader."""
    source = as_source(DataLoader(WhoFetches(20), batch_size=8), "train")
    batches = train_batches(Recipe(Settings(num_workers=2), train=source), World())

    assert {os.getpid()} == {int(who) for batch in batches.epoch(42, 0) for who in batch.data[1]}


def test_a_collate_function_is_kept() -> None:
    """What the loader's collate function makes is the batch."""
    loader = DataLoader(Fetched(20), batch_size=8, collate_fn=lambda items: {"x": torch.stack([x for x, _ in items])})
    first = next(iter(batches_of(as_source(loader, "train"), 8, World(), True).epoch(42, 0)))

    assert ["x"] == list(first.data)
    assert (8, 1) == first.data["x"].shape


@pytest.mark.parametrize("part", [0.25, 5])
@pytest.mark.parametrize("kind", ["tensors", "fetched"])
def test_a_part_is_cut_off_by_the_seed(kind: str, part: float) -> None:
    """The rest and the part have every sample once; the same seed cuts alike, another one otherwise."""
    source = sources(20)[kind]

    def rows(source: Source) -> list[int]:
        return [i for batch in eval_batches(source, EIGHT, World()).epoch(0, 0) for i in seen(batch)]

    rest, cut = map(rows, split_off(source, part, seed=1))

    assert 5 == len(cut)
    assert list(range(20)) == sorted(rest + cut)
    assert [rest, cut] == list(map(rows, split_off(source, part, seed=1)))
    assert [rest, cut] != list(map(rows, split_off(source, part, seed=2)))
