"""Where a run stands, told in one line: what the bar says while it runs, what the summary says when it ended."""

from typing import Literal

from quik_nb.events import EpochEnd, Event, PauseChanged, RunEnd, RunFailed, RunStart, StepEnd
from quik_nb.history import History, score
from quik_nb.views.format import duration, first_line, number, one_line, plural, rate

State = Literal["waiting", "running", "finished", "stopped", "failed"]


class RunStatus:
    """Reads the events of one run; knows nothing of how it is drawn."""

    def __init__(self, history: History, title: str = "") -> None:
        self._history = history
        self._title = one_line(title)
        self._first_row = len(history)
        self.start: RunStart | None = None
        self.step: StepEnd | None = None
        """the last sign of life within the epoch; None between epochs"""
        self._seen: StepEnd | None = None
        """the last sign of life of all, whose loss and pace still hold between epochs"""
        self.end: RunEnd | RunFailed | None = None
        self.paused = self.closed = False

    def record(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case RunStart():
                self.start = event
            case StepEnd():
                self.step = self._seen = event
            case EpochEnd():
                self.step = None
            case PauseChanged(paused=on):
                self.paused = on
            case RunEnd() | RunFailed():
                self.end = event

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
    def epoch(self) -> int:
        """The epoch at hand, counted from 0."""
        if self.step is not None:
            return self.step.epoch
        rows = self._history.rows
        if rows and self.start is not None and rows[-1].epoch >= self.start.epoch:
            return rows[-1].epoch + (rows[-1].fraction == 1.0)
        return self.start.epoch if self.start is not None else 0

    @property
    def share(self) -> float:
        """Part of the epoch at hand that is done, 0 to 1."""
        step = self.step
        if step is None:
            return 0.0 if self._more_to_come else 1.0
        return min(1.0, step.step / step.steps) if step.steps else 0.0

    @property
    def _more_to_come(self) -> bool:
        return self.start is None or self.epoch < self.start.epochs

    def seconds_left(self) -> float | None:
        """For the whole run, from the epochs that this run has finished, else from its pace; None where unknown."""
        step, start = self.step, self.start
        times = [row.time for row in self._history.rows[self._first_row :] if row.fraction == 1.0]
        if step is None and start is not None and times and self._more_to_come:
            return (start.epochs - self.epoch) * sum(times) / len(times)
        if step is None or start is None or not step.steps or step.rate <= 0:
            return None
        here = (step.steps - step.step) / step.rate
        if step.phase == "train" and not times:
            return here + (start.epochs - step.epoch - 1) * step.steps / step.rate
        return here + (start.epochs - step.epoch - 1) * (sum(times) / len(times) if times else 0.0)

    def status(self) -> str:
        """What the bar says: the epoch, the time left, the smoothed loss, the pace; a narrow page cuts its end."""
        parts = [self._title, "paused" if self.paused else "", self._which_epoch()]
        left = None if self.paused else self.seconds_left()
        if left is not None:
            parts.append(f"{duration(left)} left")
        if self.step is not None and self.step.phase == "valid":
            parts.append("validating")
        if self._seen is not None:
            parts += [f"train loss {number(self._seen.loss)}", rate(self._seen.rate)]
        return " · ".join(part for part in parts if part)

    def _which_epoch(self) -> str:
        if self.start is None:
            return f"epoch {self.epoch}" if self.step is not None else "starting"
        if not self._more_to_come:
            return "all epochs trained"
        return f"epoch {self.epoch} ({self.epoch + 1} of {self.start.epochs})"

    def summary(self) -> str:
        """How the run ended, how long it took and which epoch is the best, on one line."""
        ending = self._ending()
        best = self._history.best
        parts = [f"{self._title}: {ending}" if self._title and ending else self._title or ending]
        if self._history.rows:
            seconds = sum(row.time for row in self._history)
            parts.append(f"{plural(len(self._history), 'epoch')} in {duration(seconds)}")
        if best is not None:
            name = "train_loss" if best.valid_loss is None else "valid_loss"
            parts.append(f"best {name} {number(score(best))} in epoch {best.epoch}")
        return " · ".join(part for part in parts if part) or "no epochs yet"

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
        return "" if self.state == "waiting" else self.state

    def _place(self) -> str:
        rows = self._history.rows
        if self.step is not None:
            return f"in epoch {self.step.epoch}"
        if not rows:
            return "before the first epoch was over"
        return f"{'in' if rows[-1].fraction < 1.0 else 'after'} epoch {rows[-1].epoch}"
