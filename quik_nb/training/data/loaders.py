"""Samples that are fetched: map-style datasets through a `DataLoader`, and streams.

Covered: loaders with samplers of their own, ready batches, streams of unknown and of uneven length.
Not covered: streams whose ranks read different data by themselves (they are dealt out again, so each rank reads all).
"""

import ctypes
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from quik_nb.errors import RecipeError
from quik_nb.recipe.data import Samples, Stream
from quik_nb.training.data.batch import Batch, Shard, batch_length, cut_batch, shard_batch, to_device
from quik_nb.training.rng import epoch_seed, preserved, seed_all
from quik_nb.training.world import World

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when its parent dies."""


class IndexListSampler:
    """A sampler that hands out what an epoch asks the dataset for; it lives as long as the loader's workers."""

    def __init__(self) -> None:
        self.lists: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        yield from self.lists


class SampleBatches:
    """Batches of a map-style dataset: the global order is dealt out as index lists to a `DataLoader`."""

    def __init__(self, source: Samples, batch_size: int, world: World, shuffle: bool, micro_batches: int = 1) -> None:
        self.source, self.world, self.micro_batches = source, world, micro_batches
        self.batch_size = source.batch_size or batch_size
        self.shuffle = shuffle if source.shuffle is None else source.shuffle
        self.dealt = IndexListSampler()
        self.loader = _loader(source.dataset, source.options, batch_sampler=self.dealt)

    @property
    def steps(self) -> int | None:
        return self.source.steps(self.batch_size)

    def epoch(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        _tell(epoch, self.source.dataset, self.source.sampler, self.source.batch_sampler)
        cuts: list[Shard] = []  # filled as the loader draws index lists, in the order in which its batches come
        self.dealt.lists = self._lists(islice(self._batches(epoch_seed(seed, epoch)), skip, None), cuts)
        return self._walk(iter(self.loader), cuts)

    def _walk(self, loaded: Iterator[Any], cuts: list[Shard]) -> Iterator[Batch]:
        done = 0
        for data in _closed_on_error(loaded):
            cut = cuts[done]
            done += 1
            yield Batch(to_device(data, self.world.device), cut.samples, cut.total, cut.last)

        # without workers, a DataLoader takes it for the end of all batches
        if done < len(cuts):
            raise RecipeError(
                f"A sample of batch {done} raised StopIteration in {type(self.source.dataset).__name__}.__getitem__, "
                f"which would end the epoch there and leave out the samples after it: raise another error, such as "
                f"ValueError, or return a sample."
            )

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

    def _lists(self, batches: Iterable[list[int]], cuts: list[Shard]) -> Iterator[list[int]]:
        for batch in batches:
            for cut in shard_batch(0, len(batch), self.world, self.micro_batches):
                cuts.append(cut)
                yield batch[cut.start : cut.stop]


def _tell(epoch: int, *things: Any) -> None:
    """Tell the epoch to whatever shuffles by it, as Hugging Face's streams and torch's distributed samplers do."""
    for thing in things:
        if callable(set_epoch := getattr(thing, "set_epoch", None)):
            set_epoch(epoch)


def _drawn(sampler: Iterable[Any], seed: int) -> list[Any]:
    """What a user's sampler draws: the same on all ranks, from whichever generator it draws."""
    with preserved():
        seed_all(seed)
        return list(sampler)


class StreamBatches:
    """Batches of a stream: each rank reads all of it and keeps its share; streams may be uneven without a hang."""

    def __init__(self, source: Stream, batch_size: int, world: World, micro_batches: int = 1) -> None:
        self.source, self.world, self.micro_batches = source, world, micro_batches
        self.batch_size = source.batch_size or batch_size
        size = None if source.ready else self.batch_size
        self.drawn = IndexListSampler()
        keys: dict[str, Any] = {} if source.sampler is None else {"sampler": self.drawn}
        if source.drop_last and size is not None:
            keys["drop_last"] = True
        self.loader = _loader(source.dataset, source.options, batch_size=size, **keys)
        self.leave: Callable[[], bool] = lambda: False
        """asked before each batch: whether this rank wants to leave the epoch, which all of them then do together"""

    @property
    def steps(self) -> int | None:
        return self.source.steps(self.batch_size)

    def epoch(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        _tell(epoch, self.source.dataset, self.source.sampler)
        if self.source.sampler is not None:
            self.drawn.lists = _drawn(self.source.sampler, epoch_seed(seed, epoch))
        stream = self._agreed(iter(self.loader))
        for _ in islice(stream, skip):  # read now, so that the random numbers stand where they stood
            pass
        return self._walk(stream)

    def _walk(self, stream: Iterator[Any]) -> Iterator[Batch]:
        for data in stream:
            n = batch_length(data)
            for cut in shard_batch(0, n, self.world, self.micro_batches):
                whole = cut.stop - cut.start == n
                part = data if whole else cut_batch(data, cut.start, cut.stop)
                yield Batch(to_device(part, self.world.device), cut.samples, cut.total, cut.last)

    def _agreed(self, loaded: Iterator[Any]) -> Iterator[Any]:
        """The stream's batches, up to the shortest rank's end: no rank waits for one that has no more."""
        for data in _closed_on_error(loaded):
            if not self.world.is_ddp:
                yield data
                continue
            here = torch.tensor(0.0 if self.leave() else 1.0, device=self.world.device)
            if self.world.sum(here) < self.world.world_size:
                return
            yield data
        if self.world.is_ddp:
            self.world.sum(torch.zeros((), device=self.world.device))


def _closed_on_error(loaded: Iterator[Any]) -> Iterator[Any]:
    """The batches of a DataLoader; its processes end where it fails, though the error shown still holds it."""
    try:
        yield from loaded
    except Exception:
        if shut_down := getattr(loaded, "_shutdown_workers", None):
            shut_down()
        raise


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
