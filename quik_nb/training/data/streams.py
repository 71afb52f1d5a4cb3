"""Datasets that are read in order: streams of samples, and batches that come ready.

| what is read                                | how ranks share it                                                  |
|---------------------------------------------|---------------------------------------------------------------------|
| a stream of samples                         | each reads all of it, and collates its share of each batch          |
| one that yields each rank's own share       | each collates all that it reads, a rank's part of a batch at a time |
| ready batches (`batch_size=None`)           | each reads all of them, and keeps whole ones                        |
| ready batches that are each rank's own      | each keeps all that it reads                                        |

Whether a stream yields a rank's own share is seen by the first batches, which differ then, unless it was said. Ranks
agree on each step, so that uneven streams end without a hang: one that has no more computes with weight zero.
"""

import zlib
from collections.abc import Callable, Iterator
from itertools import chain, islice, repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from quik_nb.errors import RecipeError
from quik_nb.events import Tell
from quik_nb.recipe.samples import Stream
from quik_nb.training.data.batch import Batch, batch_length, shard_batch, to_device
from quik_nb.training.data.loaders import IndexListSampler, drawn, make_loader, with_advice
from quik_nb.training.data.set_epoch import set_epoch, shared_number
from quik_nb.training.pytree import tree_leaves
from quik_nb.training.rng import epoch_seed
from quik_nb.training.world import World

UNKNOWN = -1
"""Stands in shared memory while it is not known whether a stream yields each rank's own share; then 0 or 1."""

DEEPEST = 4
"""Objects within objects that are looked into to see whether two samples are the same."""


class Part(NamedTuple):
    """A micro-batch of this rank, not yet on its device."""

    data: Any
    samples: int
    """0 for a placeholder"""


class Uncollated(NamedTuple):
    """Samples of which it is not known yet which of them are for this rank."""

    samples: list[Any]


class CollateShare:
    """A collate function that makes batches of this rank's share of the samples; it works in loading workers, too.

    Args:
        collate: of the user's own, or torch's.
        world: this rank among the others.
        micro_batches: into which a step is cut.
        batch_size: samples of a step, over all ranks.
        sharded: () int64 in shared memory: `UNKNOWN`, or whether the samples are this rank's own.
    """

    def __init__(
        self,
        collate: Callable[[list[Any]], Any],
        world: World,
        micro_batches: int,
        batch_size: int,
        sharded: Tensor,
    ) -> None:
        self.collate = collate
        self.world = world
        self.micro_batches = micro_batches
        self.batch_size = batch_size
        self.sharded = sharded

    def __call__(self, samples: list[Any]) -> Uncollated | list[list[Part]]:
        return Uncollated(samples) if int(self.sharded) == UNKNOWN else self.pieces(samples)

    def pieces(self, samples: list[Any]) -> list[list[Part]]:
        """Micro-batches of this rank: of one batch of all ranks, or of several where the samples are its own."""
        n = len(samples)
        if self.sharded:
            cuts = [shard_batch(a, b, World(), self.micro_batches) for a, b in self._own_bounds(n)]
        else:
            cuts = [shard_batch(0, n, self.world, self.micro_batches)]
        return [[Part(self.collate(samples[c.start : c.stop]), c.samples) for c in piece] for piece in cuts]

    def _own_bounds(self, samples: int) -> Iterator[tuple[int, int]]:
        """A rank's own samples, as many at a time as its share of a batch: the others have the other shares then."""
        size, start, turn = self.world.world_size, 0, 0
        while start < samples:
            # by the size of a whole batch: the last one of an epoch is short, and one step all the same
            low, high = World((self.world.rank + turn) % size, size).shard_bounds(self.batch_size)
            stop = min(start + high - low, samples)
            if start < stop:
                yield start, stop
            start, turn = stop, turn + 1


class StreamBatches:
    """Batches of a stream.

    Args:
        source: the stream, and the sizes of batches where a loader came with it.
        batch_size: samples of a step where it did not.
        world: this rank among the others.
        micro_batches: into which a step of `batch_size` is cut; or batches of the source's own loader that join.
        tell: is told what a user should know of how this stream is read; None where nobody is to be told.
    """

    def __init__(
        self, source: Stream, batch_size: int, world: World, micro_batches: int = 1, tell: Tell | None = None
    ) -> None:
        self.source = source
        self.world = world
        self.steps = source.steps(batch_size, micro_batches, world.world_size)
        self.leave: Callable[[], bool] = lambda: False
        """asked before each step: whether this rank wants to leave the epoch, which all of them then do together"""

        self._joined = micro_batches if source.joins else 1
        self._tell = tell
        self._sharded = shared_number(self._known())
        self._collate = CollateShare(
            source.options.get("collate_fn") or default_collate,
            world,
            1 if source.joins else micro_batches,
            source.batch_size or batch_size,
            self._sharded,
        )
        self._drawn = IndexListSampler()
        self._epoch = shared_number(0)
        self._loader = make_loader(source.dataset, source.options, self._epoch, **self._how(batch_size))

        if source.ready and tell is not None and world.world_size > self._joined:
            tell("ready batches", ready_notice(world.world_size, self._joined))

    def _known(self) -> int:
        """Whether the stream yields a rank's own share, where that is known from the start."""
        if not self.world.is_ddp or self.source.sampler is not None:
            return False
        return UNKNOWN if self.source.sharded is None else self.source.sharded

    def _how(self, batch_size: int) -> dict[str, Any]:
        """Keywords of the loader."""
        source = self.source
        if source.ready:
            return {"batch_size": None, **({} if source.sampler is None else {"sampler": self._drawn})}
        last = {"drop_last": True} if source.drop_last else {}
        return {"batch_size": source.batch_size or batch_size, "collate_fn": self._collate, **last}

    def epoch(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        set_epoch(epoch, self.source.dataset, self.source.sampler)
        self._epoch.fill_(epoch)
        if self.source.sampler is not None:
            self._drawn.lists = drawn(self.source.sampler, epoch_seed(seed, epoch))

        steps = self._agreed(with_advice(iter(self._loader)))
        done = sum(1 for _ in islice(steps, skip))  # read now, so that the random numbers stand where they stood
        return self._walk(steps, done)

    def _walk(self, steps: Iterator[tuple[list[Part], int]], done: int) -> Iterator[Batch]:
        for parts, total in steps:
            done += 1
            if done == (self.steps or 0) + 1:
                self._tell_length("more")
            for i, part in enumerate(parts, start=1):
                yield Batch(to_device(part.data, self.world.device), part.samples, total, i == len(parts))
        if self.steps is not None and done < self.steps and not self.leave():
            self._tell_length("less")

    def _tell_length(self, more: str) -> None:
        """Say that a stream does not keep to the length that it gave, by which schedules are planned."""
        if self._tell is None or self.steps is None:
            return
        unit = "batches" if self.source.ready else "samples"
        self._tell(
            "length of the stream",
            f"The stream gives {more} than the {len(self.source):,} {unit} that its __len__ says, by which the bar and "
            f"schedules count: correct __len__ (of all ranks and loading workers together), or leave it out.",
        )

    def _agreed(self, loaded: Iterator[Any]) -> Iterator[tuple[list[Part], int]]:
        """This rank's parts of each step and the samples of all ranks in it, until the last rank's end."""
        world, spare = self.world, None
        for parts in chain(self._own(loaded), repeat(None)):
            samples = sum(part.samples for part in parts or ())
            if parts:
                spare = [parts[-1]._replace(samples=0)]

            if world.is_ddp:
                told = [self.leave(), parts is None, parts is None and spare is None, samples]
                words = world.sum(torch.tensor(told, dtype=torch.float64, device=world.device))
                leaving, ended, empty, samples = (int(word) for word in words.tolist())
                if leaving or ended == world.world_size:
                    return
                if empty:
                    raise RecipeError(no_share(empty, world.world_size))
            elif parts is None:
                return

            mine = parts or spare
            assert mine is not None  # else this rank has told that it is empty
            yield mine, samples

    def _own(self, loaded: Iterator[Any]) -> Iterator[list[Part]]:
        """This rank's parts of each step."""
        pieces = self._pieces(loaded)
        first = next(pieces, None)  # by then it is known whether they are this rank's own
        pieces = chain(() if first is None else (first,), pieces)

        if not self.source.ready:
            while step := list(islice(pieces, self._joined)):
                yield list(chain.from_iterable(step))
            return

        size = max(self._joined, self.world.world_size)
        low, high = self.world.shard_bounds(size)
        while step := list(islice(pieces, high - low if self._sharded else size)):
            batches = list(chain.from_iterable(step))
            if not self._sharded:
                low, high = self.world.shard_bounds(len(batches))
                batches = batches[low:high] or [batches[0]._replace(samples=0)]
            yield batches

    def _pieces(self, loaded: Iterator[Any]) -> Iterator[list[Part]]:
        """What the loader gives, as lists of parts; before the first of them the ranks find out whose they are."""
        first = next(loaded, None)
        if int(self._sharded) == UNKNOWN:
            self._look(first)
        for data in chain(() if first is None else (first,), loaded):
            if self.source.ready:
                yield [Part(data, batch_length(data))]
            else:
                yield from self._collate.pieces(data.samples) if isinstance(data, Uncollated) else data

    def _look(self, first: Any) -> None:
        """See by the first batches of the ranks whether each reads its own (all ranks participate)."""
        marks = torch.zeros(self.world.world_size, dtype=torch.float64, device=self.world.device)
        marks[self.world.rank] = -1 if first is None else fingerprint(first)
        differ = len(set(self.world.sum(marks).tolist())) > 1
        self._sharded.fill_(differ)
        if differ and self._tell is not None:
            self._tell("stream is sharded", SHARDED)


SHARDED = (
    "The first batches of the stream differ between the ranks, so it is taken to yield each rank's own share, and all "
    "of them are used. If it yields all samples to each rank, in another order or changed at random, pass "
    "add_data(..., sharded=False): each sample would count once on each rank. sharded=True says that this is right."
)
"""What is told of a stream that was found to split itself."""


def ready_notice(ranks: int, accumulate: int) -> str:
    """What is told of batches that come ready where there are more ranks than batches of a step."""
    return (
        f"The batches of train come ready (batch_size=None), so they are never cut: a step has {ranks} of them, one "
        f"for each rank, where one process takes {accumulate}. These are the numbers of accumulate={ranks} in one "
        f"process; for those of smaller steps pass samples, which are dealt out to the ranks."
    )


def no_share(empty: int, ranks: int) -> str:
    """What is said where a stream has nothing at all for some ranks."""
    return (
        f"The stream gave {empty} of {ranks} ranks no sample, so that they have nothing to compute with: use fewer "
        f"processes, or have it yield samples on each rank."
    )


def fingerprint(value: Any) -> int:
    """A number that differs, as good as surely, where the contents do: CRC32 of tensors, arrays, words and numbers.

    >>> fingerprint([torch.zeros(2), "a"]) == fingerprint([torch.zeros(2), "a"])
    True
    """
    mark = 0
    for piece in _bytes_in(value, DEEPEST):
        mark = zlib.crc32(piece, mark)
    return mark


def _bytes_in(value: Any, depth: int) -> Iterator[bytes]:
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            dense = leaf.detach().to_dense() if leaf.layout != torch.strided else leaf.detach()
            yield dense.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        elif isinstance(leaf, str | bytes | int | float | complex | None):
            yield repr(leaf).encode()
        elif hasattr(leaf, "__array_interface__"):  # arrays and pictures
            array = np.asarray(leaf)
            yield repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
        elif depth and hasattr(leaf, "__dict__"):  # graphs and other objects
            yield from _bytes_in(vars(leaf), depth - 1)
