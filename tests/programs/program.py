"""What a program of these tests is: a session as its author would write it, and the same as a plain PyTorch loop."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from harness.plain import SEED, quiet
from torch import Tensor, nn

from quik_nb import QuikSession
from quik_nb.training.rng import epoch_seed, seed_all

SAMPLES, EPOCHS, BATCH = 45, 2, 16
"""The last batch of 13 samples has unequal parts, for two ranks and for two micro-batches."""

Columns = dict[str, list[float]]
"""The history by the names of its columns."""

WAYS: dict[str, dict[str, Any]] = {
    "one rank": {},
    "two ranks": {"processes": 2},
    "accumulate": {"accumulate": 2},
}
"""Settings under which a program has the same losses."""


@dataclass(frozen=True)
class Program:
    """One program, twice."""

    session: Callable[..., QuikSession]
    """makes the session with these settings"""
    by_hand: Callable[[], Columns]
    """the plain loop"""
    ways: tuple[str, ...] = tuple(WAYS)
    """those in which the losses are equal; random numbers of a forward are other ones on each rank and part"""
    told: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """by way, the words of the warnings"""
    refused: Mapping[str, str] = field(default_factory=dict)
    """by way, the words of an error"""
    script: bool = True
    """whether `as_code()` can say all of it"""
    loop: Callable[[Any], None] | None = None
    """its own loop, for `traverse`"""

    slow: bool = False
    """whether CI alone runs it"""
    dtype: torch.dtype = torch.float32
    """torch's default, which the author sets in the first cell"""

    def train(self, way: str) -> QuikSession:
        """Train as the author does."""
        session = self.session(**WAYS[way])
        if self.loop is None:
            session.train()
        else:
            session.traverse(self.loop)
        return session


def session_of(model: nn.Module, **settings: Any) -> QuikSession:
    """A session with a model, as all programs begin."""
    return quiet(**{"epochs": EPOCHS, "batch_size": BATCH, "lr": 0.05, **settings}).add_model(model)


def made(make: Callable[[], Any]) -> Any:
    """A model in float64 with always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return make().double()


def drawn(seed: int, *shape: int) -> Tensor:
    """Always the same normal numbers."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def epochs(samples: int = SAMPLES, batch: int = BATCH, count: int = EPOCHS) -> Iterator[list[Tensor]]:
    """For each epoch the rows of its batches, with random numbers seeded as the session promises."""
    for epoch in range(count):
        seed = epoch_seed(SEED, epoch)
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
        seed_all(seed)
        yield list(order.split(batch))


class Means:
    """Means by column over the epoch under way, and of the epochs before."""

    def __init__(self) -> None:
        self.columns: Columns = {}
        self._sums: dict[str, list[float]] = {}

    def add(self, count: float, **values: Any) -> None:
        """Count means over so many samples, words or pixels."""
        for name, value in values.items():
            total, counted = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = [total + float(torch.as_tensor(value).detach()) * count, counted + count]

    def end_epoch(self) -> None:
        """Make a row of what was counted."""
        for name, (total, counted) in self._sums.items():
            self.columns.setdefault(name, []).append(total / counted)
        self._sums.clear()


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Three lines of every loop."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
