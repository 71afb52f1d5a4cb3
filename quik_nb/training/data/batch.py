"""A batch for one rank, and how the batches of all ranks are dealt out.

One global order of the samples is cut into batches, and every batch is dealt out to the ranks, also the short last one,
so nothing is dropped and nothing counts twice, whatever the number of ranks. Samples are counted and dealt before they
are collated; what is a batch already is never cut.

| samples of an optimizer step, on any number of ranks          | its micro-batches                                 |
|---------------------------------------------------------------|---------------------------------------------------|
| the setting `batch_size` cuts: so many                        | `accumulate` parts of each rank's share           |
| a `DataLoader`'s batches of b join: `accumulate` * b          | each rank's share of each of these batches        |
| those of a batch sampler: what `accumulate` of its lists hold | likewise                                          |
| ready batches: `accumulate` of them, one a rank at least      | whole batches; a rank has none or several of them |
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from quik_nb.training.pytree import children, tree_map
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
    part: Callable[[int, int], Any] | None = None
    """collates some of its samples again, from one position to another; None where they cannot be read again"""


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


def shard_batches(sizes: Sequence[int], world: World) -> list[Shard]:
    """Shard a step of several batches of so many samples for this rank: a micro-batch of each, also a placeholder.

    Positions count through all batches of the step.

    >>> shard_batches([2, 1], World(rank=1, world_size=2))
    [Shard(start=1, stop=2, samples=1, total=3, last=False), Shard(start=2, stop=3, samples=0, total=3, last=True)]
    """
    ends = list(accumulate(sizes))
    shares = [shard_batch(end - size, end, world)[0] for size, end in zip(sizes, ends, strict=True)]
    return [share._replace(total=ends[-1], last=share is shares[-1]) for share in shares]


def to_device(data: Any, device: torch.device) -> Any:
    """A batch on the device: whatever has a method `to` by that, and the tensors in all else that `tree_map` walks."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            # only towards a GPU: on the way back the CPU could read what has not arrived yet
            return value if value.device == device else value.to(device, non_blocking=device.type == "cuda")
        if not hasattr(value, "to"):
            return value
        there = value.to(device)
        return value if there is None else there  # some move themselves

    return tree_map(moved, data, is_leaf=lambda value: hasattr(value, "to"))


def batch_length(data: Any) -> int:
    """The number of samples in a batch that came ready: the one on which its parts agree.

    | a part                                       | may hold                                                |
    |----------------------------------------------|---------------------------------------------------------|
    | a tensor or an array                         | its first dimension                                     |
    | a packed sequence; graphs                    | its sequences; `num_graphs`, or `batch_size`            |
    | a list of words                              | its length                                              |
    | a tuple or list of other things              | what those agree on, or its length: one thing a sample  |
    | a mapping, a dataclass                       | what its values agree on, else what the first one holds |

    Where nothing tells, it is one.

    >>> batch_length((["a", "b"], torch.zeros(2, 3))), batch_length({"words": ["a", "b", "c"]})
    (2, 3)
    >>> images = [torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)]
    >>> batch_length((images, [{"boxes": torch.zeros(5, 4)}, {"boxes": torch.zeros(1, 4)}]))
    2
    """
    return next(iter(_lengths(data)), 1)


def _lengths(data: Any) -> list[int]:
    """How many samples a batch may hold, the likeliest number first."""
    if isinstance(data, PackedSequence):
        return [int(data.batch_sizes[0])]
    count = getattr(data, "num_graphs", None)
    if isinstance(count, int):
        return [count]
    shape = getattr(data, "shape", None)
    if isinstance(shape, tuple):
        return [int(size) for size in shape[:1]]

    parts = children(data)
    if parts is None:
        count = getattr(data, "batch_size", None)
        return [count] if isinstance(count, int) else []

    inner = [lengths for part in parts if (lengths := _lengths(part))]
    agreed = [n for n in inner[0] if all(n in lengths for lengths in inner)] if inner else []
    own = [len(parts)] if isinstance(data, list | tuple) else []
    first = inner[0] if inner else []
    return [*agreed, *own, *first] if isinstance(data, list) else [*agreed, *first, *own]


def cut_batch(data: Any, start: int, stop: int, samples: int | None = None) -> Any:
    """Samples `start` to `stop` of a batch, to look at: what is trained on is dealt before it is collated.

    Args:
        data: of the batch.
        start: the first sample.
        stop: the one after the last.
        samples: in the batch, where they were counted; None to see what its parts agree on.

    Raises:
        TypeError: something in it is not by samples, as far as one can see.

    >>> cut_batch({"words": ["a", "b", "c"], "x": torch.arange(3)}, 1, 3)
    {'words': ['b', 'c'], 'x': tensor([1, 2])}
    """
    samples = batch_length(data) if samples is None else samples

    def is_by_sample(value: Any) -> bool:
        return isinstance(value, Tensor) and value.shape[:1] == (samples,)

    def is_leaf(value: Any) -> bool:
        if isinstance(value, PackedSequence):
            return True
        return isinstance(value, list | tuple) and len(value) == samples and not all(map(is_by_sample, value))

    def cut(value: Any) -> Any:
        if is_by_sample(value) or (isinstance(value, list | tuple) and is_leaf(value)):
            return value[start:stop]
        if isinstance(value, Tensor) and not value.ndim:
            return value
        raise TypeError(f"a batch with a {type(value).__name__} that does not hold one thing for each sample")

    return tree_map(cut, data, is_leaf)
