"""The number of the epoch reaches datasets and samplers wherever they lie, also in loading workers that last."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    StackDataset,
    Subset,
    get_worker_info,
    random_split,
)

from quik_nb.recipe.data import as_source
from quik_nb.recipe.splits import split_off
from quik_nb.training.data.batches import batches_of
from quik_nb.training.data.set_epoch import set_epoch
from quik_nb.training.world import World


class Curriculum(Dataset[Tensor]):
    """Samples that are the number of the epoch."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        """Follow it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Tensor:
        return torch.tensor([float(self.epoch)])


class Bulk(Curriculum):
    """The same, asked for many at once."""

    def __getitems__(self, rows: list[int]) -> list[Tensor]:
        return [self[i] for i in rows]


class Stream(IterableDataset[Tensor]):
    """The same as a stream."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        """Follow it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        yield from (torch.tensor([float(self.epoch)]) for _ in range(12))


class Augmented(Dataset[Tensor]):
    """A wrapper of the user's own."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Tensor:
        return self.dataset[i] + 0.0


NESTS: dict[str, Any] = {
    "itself": Curriculum,
    "many at once": Bulk,
    "subset": lambda: Subset(Curriculum(), range(10)),
    "concatenated": lambda: ConcatDataset([Curriculum(), Curriculum()]),
    "random split of concatenated": lambda: random_split(ConcatDataset([Curriculum(), Curriculum()]), [20, 4])[0],
    "our own split": lambda: split_off(as_source(Curriculum(), "train"), 0.25, 0)[0],
    "stacked": lambda: StackDataset(Curriculum(), Curriculum()),
    "stacked by name": lambda: StackDataset(a=Curriculum(), b=Curriculum()),
    "wrapped": lambda: Augmented(Subset(Curriculum(), range(10))),
    "stream": Stream,
    "chained streams": lambda: ChainDataset([Stream(), Stream()]),
}


def loaded(dataset: Any, **options: Any) -> list[set[float]]:
    """What is in the samples of three epochs."""
    source = as_source(dataset, "train")
    if options:
        source = as_source(DataLoader(source.dataset, batch_size=4, **options), "train")
    batches = batches_of(source, 4, World(), shuffle=False)
    return [{float(v) for b in batches.epoch(42, epoch) for v in leaves(b.data)} for epoch in range(3)]


def leaves(data: Any) -> Iterator[float]:
    """The numbers of a batch."""
    for part in data.values() if isinstance(data, dict) else [data]:
        for tensor in part if isinstance(part, list | tuple) else [part]:
            yield from tensor.flatten().tolist()


@pytest.mark.parametrize("nest", NESTS)
def test_the_epoch_reaches_datasets_wherever_they_lie(nest: str) -> None:
    """What holds a dataset need not know of epochs."""
    assert [{0.0}, {1.0}, {2.0}] == loaded(NESTS[nest]())


@pytest.mark.parametrize("nest", ["itself", "many at once", "our own split", "wrapped", "stream", "chained streams"])
def test_the_epoch_reaches_workers_that_last(nest: str) -> None:
    """With persistent_workers=True the copies in the loading workers follow."""
    assert [{0.0}, {1.0}, {2.0}] == loaded(NESTS[nest](), num_workers=1, persistent_workers=True)


class Mine(Curriculum):
    """A dataset that a `worker_init_fn` changes."""

    start = 0

    def __getitem__(self, i: int) -> Tensor:
        return torch.tensor([float(self.start)])


def begin(worker: int) -> None:
    """As torch's documentation does it."""
    info = get_worker_info()
    assert info is not None
    info.dataset.start = 7 if isinstance(info.dataset, Mine) else 8


def test_code_in_workers_sees_its_own_dataset() -> None:
    """`get_worker_info().dataset` is the user's, also where it is followed."""
    assert [{7.0}] * 3 == loaded(Mine(), num_workers=1, persistent_workers=True, worker_init_fn=begin)


class Shuffled(Sampler[int]):
    """A sampler that follows epochs."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        """Follow it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(4))

    def __len__(self) -> int:
        return 4


def test_samplers_inside_batch_samplers_follow() -> None:
    """A sampler within a batch sampler is told as well, and whatever is there twice is told."""
    sampler = Shuffled()
    set_epoch(5, BatchSampler(sampler, 2, drop_last=False), None, sampler)

    assert 5 == sampler.epoch
