"""How far a training has come: all that it takes to go on from there, as plain values and tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import nn

from quik_nb.events import Row
from quik_nb.training import rng
from quik_nb.training.pytree import to_cpu_copy


class OptimizerProgress(NamedTuple):
    """What one optimizer and its schedule go on from."""

    state: dict[str, Any] | None = None
    """of the optimizer: rates and moments; None where they start anew"""
    scheduler: dict[str, Any] | None = None
    """state of the scheduler; None where there is none, or it starts again"""
    schedule_end: int = 0
    """the epoch at which the schedule ends; 0 for one that starts again"""
    schedule_start: tuple[int, int] = (0, 0)
    """epoch and step at which it began"""
    last_lr: float | None = None
    """the learning rate of the latest step"""
    parameters: list[tuple[str, tuple[int, ...]]] | None = None
    """names and shapes of the parameters that the moments belong to"""
    steps: int = 0
    """made since the schedule began"""

    def without_schedule(self) -> "OptimizerProgress":
        """The same, with a schedule that starts again from the next step on."""
        return self._replace(scheduler=None, schedule_end=0)

    def without_moments(self) -> "OptimizerProgress":
        """The same without the optimizer's moments, and so without the schedule that changes its rates."""
        return self.without_schedule()._replace(state=None)


@dataclass(frozen=True)
class Progress:
    """How far a training has come, and all state that is not weights: what the next call of train() goes on from."""

    epoch: int = 0
    """whole epochs done"""
    step: int = 0
    """optimizer steps done in the epoch after those"""
    best: float = float("inf")
    """lowest score of an epoch so far"""
    best_for_patience: float = float("inf")
    """the latest score that was better by enough, from which early stopping counts"""
    loss_sum: float = 0.0
    """of the samples trained in the unfinished epoch"""
    loss_count: float = 0.0
    """what that is divided by: samples, or what the criterion counts instead"""
    norm_sum: float = 0.0
    """of the gradients' norms in it"""
    norm_count: int = 0
    """how many those are"""
    skipped: int = 0
    """steps in it that were left out, as a gradient overflowed"""
    seconds: float = 0.0
    """spent in the unfinished epoch"""
    optimizers: Mapping[str, OptimizerProgress] = field(default_factory=dict)
    """by the optimizer's name"""
    registered: Mapping[str, Any] = field(default_factory=dict)
    """states of what a loop of the user's own registered, by name"""
    scaler: dict[str, Any] | None = None
    average: dict[str, Any] | None = None
    """averaged weights, the trained ones behind them, and the number of steps they average"""
    unsaved_buffers: dict[str, Any] | None = None
    """the non-persistent buffers of the model by name, which no state dict has"""
    epochs_without_improvement: int = 0
    """epochs since that one, for early stopping"""
    rng_states: list[rng.State] | None = None
    """generator states of all ranks, within an epoch only; each epoch starts from a seed of its own"""

    def without_schedule(self) -> "Progress":
        """The same, with schedules that start again from the next step on."""
        return replace(self, optimizers={name: each.without_schedule() for name, each in self.optimizers.items()})

    def without_best(self) -> "Progress":
        """The same, with a best loss and a patience that start again."""
        return replace(self, best=math.inf, best_for_patience=math.inf, epochs_without_improvement=0)

    def at_epoch(self) -> "Progress":
        """The same without what was done of the unfinished epoch."""
        counted = ("step", "loss_sum", "loss_count", "norm_sum", "norm_count", "skipped", "seconds", "rng_states")
        return replace(self, **{name: getattr(Progress, name) for name in counted})

    def copy(self) -> "Progress":
        """The same on the CPU, which later training does not change."""
        return Progress(**{name: to_cpu_copy(getattr(self, name)) for name in Progress.__dataclass_fields__})


def unsaved_buffers(model: nn.Module) -> dict[str, Any]:
    """The non-persistent buffers of a model by name.

    >>> import torch
    >>> model = nn.Module()
    >>> model.register_buffer("seen", torch.zeros(1), persistent=False)
    >>> list(unsaved_buffers(model))
    ['seen']
    """
    saved = set(model.state_dict())
    return {name: buffer for name, buffer in model.named_buffers() if name not in saved}


class Snapshot(NamedTuple):
    """The state of a training after the last row that was shown."""

    weights: dict[str, Any]
    progress: Progress
    row: Row | None = None
    """that last row, which a worker that was killed may have kept and not have told of; None before the first"""

    def load_into(self, model: nn.Module) -> None:
        """Put the weights into a model, and the buffers that no state dict has."""
        model.load_state_dict(self.weights)
        buffers = self.progress.unsaved_buffers or {}
        for name, buffer in model.named_buffers():
            if name in buffers and buffers[name].shape == buffer.shape:
                buffer.copy_(buffers[name])

    def copy(self) -> "Snapshot":
        """The same on the CPU, which later training does not change."""
        return Snapshot(to_cpu_copy(self.weights), self.progress.copy(), self.row)
