"""The record of a training: rows, the best of them, annotations, and the live losses within the current epoch.

It is what views draw and what files keep. It knows no torch; pandas is imported when a DataFrame is asked for.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from quik_nb.events import Annotation, EpochEnd, Event, Notice, Row, StepEnd

if TYPE_CHECKING:
    import pandas as pd

LIVE_POINTS = 200
"""Points of the live curve that are held; when there are more, every second one is dropped."""


class History:
    """Rows of a training in order; a partial row is replaced by the row of its whole epoch.

    >>> history = History([Row(epoch=0, train_loss=0.9, valid_loss=0.8, time=1.5, lr=1e-3)])
    >>> history
    1 epoch, best valid_loss 0.8 in epoch 0
    """

    def __init__(self, rows: Iterable[Row] = (), annotations: Iterable[Annotation] = ()) -> None:
        self.rows: list[Row] = list(rows)
        self.annotations: list[Annotation] = list(annotations)
        self.live: list[tuple[float, float]] = []
        """(position on the epoch axis, smoothed loss) of all calls so far, thinned to at most `LIVE_POINTS`"""
        self.notices: dict[str, str] = {}
        """what the user was told, by its cause"""
        self._stride = 1
        self._seen = 0

    def copy(self) -> "History":
        """The same history, which later records of this one do not change."""
        twin = History(self.rows, self.annotations)
        twin.live = list(self.live)
        twin.notices = dict(self.notices)
        twin._stride = self._stride
        twin._seen = self._seen
        return twin

    def record(self, event: Event) -> None:
        """Take in what an event adds; events that add nothing pass by."""
        match event:
            case EpochEnd(row=row):
                self.add(row)
            case Annotation():
                self.annotations.append(event)
            case Notice():
                self.notices.setdefault(event.cause, event.text)
            case StepEnd(phase="train", steps=int(steps)) if steps:
                self._add_live(event.epoch + event.step / steps, event.loss)

    def add(self, row: Row) -> None:
        """Append a row; it replaces a partial row of the same epoch, and later rows that a killed run had not kept."""
        while self.rows and self.rows[-1].epoch >= row.epoch:
            self.rows.pop()
        self.rows.append(row)

    def _add_live(self, position: float, loss: float) -> None:
        if self._seen % self._stride == 0 and math.isfinite(loss):
            self.live.append((position, loss))
        self._seen += 1
        if len(self.live) > LIVE_POINTS:
            del self.live[1::2]
            self._stride *= 2

    @property
    def columns(self) -> list[str]:
        """Names of the value columns: `train_loss`, `valid_loss` where there is one, then the metrics."""
        names = ["train_loss"]
        if any(row.valid_loss is not None for row in self.rows):
            names.append("valid_loss")
        for row in self.rows:
            names += [name for name in row.metrics if name not in names]
        return names

    @property
    def best(self) -> Row | None:
        """The row with the lowest `valid_loss` (`train_loss` where none has one) among the whole epochs.

        None where no row has one that is a number, or that can be compared with what is trained now.
        """
        alike = [row for row in self.comparable if score(row) < math.inf]
        whole = [row for row in alike if row.fraction == 1.0] or alike
        return min(whole, key=score, default=None)

    @property
    def comparable(self) -> list[Row]:
        """The rows since the loss was last replaced by another."""
        since = max((mark.epoch for mark in self.annotations if mark.breaks_comparison), default=0.0)
        return [row for row in self.rows if row.epoch >= since]

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
        name = "train_loss" if best.valid_loss is None else "valid_loss"
        return f"{count}, best {name} {score(best):.4g} in epoch {best.epoch}"


def score(row: Row) -> float:
    """What makes a row the best: its `valid_loss`, or its `train_loss` where it has none; NaN is worst."""
    value = row.train_loss if row.valid_loss is None else row.valid_loss
    return math.inf if math.isnan(value) else value


def flat(row: Row) -> dict[str, float | int | None]:
    """A row as one dictionary, its metrics beside its other values."""
    values = {name: getattr(row, name) for name in ("epoch", "train_loss", "valid_loss", "lr", "fraction", "time")}
    return {**values, **row.metrics}
