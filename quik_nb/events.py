"""What happened in a training: plain frozen records, the only thing that crosses from training to views.

A run is `RunStart, (StepEnd | Annotation | PauseChanged | Output | Notice | EpochEnd)*, RunEnd`. `RunFailed` comes
instead of `RunEnd` where the run failed. Events hold numbers and words, no tensors, so they can be pickled, written as
JSON and drawn by code that knows no torch.
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
    """mean over the samples of the validation split; None where there is none or it was not reached"""
    time: float
    """seconds, training and validation together"""
    lr: float
    """learning rate of the first parameter group when the epoch ended"""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """further columns by name, in the order of the table"""
    fraction: float = 1.0
    """part of the epoch's steps that were trained, 1.0 for a whole epoch"""


@dataclass(frozen=True, slots=True)
class RunStart:
    """A training begins; nothing is trained yet."""

    epoch: int
    """the first epoch to train"""
    epochs: int
    """the epoch to stop before, so that `epochs - epoch` epochs are trained"""
    steps_per_epoch: int | None
    """optimizer steps; None for a stream of unknown length"""
    where: str
    """where it trains and why there, in words"""
    world_size: int = 1
    """number of ranks"""
    columns: tuple[str, ...] = ()
    """names of the value columns that rows will have, as far as they are known: train_loss, valid_loss, metrics"""
    parameters: Mapping[str, str | float | int | bool | None] = field(default_factory=dict)
    """what is trained how: the settings, and the parts in words, by name"""


@dataclass(frozen=True, slots=True)
class StepEnd:
    """A sign of life within an epoch: at most some ten a second, whatever the length of a step."""

    epoch: int
    step: int
    """steps done in this epoch and phase"""
    steps: int | None
    """steps of this epoch and phase; None where unknown"""
    loss: float
    """smoothed training loss (debiased exponential moving average)"""
    rate: float
    """steps per second"""
    phase: Literal["train", "valid"] = "train"
    lr: float | None = None
    """learning rate of the first parameter group in the latest step"""
    samples_per_second: float | None = None
    """trained by all ranks together; None where it is not known"""
    gpu_memory: int | None = None
    """bytes that torch holds on rank 0's GPU; None without one"""
    data_wait: float | None = None
    """part of this epoch's time that was spent waiting for data, 0.0 to 1.0"""
    losses: tuple[float, ...] = ()
    """training losses of the steps since the last such event, in order"""
    lrs: tuple[float, ...] = ()
    """learning rates of those steps"""


@dataclass(frozen=True, slots=True)
class Annotation:
    """Something that was done to the run on its way, drawn as a mark on the curve."""

    epoch: float
    """position on the epoch axis, 2.5 is half way through epoch 2"""
    label: str
    """such as 'lr 0.0003' or 'paused 12 s'"""
    breaks_comparison: bool = False
    """whether rows before it cannot be compared with those after it, since the loss is another"""


@dataclass(frozen=True, slots=True)
class PauseChanged:
    """The user holds the run, or lets it go on; the run's handle tells it, since a training that is held is silent."""

    paused: bool
    """whether it is held from now on"""


@dataclass(frozen=True, slots=True)
class Output:
    """Text that a worker printed."""

    rank: int
    text: str
    stream: Literal["stdout", "stderr"] = "stdout"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the user should know, and that is no error: told once for each cause, as a `QuikWarning`."""

    cause: str
    """what it is about, the same whenever it is noticed again, such as "criterion has parameters" """
    text: str
    """what happened, why it matters, what to use instead"""


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """An epoch is over, or was cut by a stop; its state is kept before this event is sent."""

    row: Row
    best: bool = False
    """whether this is the best epoch so far (lowest valid_loss, else lowest train_loss)"""
    data_wait: float | None = None
    """part of the epoch's time that was spent waiting for data, 0.0 to 1.0"""


@dataclass(frozen=True, slots=True)
class RunEnd:
    """The training is over and all is kept."""

    state: Literal["finished", "stopped"]
    reason: str = ""
    """why it ended before the last epoch, in words; empty for a finished run"""


@dataclass(frozen=True, slots=True)
class RunFailed:
    """A run that ends in an error; `message` is what the user should see."""

    message: str
    rank: int | None = None
    """the rank that failed first; None where the run is in one process"""


Tell = Callable[[str, str], None]
"""Tells the user something once: `tell(cause, text)`, as `Notice`."""

Event = RunStart | StepEnd | Annotation | PauseChanged | Output | Notice | EpochEnd | RunEnd | RunFailed

Emit = Callable[[Event], None]
"""Takes each event as it happens."""
