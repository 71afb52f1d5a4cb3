"""Map-style datasets: the global order is dealt out by index to a `DataLoader` on each rank.

Covered: samplers, batch samplers and collate functions of the user's own, loading workers. What is not here: datasets
that are read in order (`streams.py`), tensors in memory (`in_memory.py`).
"""

import ctypes
import signal
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from quik_nb.errors import RecipeError
from quik_nb.recipe.samples import Samples
from quik_nb.training.data.batch import Batch, Shard, shard_batch, shard_batches, to_device
from quik_nb.training.data.set_epoch import following, set_epoch, shared_number, show_own_dataset
from quik_nb.training.rng import epoch_seed, preserved, seed_all
from quik_nb.training.world import World

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when its parent dies."""

UNEQUAL = ("stack expects each tensor to be equal size", "should be of equal size", "not resizable")
"""What torch says where samples of one batch differ in shape."""


class IndexListSampler:
    """A sampler that hands out what an epoch asks the dataset for; it lives as long as the loader's workers."""

    def __init__(self) -> None:
        self.lists: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        yield from self.lists


class SampleBatches:
    """Batches of a map-style dataset.

    Args:
        source: the dataset, and the order and sizes of batches where a loader came with it.
        batch_size: samples of a step where it did not.
        world: this rank among the others.
        shuffle: whether each epoch has an order of its own, where the source does not say.
        micro_batches: into which a step of `batch_size` is cut; or batches of the source's own loader that join.
    """

    def __init__(self, source: Samples, batch_size: int, world: World, shuffle: bool, micro_batches: int = 1) -> None:
        self.source = source
        self.batch_size = source.batch_size or batch_size
        self.world = world
        self.shuffle = shuffle if source.shuffle is None else source.shuffle
        self.micro_batches = micro_batches
        self.steps = source.steps(batch_size, micro_batches, world.world_size)
        self._dealt = IndexListSampler()
        self._epoch = shared_number(0)
        self._loader = make_loader(source.dataset, source.options, self._epoch, batch_sampler=self._dealt)

    def epoch(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        set_epoch(epoch, self.source.dataset, self.source.sampler, self.source.batch_sampler)
        self._epoch.fill_(epoch)
        # filled as the loader draws index lists, in the order in which its batches come
        cuts: list[tuple[Shard, list[Any]]] = []
        steps = islice(self._steps(epoch_seed(seed, epoch)), skip, None)
        self._dealt.lists = self._lists(steps, cuts)
        return self._walk(iter(self._loader), cuts)

    def _walk(self, loaded: Iterator[Any], cuts: list[tuple[Shard, list[Any]]]) -> Iterator[Batch]:
        done = 0
        for data in with_advice(loaded):
            cut, numbers = cuts[done]
            done += 1
            part = partial(self._collated, numbers)
            yield Batch(to_device(data, self.world.device), cut.samples, cut.total, cut.last, part)

        # without workers, a DataLoader takes it for the end of all batches
        if done < len(cuts):
            raise RecipeError(
                f"A sample of batch {done} raised StopIteration in {type(self.source.dataset).__name__}.__getitem__, "
                f"which would end the epoch there and leave out the samples after it: raise another error, such as "
                f"ValueError, or return a sample."
            )

    def _steps(self, seed: int) -> Iterator[list[list[Any]]]:
        """The steps of an epoch, each a list of batches of sample numbers; equal on all ranks."""
        batches = (batch for batch in self._batches(seed) if len(batch))
        joined = self.micro_batches if self.source.joins else 1
        while step := list(islice(batches, joined)):
            yield step

    def _batches(self, seed: int) -> Iterator[list[Any]]:
        source = self.source
        if source.batch_sampler is not None:
            yield from drawn(source.batch_sampler, seed)
            return
        if source.sampler is not None:
            order = torch.tensor(drawn(source.sampler, seed), dtype=torch.int64)
        elif self.shuffle:
            order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
        else:
            order = torch.arange(len(source))
        for batch in torch.split(order, self.batch_size):
            if len(batch) == self.batch_size or not source.drop_last:
                yield batch.tolist()

    def _lists(self, steps: Iterable[list[list[Any]]], cuts: list[tuple[Shard, list[Any]]]) -> Iterator[list[Any]]:
        for step in steps:
            samples = list(chain.from_iterable(step))
            for cut in self._shards(step):
                cuts.append((cut, samples[cut.start : cut.stop]))
                yield samples[cut.start : cut.stop]

    def _collated(self, numbers: list[Any], start: int, stop: int) -> Any:
        """A batch of some of these samples, which are read again."""
        samples = [self._loader.dataset[number] for number in numbers[start:stop]]
        return to_device(self._loader.collate_fn(samples), self.world.device)

    def _shards(self, step: list[list[Any]]) -> list[Shard]:
        if self.source.joins:
            return shard_batches([len(batch) for batch in step], self.world)
        return shard_batch(0, len(step[0]), self.world, self.micro_batches)


def drawn(sampler: Iterable[Any], seed: int) -> list[Any]:
    """What a user's sampler draws: the same on all ranks, from whichever generator it draws."""
    with preserved():
        seed_all(seed)
        return list(sampler)


def with_advice(loaded: Iterator[Any]) -> Iterator[Any]:
    """What a loader gives; an error within it says what to use instead, where torch's own words do not.

    The loader's processes end then, though the error that is shown still holds it.
    """
    try:
        yield from loaded
    except Exception as error:
        if advice := collate_advice(str(error)):
            error.add_note(f"quik_nb: {advice}")
        if shut_down := getattr(loaded, "_shutdown_workers", None):
            shut_down()
        raise


def collate_advice(words: str) -> str:
    """What to do about an error in making a batch of samples; empty where it is another one.

    Args:
        words: of the error.
    """
    if any(phrase in words for phrase in UNEQUAL):
        return (
            "the samples of one batch differ in length or shape, and cannot be stacked: pad them to one shape in a "
            "function of their list, add_data(train=DataLoader(dataset, batch_size=..., collate_fn=pad)), such as "
            "torch.nn.utils.rnn.pad_sequence or a collator of transformers."
        )
    if "batch must contain tensors" in words:
        return (
            "torch does not know how to make a batch of such samples: have the dataset give tensors, numbers or "
            "dicts of them, or pass add_data(train=DataLoader(dataset, batch_size=..., collate_fn=...)) with a "
            "function that makes a batch of a list of them."
        )
    return ""


def make_loader(dataset: Any, options: Any, epoch: Tensor, **how: Any) -> DataLoader[Any]:
    """A loader whose workers end with their rank, and follow the epoch.

    Args:
        dataset: of the user's.
        options: keywords that came with it.
        epoch: () int64 in shared memory, for workers that live for several epochs.
        how: keywords of ours, which win.
    """
    keywords = {**options, **how}
    if keywords.get("num_workers"):
        keywords["worker_init_fn"] = partial(begin_worker, keywords.get("worker_init_fn"))
    if keywords.get("persistent_workers"):
        dataset = following(dataset, epoch)
    return DataLoader(dataset, **keywords)


def begin_worker(user: Any, worker: int) -> None:
    """The first thing that a loading worker does.

    Jupyter's interrupt reaches the whole process group; the training ends loading workers itself. One whose rank was
    killed would look for it every five seconds only, so on Linux the kernel is asked to tell it.

    Args:
        user: the `worker_init_fn` of the user's own, or None.
        worker: its number.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    show_own_dataset()
    if user is not None:
        user(worker)
