"""The events of a training: frozen records, the only data that passes from training to views and callbacks.

A run is `RunStart, (StepEnd | Annotation | PauseChanged | Output | Notice | EpochEnd)*, RunEnd`, with `RunFailed` in
place of `RunEnd` if it failed. Events contain numbers and strings and no tensors, so they can be pickled, written as
JSON, and drawn by code that does not import torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the history: an epoch, or the part of it that was trained before a stop."""

    epoch: int
    """counts from 0"""
    train_loss: float
    """mean over the samples trained in this epoch"""
    valid_loss: float | None
    """mean over the samples of the validation split; None if there is no such split or validation was not reached"""
    time: float
    """seconds, training and validation together"""
    lr: float
    """learning rate of the first parameter group at the end of the epoch"""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """further columns by name, in the order of the table"""
    fraction: float = 1.0
    """fraction of the epoch's steps that were trained, 1.0 for a whole epoch"""


@dataclass(frozen=True, slots=True)
class RunStart:
    """A run starts, before its first step."""

    epoch: int
    """the first epoch to train"""
    epochs: int
    """the epoch to stop before, so that `epochs - epoch` epochs are trained"""
    steps_per_epoch: int | None
    """optimizer steps; None for a stream of unknown length"""
    where: str
    """the device or processes it runs on, and the reason for this choice, as text"""
    world_size: int = 1
    """number of ranks"""
    columns: tuple[str, ...] = ()
    """names of the value columns of the rows, as far as they are known: train_loss, valid_loss, metrics"""
    parameters: Mapping[str, str | float | int | bool | None] = field(default_factory=dict)
    """hyperparameters by name: the settings, and the parts of the recipe as text"""


@dataclass(frozen=True, slots=True)
class StepEnd:
    """Heartbeat within an epoch: at most about ten per second, however short the steps are."""

    epoch: int
    step: int
    """steps done in this epoch and phase"""
    steps: int | None
    """total steps of this epoch and phase; None if unknown"""
    loss: float
    """smoothed training loss (debiased exponential moving average)"""
    rate: float
    """steps per second"""
    phase: Literal["train", "valid"] = "train"
    lr: float | None = None
    """learning rate of the first parameter group in the latest step"""
    samples_per_second: float | None = None
    """of all ranks together; None if unknown"""
    gpu_memory: int | None = None
    """bytes reserved by torch on rank 0's GPU; None without a GPU"""
    data_wait: float | None = None
    """fraction of this epoch's time spent waiting for data, 0.0 to 1.0"""
    losses: tuple[float, ...] = ()
    """training losses on rank 0 of the steps since the last such event, in order"""
    lrs: tuple[float, ...] = ()
    """learning rates of those steps"""


@dataclass(frozen=True, slots=True)
class Annotation:
    """A change made during the run, drawn as a mark on the curve."""

    epoch: float
    """position on the epoch axis; 2.5 is half way through epoch 2"""
    label: str
    """such as 'lr 0.0003' or 'paused 12 s'"""
    breaks_comparison: bool = False
    """whether losses before and after it cannot be compared, as after a change of the criterion"""


@dataclass(frozen=True, slots=True)
class PauseChanged:
    """The run was paused or resumed; sent by its handle, since a paused training sends no events."""

    paused: bool
    """True when it was paused, False when it was resumed"""


@dataclass(frozen=True, slots=True)
class Output:
    """Text printed by a worker."""

    rank: int
    text: str
    stream: Literal["stdout", "stderr"] = "stdout"


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning for the user, shown as a `QuikWarning` once per cause."""

    cause: str
    """identifies the warning, so that it is shown only once, such as "criterion has parameters" """
    text: str
    """what happened, why it matters, what to use instead"""


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """An epoch has ended, or was cut short by a stop; its state is saved before this event is sent."""

    row: Row
    best: bool = False
    """whether this is the best epoch so far (lowest valid_loss, else lowest train_loss)"""
    data_wait: float | None = None
    """fraction of the epoch's time spent waiting for data, 0.0 to 1.0"""
    losses: tuple[float, ...] = ()
    """training losses on rank 0 of the steps since the last `StepEnd`, in order"""
    lrs: tuple[float, ...] = ()
    """learning rates of those steps"""


@dataclass(frozen=True, slots=True)
class RunEnd:
    """The run has ended without an error, and its state is saved."""

    state: Literal["finished", "stopped"]
    reason: str = ""
    """why it ended before the last epoch, as text; empty otherwise"""


@dataclass(frozen=True, slots=True)
class RunFailed:
    """The run has ended with an error."""

    message: str
    """what the user should see"""
    rank: int | None = None
    """the rank that failed first; None for a run in one process"""


Tell = Callable[[str, str], None]
"""Tells the user something once: `tell(cause, text)`, as `Notice`."""

Event = RunStart | StepEnd | Annotation | PauseChanged | Output | Notice | EpochEnd | RunEnd | RunFailed

Emit = Callable[[Event], None]
"""Takes each event as it happens."""
