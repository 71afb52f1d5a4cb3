"""`set_epoch`: the number of the epoch reaches whatever shuffles or changes by it, wherever it lies.

Hugging Face's streams, torch's distributed samplers and curricula of the user's own have such a method. They may lie
inside `Subset`, `ConcatDataset` or a wrapper that calls them `dataset`, and copies of them in loading workers that live
for several epochs. What is not here: what an epoch's order is (`loaders.py`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

INSIDE = ("dataset", "datasets", "sampler", "batch_sampler")
"""Attributes under which datasets and samplers hold others."""


def set_epoch(epoch: int, *things: Any) -> None:
    """Call `set_epoch` of all of these datasets and samplers that have it, and of those that lie inside them."""
    for thing in followers(*things):
        thing.set_epoch(epoch)


def followers(*things: Any) -> list[Any]:
    """What has a method `set_epoch`; what lies inside of one that has is its own affair."""
    found, seen, waiting = [], set(), list(things)
    while waiting:
        thing = waiting.pop()
        if thing is None or id(thing) in seen:
            continue
        seen.add(id(thing))
        if callable(getattr(thing, "set_epoch", None)):
            found.append(thing)
        else:
            waiting += [inner for name in INSIDE for inner in _several(getattr(thing, name, None))]
    return found


def _several(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


class _FollowsEpoch:
    """A dataset whose copies in loading workers follow an epoch that lies in shared memory.

    Args:
        dataset: of the user's.
        epoch: () int64, in shared memory.
    """

    def __init__(self, dataset: Any, epoch: Tensor) -> None:
        self.dataset = dataset
        self.epoch = epoch
        self._latest: int | None = None

    def follow(self) -> None:
        """Pass the epoch on if it has changed."""
        now = int(self.epoch)
        if now != self._latest:
            set_epoch(now, self.dataset)
            self._latest = now


class FollowingDataset(_FollowsEpoch):
    """For a map-style dataset: it looks before samples are fetched."""

    def __getitem__(self, index: Any) -> Any:
        self.follow()
        return self.dataset[index]

    def __getitems__(self, indices: list[Any]) -> Any:
        self.follow()
        at_once = getattr(self.dataset, "__getitems__", None)
        return at_once(indices) if callable(at_once) else [self.dataset[index] for index in indices]


class FollowingStream(_FollowsEpoch, IterableDataset[Any]):
    """For a stream: it looks when it is begun."""

    def __iter__(self) -> Iterator[Any]:
        self.follow()
        return iter(self.dataset)


def following(dataset: Any, epoch: Tensor) -> Any:
    """The dataset as one whose copies in workers follow an epoch in shared memory, where it or its parts need that."""
    if not followers(dataset):
        return dataset
    return (FollowingStream if isinstance(dataset, IterableDataset) else FollowingDataset)(dataset, epoch)


def show_own_dataset() -> None:
    """In a loading worker: code of the user's that asks for the worker's dataset gets their own."""
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, _FollowsEpoch):
        object.__setattr__(info, "dataset", info.dataset.dataset)  # which torch does not let one assign


def shared_number(value: int) -> Tensor:
    """() int64 in shared memory, so that loading workers see what it is set to."""
    number = torch.tensor(value, dtype=torch.int64)
    number.share_memory_()  # type: ignore[no-untyped-call]
    return number
