"""Ranks as threads of this process: what several of them read and agree on, without starting workers."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any, TypeVar

from torch import Tensor

from quik_nb.training.world import World

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds after which a rank that waits for the others in vain is an error."""


@dataclass
class Table:
    """Where the ranks lay their numbers."""

    barrier: Barrier
    numbers: list[Tensor | None] = field(default_factory=list)
    values: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ThreadWorld(World):
    """A rank that is a thread."""

    table: Table | None = None

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks (all ranks participate)."""
        if self.table is None:
            return values
        self.table.numbers[self.rank] = values.clone()
        self.table.barrier.wait(PATIENCE)
        values.copy_(sum(number for number in self.table.numbers if number is not None))
        self.table.barrier.wait(PATIENCE)
        return values

    def gather(self, value: Any) -> list[Any]:
        """One value from each rank (all ranks participate)."""
        if self.table is None:
            return [value]
        self.table.values[self.rank] = value
        self.table.barrier.wait(PATIENCE)
        values = [self.table.values[rank] for rank in range(self.world_size)]
        self.table.barrier.wait(PATIENCE)
        return values


def on_ranks(world_size: int, function: Callable[[World], T]) -> list[T]:
    """What the function gives on each rank, in the order of ranks; an error of one is raised here."""
    table = Table(Barrier(world_size), [None] * world_size)
    worlds = [ThreadWorld(rank, world_size, table=table) for rank in range(world_size)]
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(function, worlds))
