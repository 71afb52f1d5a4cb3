"""A batch for one rank, and how the batches of all ranks are dealt out.

One global order of the samples is cut into batches, and every batch is dealt out to the ranks, also the short last one,
so nothing is dropped and nothing counts twice, whatever the number of ranks. Each rank's share of a batch is cut again
into micro-batches where steps accumulate.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from quik_nb.training.pytree import tree_map
from quik_nb.training.world import World


class Batch(NamedTuple):
    """What one rank works on between two backward passes."""

    data: Any
    """as the dataset gives it: a tuple or dict of tensors on the device, or whatever the collate function makes"""
    samples: int
    """samples in it; 0 for a placeholder that takes part with weight zero"""
    total: int
    """samples of the whole optimizer step, over all micro-batches and ranks"""
    last: bool = True
    """whether the optimizer steps after it"""


class Shard(NamedTuple):
    """A piece of the global order for this rank: positions `start` to `stop`."""

    start: int
    stop: int
    samples: int
    total: int
    last: bool


class Batches(Protocol):
    """The batches of a split for one rank."""

    @property
    def steps(self) -> int | None:
        """Optimizer steps in an epoch; None where the length is not known."""

    def epoch(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, without the first `skip` optimizer steps.

        What the loader draws from the random generators to set itself up is drawn in this call.
        """


def shard_batch(start: int, stop: int, world: World, micro_batches: int = 1) -> list[Shard]:
    """Shard the batch of positions `start` to `stop` for this rank, into at most so many micro-batches.

    >>> shard_batch(0, 5, World(rank=1, world_size=2), micro_batches=2)
    [Shard(start=3, stop=4, samples=1, total=5, last=False), Shard(start=4, stop=5, samples=1, total=5, last=True)]
    """
    total = stop - start
    low, high = (start + edge for edge in world.shard_bounds(total))
    if low == high:  # no sample for this rank: it computes on the first one with weight zero, so that no rank waits
        return [Shard(start, start + 1, 0, total, True)]
    if micro_batches == 1:
        return [Shard(low, high, high - low, total, True)]
    size = -(-(high - low) // micro_batches)
    edges = list(range(low, high, size))
    return [Shard(a, min(a + size, high), min(size, high - a), total, a == edges[-1]) for a in edges]


def to_device(data: Any, device: torch.device) -> Any:
    """A batch on the device: tensors, tuples, lists and dicts of them, and whatever has a method `to`."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            # only towards a GPU: on the way back the CPU could read what has not arrived yet
            return value if value.device == device else value.to(device, non_blocking=device.type == "cuda")
        return value.to(device) if hasattr(value, "to") else value

    return tree_map(moved, data)


def batch_length(data: Any) -> int:
    """The number of samples in a batch: the length of its first tensor, or of its first list; 1 where it has none.

    >>> batch_length((["a", "b"], torch.zeros(2, 3))), batch_length({"words": ["a", "b", "c"]})
    (2, 3)
    """
    return next(_tensor_lengths(data), next(_list_lengths(data), 1))


def _tensor_lengths(data: Any) -> Iterator[int]:
    match data:
        case Tensor():
            yield from data.shape[:1]
        case dict():
            yield from (length for value in data.values() for length in _tensor_lengths(value))
        case tuple() | list():
            yield from (length for value in data for length in _tensor_lengths(value))
        case _ if hasattr(data, "num_graphs"):
            yield int(data.num_graphs)  # PyTorch Geometric counts graphs


def _list_lengths(data: Any) -> Iterator[int]:
    """Of lists of plain things, such as words."""
    parts = data.values() if isinstance(data, dict) else data if isinstance(data, tuple | list) else ()
    if isinstance(data, list) and not any(isinstance(part, dict | tuple | list) for part in parts):
        yield len(data)
    for part in parts:
        yield from _list_lengths(part)


def cut_batch(data: Any, start: int, stop: int) -> Any:
    """Samples `start` to `stop` of a batch."""

    def cut(value: Any) -> Any:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"a batch of type {type(value).__name__} cannot be cut for several ranks or micro-batches: train with "
                f"processes=1 and accumulate=1, or pass a map-style dataset, which is dealt out by sample."
            )
        return value[start:stop] if value.ndim else value

    return tree_map(cut, data)


def bytes_of(data: Any) -> int:
    """Bytes of all tensors in it.

    >>> bytes_of({"a": torch.zeros(2, 3), "b": [torch.zeros(1)]})
    28
    """
    total = 0

    def add(value: Any) -> None:
        nonlocal total
        total += value.nbytes if isinstance(value, Tensor) else 0

    tree_map(add, data)
    return total
