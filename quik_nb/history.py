"""The record of a training: rows, the best of them, annotations, and the live losses within the current epoch.

It is what views draw and what files keep. It knows no torch; pandas is imported when a DataFrame is asked for.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

from quik_nb.events import Annotation, EpochEnd, Event, Notice, Row, StepEnd

if TYPE_CHECKING:
    import pandas as pd

LIVE_POINTS = 200
"""Points of the line of steps that are held; when there are more, neighbours are joined two by two."""

STRETCHES = 8
"""Stretches of an epoch whose steps make one point, as long as the points are few. A power of two, so that however
often stretches are joined, they end where an epoch ends."""


class LivePoint(NamedTuple):
    """The steps of a stretch, averaged."""

    at: float
    """position on the epoch axis, 2.5 is half way through epoch 2"""
    loss: float
    """mean training loss of the steps"""
    lr: float | None = None
    """mean learning rate of the steps; None where it is not known"""
    steps: int = 1
    """that were averaged"""


class LiveLosses:
    """The training losses between the rows, averaged over stretches of equal length.

    Plain means, with no smoothing that starts anew or lags: over an epoch they come to that epoch's `train_loss`. A
    step costs next to nothing, as there may be thousands in a second.
    """

    def __init__(self) -> None:
        self.points: list[LivePoint] = []
        self._width = 1 / STRETCHES
        """of a stretch, in epochs"""
        self._steps_per_epoch: int | None = None

    def record(self, event: StepEnd) -> None:
        """Take in the steps that an event tells of; one that tells no losses counts as one step.

        The first event of a validation may tell of the last steps before it.
        """
        if event.phase == "train":
            self._steps_per_epoch = event.steps
        steps = self._steps_per_epoch
        if not steps:
            return

        done = event.step if event.phase == "train" else steps
        if event.losses:
            self._add_steps(event, done - len(event.losses), steps)
        elif event.phase == "train":
            self._add(LivePoint(event.epoch + done / steps, event.loss, event.lr))

    def copy(self) -> "LiveLosses":
        """The same points, which later events do not change."""
        twin = LiveLosses()
        twin.points = list(self.points)
        twin._width = self._width
        twin._steps_per_epoch = self._steps_per_epoch
        return twin

    def _add_steps(self, event: StepEnd, first: int, steps: int) -> None:
        """Add the losses of an event; the first is that of step `first`, below 0 where it belongs to the epoch before.

        They are averaged as slices, stretch by stretch, rather than one by one.
        """
        count = len(event.losses)
        lrs = event.lrs if len(event.lrs) == count else ()
        begin = 0
        while begin < count:
            here = math.floor((event.epoch + (first + begin + 0.5) / steps) / self._width)
            inside = (here + 1) * self._width - event.epoch  # the stretch ends there, in epochs from this one's start
            end = max(begin + 1, min(count, math.ceil(inside * steps - first - 0.5)))

            at = event.epoch + (first + (begin + end) / 2) / steps
            losses = [loss for loss in event.losses[begin:end] if math.isfinite(loss)]
            lr = sum(lrs[begin:end]) / (end - begin) if lrs else event.lr
            if losses:
                self._add(LivePoint(at, sum(losses) / len(losses), lr, len(losses)))
            begin = end

    def _add(self, point: LivePoint) -> None:
        if not math.isfinite(point.loss):
            return

        here = self._stretch(point)
        while self.points and self._stretch(self.points[-1]) > here:
            self.points.pop()  # steps that were lost with a run that ended badly, and are trained again

        if self.points and self._stretch(self.points[-1]) == here:
            point = joined(self.points.pop(), point)
        self.points.append(point)

        if len(self.points) > LIVE_POINTS:
            self._widen()

    def _stretch(self, point: LivePoint) -> int:
        return math.floor(point.at / self._width)

    def _widen(self) -> None:
        self._width *= 2
        points, self.points = self.points, []
        for point in points:
            if self.points and self._stretch(self.points[-1]) == self._stretch(point):
                self.points.append(joined(self.points.pop(), point))
            else:
                self.points.append(point)


def joined(first: LivePoint, second: LivePoint) -> LivePoint:
    """The mean of two points, each by the number of its steps.

    >>> joined(LivePoint(0.0, 1.0), LivePoint(1.5, 4.0, steps=2))
    LivePoint(at=1.0, loss=3.0, lr=None, steps=3)
    """
    steps = first.steps + second.steps
    share = second.steps / steps
    lr = None
    if first.lr is not None and second.lr is not None:
        lr = first.lr + share * (second.lr - first.lr)
    at = first.at + share * (second.at - first.at)
    loss = first.loss + share * (second.loss - first.loss)
    return LivePoint(at, loss, lr, steps)


class Ranking(NamedTuple):
    """What makes a row the best.

    >>> Ranking("accuracy", "max").score(Row(0, 0.9, 0.8, 1.5, 1e-3, {"accuracy": 0.75}))
    -0.75
    """

    column: str | None = None
    """None for `valid_loss`, or `train_loss` where there is none"""
    mode: str = "min"
    """"min" where lower is better, "max" where higher is"""

    def name(self, row: Row) -> str:
        """The column that counts in this row."""
        if self.column is not None:
            return self.column
        return "train_loss" if row.valid_loss is None else "valid_loss"

    def value(self, row: Row) -> float:
        """What counts in a row; NaN where it has no such column."""
        value = flat(row).get(self.name(row))
        return math.nan if value is None else value

    def score(self, row: Row) -> float:
        """The value so that lower is better; NaN is worst."""
        value = self.value(row)
        if math.isnan(value):
            return math.inf
        return value if self.mode == "min" else -value


LOSS = Ranking()
"""The lowest `valid_loss` is best, or `train_loss` where there is none."""


class History:
    """Rows of a training in order; a partial row is replaced by the row of its whole epoch.

    What is asked for after each row (`columns`, `best`) is kept up to date, so that a row costs the same after ten
    thousand others as at the start.

    >>> history = History([Row(epoch=0, train_loss=0.9, valid_loss=0.8, time=1.5, lr=1e-3)])
    >>> history
    1 epoch, best valid_loss 0.8 in epoch 0
    """

    def __init__(self, rows: Iterable[Row] = (), annotations: Iterable[Annotation] = ()) -> None:
        self._rows: list[Row] = []
        self._metrics: dict[str, None] = {}
        """names of the metrics so far, in the order in which they came"""
        self._validated = False
        """whether any row has a `valid_loss`"""
        self._ranking = LOSS
        self._best = _Best(self._ranking)
        self._live = LiveLosses()
        self.annotations: list[Annotation] = list(annotations)
        self.notices: dict[str, str] = {}
        """what the user was told, by its cause"""
        self.rows = list(rows)

    def copy(self) -> "History":
        """The same history, which later records of this one do not change."""
        twin = History(self._rows, self.annotations)
        twin.notices = dict(self.notices)
        twin._live = self._live.copy()
        twin.ranking = self._ranking
        return twin

    @property
    def rows(self) -> list[Row]:
        """The rows in order; to change them assign a list, or use `add`."""
        return self._rows

    @rows.setter
    def rows(self, rows: Iterable[Row]) -> None:
        self._rows = []
        self._metrics = {}
        self._validated = False
        self._best = _Best(self._ranking)
        for row in rows:
            self._append(row)

    @property
    def ranking(self) -> Ranking:
        """What makes a row the best; another one ranks all rows again."""
        return self._ranking

    @ranking.setter
    def ranking(self, ranking: Ranking) -> None:
        self._ranking = ranking
        self._best = _Best(ranking)

    @property
    def live(self) -> list[LivePoint]:
        """The training losses of the steps of all calls so far, averaged to at most `LIVE_POINTS` points."""
        return self._live.points

    def record(self, event: Event) -> None:
        """Take in what an event adds; events that add nothing pass by."""
        match event:
            case EpochEnd(row=row):
                self.add(row)
            case Annotation():
                self.annotations.append(event)
            case Notice():
                self.notices.setdefault(event.cause, event.text)
            case StepEnd():
                self._live.record(event)

    def add(self, row: Row) -> None:
        """Append a row; it replaces a partial row of the same epoch, and later rows that a killed run had not kept."""
        if self._rows and self._rows[-1].epoch >= row.epoch:
            self.rows = [earlier for earlier in self._rows if earlier.epoch < row.epoch]
        self._append(row)

    def _append(self, row: Row) -> None:
        self._rows.append(row)
        self._metrics |= dict.fromkeys(row.metrics)
        self._validated |= row.valid_loss is not None

    @property
    def columns(self) -> list[str]:
        """Names of the value columns: `train_loss`, `valid_loss` where there is one, then the metrics."""
        return ["train_loss", *(["valid_loss"] if self._validated else []), *self._metrics]

    @property
    def best(self) -> Row | None:
        """The row with the lowest `valid_loss` (`train_loss` where it has none) among the whole epochs, or the best by
        another `ranking`.

        None where no row has one that is a number, or that can be compared with what is trained now.
        """
        return self._best.of(self._rows, self._comparable_from)

    @property
    def comparable(self) -> list[Row]:
        """The rows since the loss was last replaced by another."""
        since = self._comparable_from
        return [row for row in self._rows if row.epoch >= since]

    @property
    def _comparable_from(self) -> float:
        return max((mark.epoch for mark in self.annotations if mark.breaks_comparison), default=0.0)

    def frame(self) -> "pd.DataFrame":
        """The rows as a DataFrame: epoch, train_loss, valid_loss, the metrics, lr, fraction (if any is partial),
        time."""
        import pandas as pd

        columns = ["epoch", *self.columns, "lr", "time"]
        if any(row.fraction != 1.0 for row in self.rows):
            columns.insert(-1, "fraction")
        return pd.DataFrame([flat(row) for row in self.rows], columns=columns)

    def to_jsonl(self) -> str:
        """Notices, annotations and rows as JSON, one line each."""
        notices = [{"cause": cause, "text": text} for cause, text in self.notices.items()]
        lines = [*notices, *map(asdict, self.annotations), *map(asdict, self.rows)]
        return "".join(json.dumps(line) + "\n" for line in lines)

    @classmethod
    def from_jsonl(cls, text: str) -> "History":
        """The history that `to_jsonl` wrote; a line that was cut while it was written is passed over."""
        history = cls()
        for line in text.split("\n"):
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                continue
            if "cause" in values:
                history.record(Notice(**values))
            elif "label" in values:
                history.annotations.append(Annotation(**values))
            else:
                history.add(Row(**values))
        return history

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        best = self.best
        if not self.rows:
            return "no epochs yet"
        count = f"{len(self.rows)} epoch{'s' if len(self.rows) != 1 else ''}"
        if best is None:
            return f"{count}, none of them the best"
        name, value = self.ranking.name(best), self.ranking.value(best)
        return f"{count}, best {name} {value:.4g} in epoch {best.epoch}"


class _Best:
    """The best of rows to which others are added: each is looked at once."""

    def __init__(self, ranking: Ranking) -> None:
        self._ranking = ranking
        self._row: Row | None = None
        self._since = 0.0
        self._seen = 0

    def of(self, rows: list[Row], since: float) -> Row | None:
        """The best of the rows from an epoch on; a whole epoch is better than a part, the first better than its equal.

        Args:
            rows: those of the last call, and others behind them.
            since: the first epoch that can be compared with what is trained now.
        """
        if since != self._since:
            self._row, self._since, self._seen = None, since, 0
        for row in rows[self._seen :]:
            self._judge(row)
        self._seen = len(rows)
        return self._row

    def _judge(self, row: Row) -> None:
        if row.epoch < self._since or self._ranking.score(row) == math.inf:
            return
        if self._row is None or self._rank(row) < self._rank(self._row):
            self._row = row

    def _rank(self, row: Row) -> tuple[bool, float]:
        return row.fraction != 1.0, self._ranking.score(row)


NO_RANKING = Ranking("")
"""No row is better than another."""


def score(row: Row) -> float:
    """The loss that counts in a row: its `valid_loss`, or its `train_loss` where it has none; NaN is worst."""
    return LOSS.score(row)


def flat(row: Row) -> dict[str, float | int | None]:
    """A row as one dictionary, its metrics beside its other values."""
    values = {name: getattr(row, name) for name in ("epoch", "train_loss", "valid_loss", "lr", "fraction", "time")}
    return {**values, **row.metrics}
