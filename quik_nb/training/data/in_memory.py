"""Samples in memory: gathered in large pieces and cut into batches by slices, never fetched one by one."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from quik_nb.recipe.samples import Tensors
from quik_nb.training.data.batch import Batch, Shard, shard_batch
from quik_nb.training.rng import epoch_seed
from quik_nb.training.world import World

CHUNK_BYTES = 64 * 2**20
"""Shuffled rows are gathered in chunks of at most this size, so that memory is bounded and a batch is just a slice."""

DEVICE_SHARE = 0.4
"""Data stays on a GPU if it takes at most this part of the memory that is free there."""


class TensorBatches:
    """Batches of tensors in memory: one permutation an epoch, rows gathered in chunks, a batch is a slice."""

    def __init__(self, source: Tensors, batch_size: int, world: World, shuffle: bool, micro_batches: int = 1) -> None:
        self.source, self.world, self.shuffle = resident(source, world.device), world, shuffle
        n = len(source)
        self.cuts = [shard_batch(a, min(a + batch_size, n), world, micro_batches) for a in range(0, n, batch_size)]
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
            columns = [torch.split(self._gather(t, order, cuts), sizes) for t in self.source.tensors]
            for cut, values in zip(cuts, zip(*columns, strict=True), strict=True):
                data = values if self.source.names is None else self.source.pack(values)
                yield Batch(data, cut.samples, cut.total, cut.last)

    def _order(self, seed: int, epoch: int) -> Tensor | None:
        """(samples,) positions in the order of this epoch; None for rows as they lie."""
        rows = self.source.rows
        if not self.shuffle:
            return rows
        order = torch.randperm(len(self.source), generator=torch.Generator().manual_seed(epoch_seed(seed, epoch)))
        order = order.to(self.source.tensors[0].device)
        return order if rows is None else rows[order]

    def _gather(self, tensor: Tensor, order: Tensor | None, cuts: Sequence[Shard]) -> Tensor:
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


class EvalBatches:
    """This rank's rows of a split in order, for a pass without training: rows that lie together, cut into batches."""

    def __init__(self, source: Tensors, batch_size: int, world: World) -> None:
        self.source, self.world = resident(source, world.device), world
        self.batch_size = batch_size
        self.start, self.stop = world.shard_bounds(len(source))

    @property
    def steps(self) -> int:
        return -(-(self.stop - self.start) // self.batch_size)

    def epoch(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        at = self.start
        while at < self.stop:
            count = min(self.batch_size, self.stop - at)
            values = [self._rows(tensor, at, count) for tensor in self.source.tensors]
            yield Batch(self.source.pack(values), count, count)
            at += count

    def _rows(self, tensor: Tensor, at: int, count: int) -> Tensor:
        rows = self.source.rows
        taken = tensor[at : at + count] if rows is None else tensor.index_select(0, rows[at : at + count])
        return taken.to(self.world.device, non_blocking=True)


def resident(source: Tensors, device: torch.device) -> Tensors:
    """The split on the device where it fits, without the rows of other splits; else as it is."""
    here = [t.device == device for t in source.tensors]
    if all(here) and (source.rows is None or source.rows.device == device):
        return source
    if device.type == "cuda" and len(source) * source.row_bytes > torch.cuda.mem_get_info(device)[0] * DEVICE_SHARE:
        return source

    def moved(tensor: Tensor) -> Tensor:
        rows: Any = source.rows
        return (tensor if rows is None else tensor.index_select(0, rows.to(tensor.device))).to(device)

    return replace(source, tensors=tuple(map(moved, source.tensors)), rows=None)
