"""What one training needs wherever it runs, the loop that it runs by default, and where its state goes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from quik_nb.events import Annotation
from quik_nb.recipe.recipe import Recipe
from quik_nb.training.progress import Progress, Snapshot


def fit(loop: Any) -> None:
    """What `session.train()` runs on every rank, with a `quik_nb.Loop`."""
    __tracebackhide__ = True
    for _ in loop.iter_epochs():
        for batch in loop.batches("train"):
            loop.train_step(batch)
        loop.end_epoch()


@dataclass(frozen=True)
class Job:
    """All that one training needs, wherever it runs: picklable, the same on all ranks."""

    recipe: Recipe
    epochs: int
    """the epoch to stop before"""
    where: str
    """where it runs and why there, in words"""
    progress: Progress = field(default_factory=Progress)
    loop: Callable[[Any], Any] = fit
    """called with a `Loop` on each rank"""

    @property
    def has_own_loop(self) -> bool:
        """Whether the loop is of the user's own."""
        return self.loop is not fit

    @property
    def model(self) -> nn.Module:
        """The model of the recipe."""
        assert self.recipe.model is not None  # `validate.check` refuses a recipe without one
        return self.recipe.model


class Checkpoint(Protocol):
    """What rank 0 hands its state to."""

    def begin(self, snapshot: Snapshot) -> None:
        """Called once, before the first step."""

    def __call__(self, snapshot: Snapshot, annotations: list[Annotation]) -> None:
        """Called with the state of a row, before the event that tells of it.

        Args:
            snapshot: whose tensors are the training's own, so that what outlasts this call is a copy.
            annotations: since the last row.
        """
