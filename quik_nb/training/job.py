"""`Job`, which describes one training on all ranks; `fit`, its default loop; `Checkpoint`, which receives its state."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from quik_nb.events import Annotation
from quik_nb.recipe.recipe import Recipe
from quik_nb.training.progress import Progress, Snapshot


def fit(loop: Any) -> None:
    """The loop of `session.train()`, called on every rank with a `quik_nb.Loop`."""
    __tracebackhide__ = True
    for _ in loop.iter_epochs():
        for batch in loop.batches("train"):
            loop.train_step(batch)
        loop.end_epoch()


@dataclass(frozen=True)
class Job:
    """What to train: picklable, and the same on all ranks."""

    recipe: Recipe
    epochs: int
    """the epoch to stop before"""
    where: str
    """the device or processes it runs on, and the reason for this choice, as text"""
    progress: Progress = field(default_factory=Progress)
    loop: Callable[[Any], Any] = fit
    """called with a `Loop` on each rank"""

    @property
    def has_own_loop(self) -> bool:
        """Whether the loop is a custom one, passed to `traverse()`."""
        return self.loop is not fit

    @property
    def model(self) -> nn.Module:
        """The model of the recipe."""
        assert self.recipe.model is not None  # `validate.check` rejects a recipe without one
        return self.recipe.model


class Checkpoint(Protocol):
    """Receives the state of rank 0."""

    def begin(self, snapshot: Snapshot) -> None:
        """Called once, before the first step."""

    def __call__(self, snapshot: Snapshot, annotations: list[Annotation]) -> None:
        """Called with the state of a row, before its event is sent.

        Args:
            snapshot: shares its tensors with the training, so copy what is needed after this call.
            annotations: those since the last row.
        """
