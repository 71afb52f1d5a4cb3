"""`Progress`, the state that a training continues from, as plain values and tensors; `Snapshot` adds the weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import nn

from quik_nb.events import Row
from quik_nb.training import rng
from quik_nb.training.pytree import to_cpu_copy


class OptimizerProgress(NamedTuple):
    """The state that one optimizer and its schedule continue from."""

    state: dict[str, Any] | None = None
    """state_dict of the optimizer; None to start from scratch"""
    scheduler: dict[str, Any] | None = None
    """state_dict of the scheduler; None if there is none, or to start from scratch"""
    schedule_end: int = 0
    """the epoch at which the schedule ends; 0 if it starts from scratch"""
    schedule_start: tuple[int, int] = (0, 0)
    """epoch and step at which the schedule began"""
    last_lr: float | None = None
    """learning rate of the latest step"""
    parameters: list[tuple[str, tuple[int, ...]]] | None = None
    """names and shapes of the parameters that the moments belong to"""
    steps: int = 0
    """optimizer steps since the schedule began"""

    def without_schedule(self) -> "OptimizerProgress":
        """A copy whose schedule starts again with the next step."""
        return self._replace(scheduler=None, schedule_end=0)

    def without_moments(self) -> "OptimizerProgress":
        """A copy without the optimizer's moments, and so without its schedule."""
        return self.without_schedule()._replace(state=None)


@dataclass(frozen=True)
class Progress:
    """The state of a training without its weights: what the next call of train() continues from."""

    epoch: int = 0
    """whole epochs done"""
    step: int = 0
    """optimizer steps done in the unfinished epoch after those"""
    best: float = float("inf")
    """lowest score of an epoch so far, by what is monitored"""
    best_epoch: int | None = None
    """the epoch with that score; None before the first"""
    best_for_patience: float = float("inf")
    """the latest score that improved by at least `min_delta`, the reference of early stopping"""
    loss_sum: float = 0.0
    """loss of the samples trained in the unfinished epoch"""
    loss_count: float = 0.0
    """the divisor of `loss_sum`: samples, or what the criterion counts instead"""
    norm_sum: float = 0.0
    """sum of gradient norms in the unfinished epoch"""
    norm_count: int = 0
    """number of gradient norms in the unfinished epoch"""
    skipped: int = 0
    """steps of the unfinished epoch that the loss scaler skipped, since a gradient overflowed"""
    seconds: float = 0.0
    """time spent in the unfinished epoch"""
    optimizers: Mapping[str, OptimizerProgress] = field(default_factory=dict)
    """by name of the optimizer"""
    registered: Mapping[str, Any] = field(default_factory=dict)
    """state_dicts of the objects that a custom loop registered, by name"""
    scaler: dict[str, Any] | None = None
    """state_dict of the loss scaler"""
    average: dict[str, Any] | None = None
    """averaged weights, the trained weights, and the number of averaged steps"""
    unsaved_buffers: dict[str, Any] | None = None
    """the model's non-persistent buffers by name, which a state_dict does not contain"""
    epochs_without_improvement: int = 0
    """epochs since `best_for_patience`, for early stopping"""
    rng_states: list[rng.State] | None = None
    """generator states of all ranks within an epoch; None at its start, where generators are seeded"""

    def without_schedule(self) -> "Progress":
        """A copy whose schedules start again with the next step."""
        return replace(self, optimizers={name: each.without_schedule() for name, each in self.optimizers.items()})

    def without_best(self) -> "Progress":
        """A copy whose best score and patience start again."""
        return replace(self, best=math.inf, best_epoch=None, best_for_patience=math.inf, epochs_without_improvement=0)

    def at_epoch(self) -> "Progress":
        """A copy without the steps of the unfinished epoch."""
        counted = ("step", "loss_sum", "loss_count", "norm_sum", "norm_count", "skipped", "seconds", "rng_states")
        return replace(self, **{name: getattr(Progress, name) for name in counted})

    def copy(self) -> "Progress":
        """A copy on the CPU, independent of the training."""
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


def load_buffers(model: nn.Module, progress: Progress) -> None:
    """Put the non-persistent buffers of a training into a model."""
    buffers = progress.unsaved_buffers or {}
    for name, buffer in model.named_buffers():
        if name in buffers and buffers[name].shape == buffer.shape:
            buffer.copy_(buffers[name])


class Snapshot(NamedTuple):
    """The state of a training at the end of a row."""

    weights: dict[str, Any]
    progress: Progress
    row: Row | None = None
    """the last row, which a killed worker may have saved and not reported; None before the first"""

    def load_into(self, model: nn.Module) -> None:
        """Load weights and non-persistent buffers into a model."""
        model.load_state_dict(self.weights)
        load_buffers(model, self.progress)

    def copy(self) -> "Snapshot":
        """A copy on the CPU, independent of the training."""
        return Snapshot(to_cpu_copy(self.weights), self.progress.copy(), self.row)
