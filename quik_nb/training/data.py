"""Samples to batches for one rank: the fast path for tensors, loaders for the rest.

One global order of the samples is cut into batches, and every batch is dealt out to the ranks, also the short last one,
so nothing is dropped and nothing counts twice, whatever the number of ranks. Each rank's share of a batch is cut again
into micro-batches where steps accumulate.

Covered: tensors in memory, map-style datasets and loaders with samplers of their own, streams.
Not covered: streams whose ranks read different data by themselves (they are dealt out again, so each rank reads all).
"""

import ctypes
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from quik_nb.sources import Samples, Source, Stream, Tensors
from quik_nb.training.nested import mapped
from quik_nb.training.rng import epoch_seed, preserved, seed_all
from quik_nb.training.world import World

CHUNK_BYTES = 64 * 2**20
"""Shuffled rows are gathered in chunks of at most this size, so that memory is bounded and a batch is just a slice."""

EVAL_BYTES = 2**20
"""Validation takes as many rows into one forward as fit here (at least the training batch)."""

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when its parent dies."""

DEVICE_SHARE = 0.4
"""Data stays on a GPU if it takes at most this part of the memory that is free there."""


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


class Cut(NamedTuple):
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


def deal(start: int, stop: int, world: World, parts: int = 1) -> list[Cut]:
    """Cut the batch of positions `start` to `stop` for this rank, into at most `parts` micro-batches.

    >>> deal(0, 5, World(rank=1, world_size=2), parts=2)
    [Cut(start=3, stop=4, samples=1, total=5, last=False), Cut(start=4, stop=5, samples=1, total=5, last=True)]
    """
    total = stop - start
    low, high = (start + edge for edge in world.share(total))
    if low == high:  # no sample for this rank: it computes on the first one with weight zero, so that no rank waits
        return [Cut(start, start + 1, 0, total, True)]
    if parts == 1:
        return [Cut(low, high, high - low, total, True)]
    size = -(-(high - low) // parts)
    edges = list(range(low, high, size))
    return [Cut(a, min(a + size, high), min(size, high - a), total, a == edges[-1]) for a in edges]


class TensorBatches:
    """Batches of tensors in memory: one permutation an epoch, rows gathered in chunks, a batch is a slice."""

    def __init__(self, source: Tensors, batch_size: int, world: World, shuffle: bool, parts: int = 1) -> None:
        self.source, self.world, self.shuffle = source, world, shuffle
        self.tensors = _resident(source, world.device)
        self.rows = source.rows if source.rows is None else source.rows.to(self.tensors[0].device)
        n = len(source)
        self.cuts = [deal(a, min(a + batch_size, n), world, parts) for a in range(0, n, batch_size)]
        rows = max(1, CHUNK_BYTES // source.row_bytes)
        self.steps_per_chunk = max(1, rows // batch_size)

    @property
    def steps(self) -> int:
        return len(self.cuts)

    def epoch(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        order = self._order(seed, epoch)
        for first in range(skip, len(self.cuts), self.steps_per_chunk):
            cuts = [cut for step in self.cuts[first : first + self.steps_per_chunk] for cut in step]
            sizes = [cut.stop - cut.start for cut in cuts]
            columns = [torch.split(self._gather(t, order, cuts), sizes) for t in self.tensors]
            for cut, values in zip(cuts, zip(*columns, strict=True), strict=True):
                data = values if self.source.names is None else self.source.pack(values)
                yield Batch(data, cut.samples, cut.total, cut.last)

    def _order(self, seed: int, epoch: int) -> Tensor | None:
        """(samples,) positions in the order of this epoch; None for rows as they lie."""
        if not self.shuffle:
            return self.rows
        order = torch.randperm(len(self.source), generator=torch.Generator().manual_seed(epoch_seed(seed, epoch)))
        order = order.to(self.tensors[0].device)
        return order if self.rows is None else self.rows[order]

    def _gather(self, tensor: Tensor, order: Tensor | None, cuts: Sequence[Cut]) -> Tensor:
        """The rows of these cuts one after the other, on the device; a view where they lie together."""
        if order is None:
            order = torch.arange(len(tensor), device=tensor.device) if self.world.is_ddp else None
        if order is None:
            rows = tensor[cuts[0].start : cuts[-1].stop]
        elif not self.world.is_ddp:
            rows = tensor.index_select(0, order[cuts[0].start : cuts[-1].stop])
        else:
            rows = tensor.index_select(0, torch.cat([order[cut.start : cut.stop] for cut in cuts]))
        return rows.to(self.world.device, non_blocking=True)


def _resident(source: Tensors, device: torch.device) -> tuple[Tensor, ...]:
    """The tensors on the device where they fit, else where they are."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if sum(t.numel() * t.element_size() for t in source.tensors) > free * DEVICE_SHARE:
            return source.tensors
    return tuple(t.to(device) for t in source.tensors)


class Dealt:
    """A sampler that hands out what an epoch asks the dataset for; it lives as long as the loader's workers."""

    def __init__(self) -> None:
        self.lists: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        yield from self.lists


class SampleBatches:
    """Batches of a map-style dataset: the global order is dealt out as index lists to a `DataLoader`."""

    def __init__(self, source: Samples, batch_size: int, world: World, shuffle: bool, parts: int = 1) -> None:
        self.source, self.world, self.parts = source, world, parts
        self.batch_size = source.batch_size or batch_size
        self.shuffle = shuffle if source.shuffle is None else source.shuffle
        self.dealt = Dealt()
        self.loader = _loader(source.dataset, source.options, batch_sampler=self.dealt)

    @property
    def steps(self) -> int | None:
        sampler = self.source.sampler
        with suppress(TypeError):  # a sampler need not know its length
            if self.source.batch_sampler is not None:
                return len(self.source.batch_sampler)
            n = len(self.source) if sampler is None else len(sampler)
            return n // self.batch_size if self.source.drop_last else -(-n // self.batch_size)
        return None

    def epoch(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        cuts: list[Cut] = []  # filled as the loader draws index lists, in the order in which its batches come
        self.dealt.lists = self._lists(islice(self._batches(epoch_seed(seed, epoch)), skip, None), cuts)
        return self._walk(iter(self.loader), cuts)

    def _walk(self, loaded: Iterator[Any], cuts: list[Cut]) -> Iterator[Batch]:
        for done, data in enumerate(loaded):
            cut = cuts[done]
            yield Batch(to_device(data, self.world.device), cut.samples, cut.total, cut.last)

    def _batches(self, seed: int) -> Iterator[list[int]]:
        """The global batches, as lists of sample numbers; equal on all ranks."""
        source = self.source
        if source.batch_sampler is not None:
            yield from _drawn(source.batch_sampler, seed)
            return
        if source.sampler is not None:
            order = torch.tensor(_drawn(source.sampler, seed), dtype=torch.int64)
        elif self.shuffle:
            order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
        else:
            order = torch.arange(len(source))
        for batch in torch.split(order, self.batch_size):
            if len(batch) == self.batch_size or not source.drop_last:
                yield batch.tolist()

    def _lists(self, batches: Iterable[list[int]], cuts: list[Cut]) -> Iterator[list[int]]:
        for batch in batches:
            for cut in deal(0, len(batch), self.world, self.parts):
                cuts.append(cut)
                yield batch[cut.start : cut.stop]


def _drawn(sampler: Iterable[Any], seed: int) -> list[Any]:
    """What a user's sampler draws: the same on all ranks, from whichever generator it draws."""
    with preserved():
        seed_all(seed)
        return list(sampler)


class StreamBatches:
    """Batches of a stream: each rank reads all of it and keeps its share; streams may be uneven without a hang."""

    def __init__(self, source: Stream, batch_size: int, world: World, parts: int = 1) -> None:
        self.source, self.world, self.parts = source, world, parts
        self.batch_size = source.batch_size or batch_size
        size = None if source.ready else self.batch_size
        self.drawn = Dealt()
        keys = {} if source.sampler is None else {"sampler": self.drawn}
        self.loader = _loader(source.dataset, source.options, batch_size=size, **keys)

    @property
    def steps(self) -> int | None:
        with suppress(TypeError):  # a stream need not know its length
            return len(self.source) if self.source.ready else -(-len(self.source) // self.batch_size)
        return None

    def epoch(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        set_epoch = getattr(self.source.dataset, "set_epoch", None)
        if callable(set_epoch):  # Hugging Face streams shuffle by it
            set_epoch(epoch)
        if self.source.sampler is not None:
            self.drawn.lists = _drawn(self.source.sampler, epoch_seed(seed, epoch))
        stream = self._agreed(iter(self.loader))
        for _ in islice(stream, skip):  # read now, so that the random numbers stand where they stood
            pass
        return self._walk(stream)

    def _walk(self, stream: Iterator[Any]) -> Iterator[Batch]:
        for data in stream:
            n = batch_length(data)
            for cut in deal(0, n, self.world, self.parts):
                whole = cut.stop - cut.start == n
                part = data if whole else cut_batch(data, cut.start, cut.stop)
                yield Batch(to_device(part, self.world.device), cut.samples, cut.total, cut.last)

    def _agreed(self, loaded: Iterator[Any]) -> Iterator[Any]:
        """The stream's batches, up to the shortest rank's end: no rank waits for one that has no more."""
        for data in loaded:
            if not self.world.is_ddp:
                yield data
                continue
            here = torch.ones((), device=self.world.device)
            if self.world.sum(here) < self.world.world_size:
                return
            yield data
        if self.world.is_ddp:
            self.world.sum(torch.zeros((), device=self.world.device))


def _loader(dataset: Any, options: Any, **how: Any) -> DataLoader[Any]:
    keywords = {**options, **how}
    if keywords.get("num_workers"):
        keywords["worker_init_fn"] = partial(_ignore_interrupt, keywords.get("worker_init_fn"))
    return DataLoader(dataset, **keywords)


def _ignore_interrupt(user: Any, worker: int) -> None:
    """Jupyter's interrupt reaches the whole process group; the training ends loading workers itself.

    One whose rank was killed would look for it every five seconds only, so on Linux the kernel is asked to tell it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if user is not None:
        user(worker)


def batches(source: Source, batch_size: int, world: World, shuffle: bool, parts: int = 1) -> Batches:
    """The batches of a source for one rank."""
    match source:
        case Tensors():
            return TensorBatches(source, batch_size, world, shuffle, parts)
        case Samples():
            return SampleBatches(source, batch_size, world, shuffle, parts)
        case _:
            return StreamBatches(source, batch_size, world, parts)


def eval_batches(source: Source, batch_size: int, world: World) -> Batches:
    """All samples of a source in order, in large forwards where they are small."""
    if isinstance(source, Tensors):
        batch_size = max(batch_size, EVAL_BYTES // source.row_bytes)
    if isinstance(source, Samples):
        source = replace(source, shuffle=False, drop_last=False)
    return batches(source, batch_size, world, shuffle=False)


def to_device(data: Any, device: torch.device) -> Any:
    """A batch on the device: tensors, tuples, lists and dicts of them, and whatever has a method `to`."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            # only towards a GPU: on the way back the CPU could read what has not arrived yet
            return value if value.device == device else value.to(device, non_blocking=device.type == "cuda")
        return value.to(device) if hasattr(value, "to") else value

    return mapped(moved, data)


def batch_length(data: Any) -> int:
    """The number of samples in a batch: the length of its first tensor; 1 where it has none."""
    match data:
        case Tensor():
            return len(data) if data.ndim else 1
        case dict():
            return batch_length(next(iter(data.values()), None))
        case tuple() | list():
            return batch_length(data[0]) if data else 1
    return int(getattr(data, "num_graphs", 1))  # PyTorch Geometric counts graphs


def cut_batch(data: Any, start: int, stop: int) -> Any:
    """Samples `start` to `stop` of a batch."""

    def cut(value: Any) -> Any:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"a batch of type {type(value).__name__} cannot be cut for several ranks or micro-batches: train with "
                f"processes=1 and accumulate=1, or pass a map-style dataset, which is dealt out by sample."
            )
        return value[start:stop] if value.ndim else value

    return mapped(cut, data)
