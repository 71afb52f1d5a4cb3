"""A history laid out as a small picture: lines, dots and words at pixel positions, drawn by no one yet.

The live curve (SVG) and the saved one (PNG) are both drawn from this, so that a run's end does not change its look.
The picture is a pure function of the rows. Its size and its number of points are fixed, however long the history is.

Epoch 3 is the band from 2.5 to 3.5. The mean loss of its training stands in the middle of the band, as that of the
steps that it is the mean of; what was measured after it, the validation, stands at the band's end.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from quik_nb.events import Row
from quik_nb.history import History, LivePoint, score
from quik_nb.views.axis import Axis, around, tick_words
from quik_nb.views.format import learning_rate, number, one_line
from quik_nb.views.panels import ROW_HEIGHT, PanelGrid, Series, draw_panels
from quik_nb.views.shapes import (
    LETTER,
    POINTS,
    WIDTH,
    Area,
    Dot,
    Hint,
    Line,
    Picture,
    Point,
    Role,
    Shape,
    Word,
    lines,
)

HEIGHT = 290
"""pixels, with one row of panels or none"""
LIVE_UNTIL = 30
"""Rows up to which the steps of finished epochs are drawn; later they are a blur behind the line."""
WHOLE_AXIS = 30
"""Epochs up to which the axis spans the whole run from the start; of longer runs it grows in a few steps."""
HINTS = 60
"""Places at most where the pointer is told something."""
MARKS = 24
"""Marks that are drawn, the latest; the latest few of them with their words."""
WORDED_MARKS = 4
LOSSES = ("train_loss", "valid_loss")
RATE = "learning rate"
"""Title of the panel that shows it."""


class Outlook(NamedTuple):
    """What is known of a run before it has rows, so that everything has its place from the first moment."""

    epochs: int | None = None
    """the epoch to stop before; None where nothing runs"""
    columns: tuple[str, ...] = ()
    """that rows will have"""
    lr_moves: bool = False
    """whether a schedule moves the learning rate"""


NOTHING_AHEAD = Outlook()
"""Of a history alone."""


def picture(history: History, outlook: Outlook = NOTHING_AHEAD, log: bool = False) -> Picture:
    """Lay out the losses, and under them the metrics and the learning rate."""
    series = _series(history, outlook)
    grid = PanelGrid.of(list(series), keep_last=RATE in series)
    losses = _Losses.of(history, log)

    bottom = HEIGHT - (116 if grid.names else 24)
    up = _values_axis(losses.values, bottom, 26, log)
    area = Area(max(52, _room(up.ticks(), log)), 26, WIDTH - 10, bottom)
    along = _epoch_axis(history, outlook.epochs, area)

    shapes = _losses(history, losses, area, along, up)
    shapes += _legend(history, outlook, bool(losses.live), log)
    panels_area = Area(area.left, bottom + 48, area.right, bottom + 48)
    shapes += draw_panels(grid, [series[name] for name in grid.names], along, panels_area)
    height = HEIGHT + max(0, grid.height - ROW_HEIGHT)
    hints = [] if log else _hints(history, area, along)  # they are where those of the linear scale are
    return Picture(shapes, hints, describe(history), height)


def left_out(history: History, outlook: Outlook = NOTHING_AHEAD) -> list[str]:
    """The columns that have no panel, by name."""
    series = _series(history, outlook)
    grid = PanelGrid.of(list(series), keep_last=RATE in series)
    return [name for name in series if name not in grid.names]


def describe(history: History) -> str:
    """The curve in words, as its text alternative."""
    if not history.rows:
        return "Loss curve, no epoch finished yet"
    last, best = history.rows[-1], history.best
    words = f"Loss curve over {len(history)} epochs; last train loss {number(last.train_loss)}"
    if last.valid_loss is not None:
        words += f", valid loss {number(last.valid_loss)}"
    return words + (f"; best epoch {best.epoch} with {number(score(best))}" if best is not None else "")


# ---------------------------------------------------------------------- values and where they stand


def in_training(row: Row) -> float:
    """Position on the epoch axis of what was measured during the training of an epoch: the middle of it."""
    return row.epoch + row.fraction / 2 - 0.5


def after_training(row: Row) -> float:
    """Position of what was measured when the training of an epoch was over."""
    return row.epoch + row.fraction - 0.5


class _Losses(NamedTuple):
    """The lines of the losses in data coordinates, cut where there are gaps."""

    train: list[list[Point]]
    valid: list[list[Point]]
    live: list[list[Point]]

    @classmethod
    def of(cls, history: History, log: bool) -> "_Losses":
        train = _runs(history.rows, in_training, lambda row: row.train_loss, log)
        valid = _runs(history.rows, after_training, lambda row: row.valid_loss, log)
        live = [(point.at - 0.5, loss) for point, loss in _live(history) if loss > 0 or not log]
        return cls(train, valid, [live] if live else [])

    @property
    def values(self) -> list[float]:
        return [y for kind in self for run in kind for _, y in run]


def _live(history: History) -> list[tuple[LivePoint, float]]:
    """The points of the steps with their losses, each averaged with its neighbours: less noise, and no lag."""
    points = history.live
    if len(history) > LIVE_UNTIL:
        done = history.rows[-1].epoch + history.rows[-1].fraction
        points = [point for point in points if point.at >= done]

    losses = [point.loss for point in points]
    calm = [(a + 2 * b + c) / 4 for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
    return list(zip(points, [*losses[:1], *calm, *losses[1:][-1:]], strict=True))


def _series(history: History, outlook: Outlook) -> dict[str, Series]:
    """What the panels may show: the metrics, and the learning rate where it moves."""
    names = dict.fromkeys([*outlook.columns, *history.columns])
    found = {name: _metric(history, name) for name in names if name not in LOSSES}
    if outlook.lr_moves or _has_moved(history):
        found[RATE] = _rates(history)
    return found


def _metric(history: History, name: str) -> Series:
    in_train = name.startswith("train")
    place = in_training if in_train else after_training
    runs = _runs(history.rows, place, lambda row: row.metrics.get(name))
    latest = number(runs[-1][-1][1]) if runs else ""
    return Series(name, runs, "train" if in_train else "valid", latest)


def _has_moved(history: History) -> bool:
    """Whether the rates of the rows differ by more than the changes by hand, which are marks on the curve."""
    by_hand = sum(mark.label.startswith("lr ") for mark in history.annotations)
    return len({row.lr for row in history.rows[-POINTS:]}) > 1 + by_hand


def _rates(history: History) -> Series:
    """The learning rate by steps where they are known, else by epochs."""
    steps = [(point.at - 0.5, point.lr) for point in history.live if point.lr is not None]
    until = steps[0][0] if steps else math.inf
    earlier = [(after_training(row), row.lr) for row in history.rows if after_training(row) < until]
    points = [*earlier, *steps]
    latest = learning_rate(points[-1][1]) if points else ""
    return Series(RATE, [points] if points else [], "lr", latest)


def _runs(
    rows: list[Row], place: Callable[[Row], float], value: Callable[[Row], float | None], log: bool = False
) -> list[list[Point]]:
    """The points of a line, cut where a value is missing or cannot be drawn, so that a gap is seen as a gap."""
    runs: list[list[Point]] = [[]]
    for row in rows:
        y = value(row)
        if y is not None and math.isfinite(y) and (y > 0 or not log):
            runs[-1].append((place(row), y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run][-POINTS:]


# ---------------------------------------------------------------------- axes


def _values_axis(values: list[float], bottom: float, top: float, log: bool = False) -> Axis:
    return around(values, bottom, top, log) if values else Axis(0, 1, bottom, top)


def _room(ticks: list[float], log: bool = False) -> float:
    """Pixels that the words of an axis take, with the gap to its lines."""
    return 8 + LETTER * max(map(len, tick_words(ticks, log)), default=0)


def _epoch_axis(history: History, epochs: int | None, area: Area) -> Axis:
    rows, live = history.rows, history.live
    first = min([row.epoch for row in rows[:1]] + [math.floor(point.at) for point in live[:1]], default=0)
    done = max([row.epoch + 1 for row in rows[-1:]] + [math.ceil(point.at) for point in live[-1:]], default=1)
    end = done
    if epochs is not None and epochs > done:
        end = epochs if epochs - first <= WHOLE_AXIS else min(epochs, first + _roomy(done - first))
    return Axis(first - 0.5, max(end, first + 1) - 0.5, area.left, area.right)


def _roomy(epochs: int) -> int:
    """Room for so many epochs and some more: 10, 20, 40, 80, ..., so that the lines keep their place for long.

    >>> _roomy(3), _roomy(11), _roomy(80)
    (10, 20, 80)
    """
    room = 10
    while room < epochs:
        room *= 2
    return room


# ---------------------------------------------------------------------- shapes


def _losses(history: History, losses: _Losses, area: Area, along: Axis, up: Axis) -> list[Shape]:
    shapes = _grid(area, along, up, empty=not losses.values) + _marks(history, area, along)
    shapes += lines(losses.live, "live", along, up, width=1.2)
    shapes += lines(losses.train, "train", along, up)
    shapes += lines(losses.valid, "valid", along, up, dots=len(history) <= 24)

    best = history.best
    if best is not None and math.isfinite(score(best)) and (score(best) > 0 or not up.log):
        validated = best.valid_loss is not None
        x = along.at(after_training(best) if validated else in_training(best))
        shapes.append(Dot(x, up.at(score(best)), 6, "best" if validated else "train", False))
    return shapes


def _grid(area: Area, along: Axis, up: Axis, empty: bool) -> list[Shape]:
    ticks, epochs = up.ticks(), along.ticks(6, whole=True)
    shapes: list[Shape] = [Line(((area.left, up.at(tick)), (area.right, up.at(tick))), "grid") for tick in ticks]
    shapes += [Line(((along.at(tick), area.bottom), (along.at(tick), area.bottom + 4)), "mark") for tick in epochs]
    shapes.append(Line(((area.left, area.bottom), (area.right, area.bottom)), "mark"))

    if not empty:  # the scale is not known before the first loss
        words = zip(ticks, tick_words(ticks, up.log), strict=True)
        shapes += [Word(area.left - 6, up.at(tick) + 4, word, "end") for tick, word in words]
    shapes += [Word(along.at(tick), area.bottom + 17, f"{tick:.0f}", "middle") for tick in epochs]
    shapes.append(Word(area.left - 8, area.bottom + 17, "epoch", "end"))
    return shapes


def _marks(history: History, area: Area, along: Axis) -> list[Shape]:
    marks = [mark for mark in history.annotations if along.low <= mark.epoch - 0.5 <= along.high][-MARKS:]
    middle = (area.left + area.right) / 2
    shapes: list[Shape] = []
    for i, mark in enumerate(marks):
        x = along.at(mark.epoch - 0.5)
        shapes.append(Line(((x, area.bottom), (x, area.top)), "mark", dashed=True))

        younger = len(marks) - 1 - i
        if younger < WORDED_MARKS:
            anchor: Literal["start", "end"] = "end" if x > middle else "start"
            y = area.top + 12 + 14 * younger  # one below the other: they never overlap
            shapes.append(Word(x + (-4 if anchor == "end" else 4), y, one_line(mark.label, 24), anchor))
    return shapes


def _legend(history: History, outlook: Outlook, live: bool, log: bool) -> list[Shape]:
    entries: list[tuple[Role, str]] = [("train", "train")]
    validated = "valid_loss" in (*outlook.columns, *history.columns)
    if validated:
        entries.append(("valid", "valid"))
    if live or outlook.epochs is not None:
        entries.append(("live", "steps"))

    shapes: list[Shape] = [Word(6, 14, "loss (log)" if log else "loss", role="strong")]
    x = 76.0
    for role, name in entries:
        shapes.append(Line(((x, 10), (x + 16, 10)), role, 1.2 if role == "live" else 2))
        if role == "valid":
            shapes.append(Dot(x + 8, 10, 2.6, "valid"))
        shapes.append(Word(x + 21, 14, name))
        x += 60

    best = history.best
    if best is not None:
        shapes.append(Dot(x + 6, 10, 5, "best" if best.valid_loss is not None else "train", False))
        shapes.append(Word(x + 16, 14, f"best {number(score(best))}, epoch {best.epoch}"))
    return shapes


def _hints(history: History, area: Area, along: Axis) -> list[Hint]:
    """Bands, one for each row; of many rows some, each in the middle of a band that stands for its neighbours too."""
    rows = history.rows
    bands = min(HINTS, len(rows))
    hints = []
    for i in range(bands):
        group = rows[len(rows) * i // bands : len(rows) * (i + 1) // bands]
        left, right = along.at(group[0].epoch - 0.5), along.at(after_training(group[-1]))
        hints.append(Hint(Area(left, area.top, right, area.bottom), _values(group[len(group) // 2])))
    return hints


def _values(row: Row) -> str:
    values = {"train_loss": row.train_loss, "valid_loss": row.valid_loss, **row.metrics}
    words = [f"{one_line(name, 24)} {number(value)}" for name, value in values.items() if value is not None]
    return f"epoch {row.epoch}: " + ", ".join([*words, f"lr {learning_rate(row.lr)}"])
