"""The samples of a split as plain records: tensors in memory, a map-style dataset, or a stream.

What is not here: how they are made of whatever a user has (`data.py`), and batches (`training/data/`).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Columns:
    """Which columns of a DataFrame are inputs, and which one the target."""

    target: str | None = None
    inputs: Any = None
    """their names in order; where they are separate, also lists of names; by keyword in a dict; None for all others"""
    separate: bool = False
    """whether each of them is an input of its own, rather than that all are one"""


@dataclass(frozen=True, eq=False)
class Tensors:
    """Samples in memory: tensors whose first dimension counts the samples."""

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...] | None = None
    """keys of a batch that is a dict; None for a batch that is a tuple"""
    rows: Tensor | None = None
    """(samples,) int64: the rows that belong to this split; None for all of them"""
    columns: "Columns | None" = None
    """of a DataFrame, whose like further ones must have; None where it was none"""

    def __len__(self) -> int:
        return len(self.tensors[0]) if self.rows is None else len(self.rows)

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return max(1, sum(t[:1].numel() * t.element_size() for t in self.tensors))

    def steps(self, batch_size: int, accumulate: int = 1, world_size: int = 1) -> int:
        """Optimizer steps in an epoch: `accumulate` cuts them into micro-batches, and changes no number of them."""
        return -(-len(self) // batch_size)

    def pack(self, values: Sequence[Tensor]) -> "tuple[Tensor, ...] | dict[str, Tensor]":
        """A batch in the form in which the data came: a tuple, or a dict."""
        return tuple(values) if self.names is None else dict(zip(self.names, values, strict=True))


@dataclass(frozen=True, eq=False)
class Samples:
    """A map-style dataset, fetched sample by sample through a `DataLoader`."""

    dataset: Any
    batch_size: int | None = None
    """samples per optimizer step where a `DataLoader` came with one; None for the session's"""
    shuffle: bool | None = None
    """None: the training split is shuffled, the others are not"""
    sampler: Any = None
    """a sampler of the user's own, or None"""
    batch_sampler: Any = None
    """a batch sampler of the user's own, or None"""
    drop_last: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    """further keywords of the `DataLoader`: collate_fn, num_workers, pin_memory, ..."""
    own_loader: bool = False
    """whether it came as a `DataLoader`, which says itself how samples are loaded"""

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self) -> Any:
        """One of the samples, to see what they are like; it may be drawn at random."""
        if self.batch_sampler is not None:
            return self.dataset[next(iter(self.batch_sampler))[0]]
        return self.dataset[0 if self.sampler is None else next(iter(self.sampler))]

    @property
    def joins(self) -> bool:
        """Whether batches of its own loader join into a step, rather than that the setting `batch_size` cuts it."""
        return self.batch_size is not None or self.batch_sampler is not None

    def steps(self, batch_size: int, accumulate: int = 1, world_size: int = 1) -> int | None:
        """Optimizer steps in an epoch; None where a sampler does not know.

        Args:
            batch_size: samples of a step, where no loader came with it.
            accumulate: batches of the loader that came with it which join into a step.
            world_size: ranks, which change nothing here.
        """
        joined = accumulate if self.joins else 1
        with suppress(TypeError):
            if self.batch_sampler is not None:
                return -(-len(self.batch_sampler) // joined)
            samples = len(self if self.sampler is None else self.sampler)
            return -(-_batches(samples, self.batch_size or batch_size, self) // joined)
        return None


@dataclass(frozen=True, eq=False)
class Stream:
    """An `IterableDataset`, or a `DataLoader` that yields ready batches: read in order, split among the ranks."""

    dataset: Any
    batch_size: int | None = None
    ready: bool = False
    """whether the dataset yields whole batches (`DataLoader(batch_size=None)`)"""
    sampler: Any = None
    """what a map-style dataset that gives ready batches is asked for, one after the other"""
    drop_last: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    own_loader: bool = False
    sharded: bool | None = None
    """whether it yields each rank's own share, rather than all samples to each; None to see by the first batches"""

    def __len__(self) -> int:
        """Samples (batches where they come ready), if the dataset knows; raises TypeError where it does not."""
        return len(self.dataset if self.sampler is None else self.sampler)

    @property
    def joins(self) -> bool:
        """Whether batches of its own loader join into a step, rather than that the setting `batch_size` cuts it."""
        return self.batch_size is not None or self.ready

    def steps(self, batch_size: int, accumulate: int = 1, world_size: int = 1) -> int | None:
        """Optimizer steps in an epoch; None where the stream does not know.

        Args:
            batch_size: samples of a step, where no loader came with it.
            accumulate: batches of the loader that came with it which join into a step.
            world_size: ranks, each of which has at least one of the batches that come ready.
        """
        with suppress(TypeError):
            if self.ready:
                return -(-len(self) // max(accumulate, world_size))
            batches = _batches(len(self), self.batch_size or batch_size, self)
            return -(-batches // (accumulate if self.joins else 1))
        return None


def _batches(samples: int, size: int, source: Samples | Stream) -> int:
    return samples // size if source.drop_last else -(-samples // size)


Source = Tensors | Samples | Stream


def alike(one: Source, other: Source) -> bool:
    """Whether two sources hold the same samples, as after a cell that was run again."""
    if one is other:
        return True
    if not isinstance(one, Tensors) or not isinstance(other, Tensors):
        return False  # the samples of a user's dataset cannot be compared from outside
    own, others = ((*s.tensors, *(() if s.rows is None else (s.rows,))) for s in (one, other))
    if one.names != other.names or len(own) != len(others):
        return False
    return all(
        a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in zip(own, others, strict=True)
    )


def loader_options(source: Samples | Stream, num_workers: int) -> Mapping[str, Any]:
    """Keywords of the source's `DataLoader`, with so many processes to load samples where it came as a dataset.

    A stream gets one at most: several would each read all of it. A `DataLoader` of one's own keeps its own number.

    >>> loader_options(Samples(range(9)), num_workers=2)
    {'num_workers': 2, 'persistent_workers': True}
    """
    if num_workers == 0 or source.own_loader:
        return source.options
    if isinstance(source, Stream):
        num_workers = 1
    # workers that stay: to start them costs more than an epoch of a small dataset
    return {**source.options, "num_workers": num_workers, "persistent_workers": True}


def compact(source: Source | None) -> Source | None:
    """The source without the rest of a larger tensor that its tensors are views of."""
    if not isinstance(source, Tensors):
        return source
    return replace(source, tensors=tuple(_own_storage(t.cpu()) for t in source.tensors))


def _own_storage(tensor: Tensor) -> Tensor:
    whole = tensor.untyped_storage().nbytes()
    return tensor.clone() if whole > 2 * tensor.numel() * tensor.element_size() else tensor


def describe_source(source: Source) -> str:
    """A split in words: how many samples of what."""
    match source:
        case Tensors():
            names = source.names or ("",) * len(source.tensors)
            shapes = ", ".join(
                f"{name} {tuple(t.shape[1:])} {str(t.dtype).removeprefix('torch.')}".strip()
                for name, t in zip(names, source.tensors, strict=True)
            )
            return f"{len(source):,} samples of {shapes}"
        case Samples():
            return f"{len(source):,} samples, {type(source.dataset).__name__}"
        case Stream():
            return f"a stream, {type(source.dataset).__name__}"
