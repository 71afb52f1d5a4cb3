"""Where a run stands: how far it is, how long it will take, how fast it is, and in the end how it went.

It reads the events of one run and says it in words; how they are drawn is the business of others.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from quik_nb.events import EpochEnd, Event, PauseChanged, Row, RunEnd, RunFailed, RunStart, StepEnd
from quik_nb.history import History
from quik_nb.views.format import (
    clock_time,
    duration,
    first_line,
    gigabytes,
    learning_rate,
    number,
    one_line,
    rate,
    samples_rate,
)

LATEST_EPOCHS = 5
"""Epochs whose time tells how long the next ones will take."""

State = Literal["waiting", "running", "finished", "stopped", "failed"]


class RunStatus:
    """Reads the events of one run.

    Args:
        history: has taken in each event before it is recorded here.
        title: the session's name.
        wall: seconds from anywhere.
    """

    def __init__(self, history: History, title: str = "", wall: Callable[[], float] = time.perf_counter) -> None:
        self._history = history
        self._title = one_line(title)
        self._wall = wall
        self.start: RunStart | None = None
        self.step: StepEnd | None = None
        """the last sign of life within the epoch; None between epochs"""
        self._latest: StepEnd | None = None
        """the last sign of life in training, whose loss and pace still hold while it validates and between epochs"""
        self.data_wait: float | None = None
        """part of the last epoch's time that was spent waiting for data, 0.0 to 1.0"""
        self.end: RunEnd | RunFailed | None = None
        self.paused = False
        self.closed = False
        self.rows: list[Row] = []
        """those of this run"""
        self._clock = _RunClock(0.0, wall())

    def record(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case RunStart():
                self._begin(event)
            case StepEnd():
                self.step = event
                if event.phase == "train" or self._latest is None:
                    self._latest = event
                self._clock.note(event, self._wall())
            case EpochEnd():
                self.step = None
                self.data_wait = event.data_wait
                self.rows.append(event.row)
                self._clock.end_epoch(event.row.time, self._wall())
            case PauseChanged(paused=on):
                self.paused = on
            case RunEnd() | RunFailed():
                self.end = event

    def _begin(self, start: RunStart) -> None:
        """Take in the start, of now or of a while ago: a view may join a run that has rows already."""
        self.start = start
        # a part of an epoch is the last row of its run, so one that is there now is an earlier call's
        self.rows = [row for row in self._history.rows if row.epoch >= start.epoch and row.fraction == 1.0]
        self._clock = _RunClock(sum(row.time for row in self.rows), self._wall())

    # ------------------------------------------------------------------ how far

    @property
    def state(self) -> State:
        """A run that was closed without an end was interrupted: it is stopped."""
        match self.end:
            case RunFailed():
                return "failed"
            case RunEnd(state=state):
                return state
        if self.start is None:
            return "waiting"
        return "stopped" if self.closed else "running"

    @property
    def epochs(self) -> int | None:
        """The epoch to stop before; None before the run has begun."""
        return None if self.start is None else self.start.epochs

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the rows of this run will have, as far as they are known."""
        return () if self.start is None else self.start.columns

    @property
    def parameters(self) -> Mapping[str, object]:
        """What is trained how."""
        return {} if self.start is None else self.start.parameters

    @property
    def epoch(self) -> int:
        """The epoch at hand, counted from 0."""
        if self.step is not None:
            return self.step.epoch
        if self.rows:
            return self.rows[-1].epoch + (self.rows[-1].fraction == 1.0)
        return self.start.epoch if self.start is not None else 0

    @property
    def epoch_share(self) -> float:
        """Part of the epoch's phase (training or validation) that is done, 0 to 1."""
        step = self.step
        if step is None:
            return 0.0 if self._more_to_come else 1.0
        return min(1.0, step.step / step.steps) if step.steps else 0.0

    @property
    def run_share(self) -> float:
        """Part of the whole run that is done, 0 to 1."""
        if self.start is None:
            return 0.0
        epochs = self.start.epochs - self.start.epoch
        done = self.epoch - self.start.epoch
        if self.step is not None:
            done_here = 1.0 if self.step.phase == "valid" else self.epoch_share
            return min(1.0, (done + done_here) / max(1, epochs))
        return min(1.0, done / max(1, epochs))

    @property
    def _more_to_come(self) -> bool:
        return self.start is None or self.epoch < self.start.epochs

    # ------------------------------------------------------------------ how long

    def seconds(self) -> float:
        """That this run has taken so far."""
        return self._clock.seconds(self._wall())

    def seconds_left(self) -> float | None:
        """For the whole run, from its latest epochs, else from the pace of its steps; None where that is unknown."""
        if self.start is None or not self._more_to_come:
            return None
        later_epochs = self.start.epochs - self.epoch - 1
        latest = [row.time for row in self.rows[-LATEST_EPOCHS:]]
        if not latest:
            return self._seconds_left_from_pace(later_epochs)

        epoch_seconds = sum(latest) / len(latest)
        here = max(epoch_seconds - self._clock.epoch_seconds(self._wall()), self._phase_seconds_left() or 0.0)
        return here + later_epochs * epoch_seconds

    def _seconds_left_from_pace(self, later_epochs: int) -> float | None:
        """While no epoch is finished yet: of the steps that are known, and of a validation only once it has begun."""
        step, here = self.step, self._phase_seconds_left()
        if step is None or step.steps is None or here is None:
            return None
        phase_seconds = step.steps / step.rate
        if step.phase == "valid":
            phase_seconds += self._clock.training_seconds
        return here + later_epochs * phase_seconds

    def _phase_seconds_left(self) -> float | None:
        step = self.step
        if step is None or not step.steps or step.rate <= 0:
            return None
        return max(0.0, (step.steps - step.step) / step.rate)

    @property
    def _validation_is_unknown(self) -> bool:
        """Whether the time left leaves out validations, since none was seen yet."""
        seen = self.rows or (self.step is not None and self.step.phase == "valid")
        return not seen and "valid_loss" in self.columns

    # ------------------------------------------------------------------ in words

    def status(self) -> str:
        """How far the run is and how long it takes."""
        parts = [self._title, "paused" if self.paused else "", self._which_epoch()]
        if self.start is not None:
            parts.append(f"{clock_time(self.seconds())} elapsed")
        left = None if self.paused else self.seconds_left()
        if left is not None:
            at_least = "at least " if self._validation_is_unknown else ""
            parts.append(f"{at_least}{clock_time(left)} left")
        if self.step is not None and self.step.phase == "valid":
            parts.append("validating")
        return " · ".join(part for part in parts if part)

    def facts(self) -> str:
        """The present loss, learning rate, pace and memory, as far as they are known."""
        step = self._latest
        if step is None:
            return ""
        parts = [f"train loss {number(step.loss)}"]
        if step.lr is not None:
            parts.append(f"lr {learning_rate(step.lr)}")
        return " · ".join([*parts, *self._machine_facts(step)])

    def pace(self) -> str:
        """Pace and memory at the end of a run."""
        return " · ".join(self._machine_facts(self._latest)) if self._latest is not None else ""

    def _machine_facts(self, step: StepEnd) -> list[str]:
        known = step.samples_per_second
        parts = [rate(step.rate) if known is None else samples_rate(known)]
        if step.gpu_memory is not None:
            parts.append(f"GPU memory {gigabytes(step.gpu_memory)}")
        return parts

    def _which_epoch(self) -> str:
        if self.start is None:
            return f"epoch {self.epoch}" if self.step is not None else "starting"
        if not self._more_to_come:
            return "all epochs trained"
        return f"epoch {self.epoch} ({self.epoch + 1} of {self.start.epochs})"

    def summary(self) -> str:
        """How the run ended, how long it took and which epoch is the best, on one line."""
        ending = self._ending()
        title = f"{self._title}: {ending}" if self._title and ending else self._title or ending
        parts = [title, self._epochs_trained(), self._best()]
        return " · ".join(part for part in parts if part) or "no epochs yet"

    def _epochs_trained(self) -> str:
        """Those of this run, and all there are where that is more."""
        every = self._history.rows
        if not every:
            return ""
        own = self.rows if self.start is not None else every
        if not own:
            return f"{_epochs(every)} in all"
        words = f"{_epochs(own)} in {duration(sum(row.time for row in own))}"
        return words if len(own) == len(every) else f"{words}, {_count(every)} in all"

    def _best(self) -> str:
        best = self._history.best
        if best is None:
            return ""
        ranking = self._history.ranking
        return f"best {ranking.name(best)} {number(ranking.value(best))} in epoch {best.epoch}"

    def _ending(self) -> str:
        match self.end:
            case RunFailed(message=message, rank=rank):
                who = "" if rank is None else f" on rank {rank}"
                return f"failed{who} {self._place()}: {first_line(message)}"
            case RunEnd(state="stopped", reason=reason):
                why = f" ({first_line(reason)})" if reason else ""
                return f"stopped {self._place()}, all kept{why}"
            case RunEnd(reason=reason) if reason:
                return f"finished {self._place()} ({first_line(reason)})"
        if self.state == "stopped":
            return f"stopped {self._place()}, all kept"
        if self.state == "running":
            return f"training {self._place()}"
        return "" if self.state == "waiting" else self.state

    def _place(self) -> str:
        rows = self._history.rows
        if self.step is not None:
            return f"in epoch {self.step.epoch}"
        if not rows:
            return "before the first epoch was over"
        return f"{'in' if rows[-1].fraction < 1.0 else 'after'} epoch {rows[-1].epoch}"


def _epochs(rows: Sequence[Row]) -> str:
    count = _count(rows)
    return f"{count} epoch{'' if count == '1' else 's'}"


def _count(rows: Sequence[Row]) -> str:
    """The epochs that were trained, with a decimal where one was trained in part."""
    parts = sum(row.fraction for row in rows)
    return f"{parts:,.0f}" if parts == round(parts) else f"{parts:,.1f}"


class _RunClock:
    """The time of a run and of the epoch at hand, in seconds from anywhere.

    Args:
        earlier: seconds that the run's epochs before the one at hand took.
        now: when the epoch at hand begins.
    """

    def __init__(self, earlier: float, now: float) -> None:
        self._earlier = earlier
        self._epoch_began = now
        self._validating_since: float | None = None

    def note(self, step: StepEnd, now: float) -> None:
        """Notice where the validation begins."""
        if step.phase == "valid" and self._validating_since is None:
            # some steps are done already when the first sign of life comes
            done = step.step / step.rate if step.rate > 0 else 0.0
            self._validating_since = max(self._epoch_began, now - done)

    def end_epoch(self, seconds: float, now: float) -> None:
        """The epoch took so long; the next one begins."""
        self._earlier += seconds
        self._epoch_began = now
        self._validating_since = None

    def seconds(self, now: float) -> float:
        """Of the run so far."""
        return self._earlier + self.epoch_seconds(now)

    def epoch_seconds(self, now: float) -> float:
        """Of the epoch so far."""
        return now - self._epoch_began

    @property
    def training_seconds(self) -> float:
        """That the training of this epoch took; 0 before its validation has begun."""
        return 0.0 if self._validating_since is None else self._validating_since - self._epoch_began
