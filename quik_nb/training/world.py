"""Who am I among the ranks: joining and summing.

A `World` of one rank does no communication at all, so the loop has no branch for it.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This process among the ranks of a training."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009  immutable

    @property
    def is_logger(self) -> bool:
        """Whether this rank draws and writes: rank 0."""
        return self.rank == 0

    @property
    def is_ddp(self) -> bool:
        """Whether there are other ranks."""
        return self.world_size > 1

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in place (all ranks participate)."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """One value from each rank, in the order of ranks, on all of them (all ranks participate)."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def missing(self, point: str, seconds: float) -> list[int]:
        """The ranks that do not come to a point within some seconds; no collective, so that none is waited for longer.

        Args:
            point: its name, of which each is come to once.
            seconds: to wait for the others.
        """
        if self.world_size == 1:
            return []
        store = dist.distributed_c10d._get_default_store()
        keys = [f"quik_nb/{point}/{rank}" for rank in range(self.world_size)]
        store.set(keys[self.rank], "here")
        try:
            store.wait(keys, timedelta(seconds=seconds))
        except RuntimeError:  # the time is over
            return [rank for rank, key in enumerate(keys) if not store.check([key])]
        return []

    def shard_bounds(self, samples: int) -> tuple[int, int]:
        """The half-open range of a batch's samples that this rank takes; the first ranks take one more.

        >>> [World(rank, 3).shard_bounds(8) for rank in range(3)]
        [(0, 3), (3, 6), (6, 8)]
        """
        size, extra = divmod(samples, self.world_size)
        start = self.rank * size + min(self.rank, extra)
        return start, start + size + (self.rank < extra)


def exact(device: torch.device) -> torch.dtype:
    """The dtype of long sums on this device: float64, which Apple's GPUs lack."""
    return torch.float32 if device.type == "mps" else torch.float64


def join(rank: int, world_size: int, device: str, backend: str, rendezvous_file: Path, timeout: float) -> World:
    """Join the process group of this machine's ranks by a file (all ranks participate).

    Args:
        rank: this process, from 0.
        world_size: number of ranks.
        device: a torch device of this rank.
        backend: "gloo" or "nccl".
        rendezvous_file: where the ranks meet, in a folder that only the user can read; no port is opened for it.
        timeout: seconds after which waiting for another rank is an error.
    """
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group(
            backend,
            init_method=rendezvous_file.as_uri(),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
    return World(rank, world_size, torch.device(device))
