"""A history laid out as a small picture: lines, dots and words at pixel positions, drawn by no one yet.

The live curve (SVG) and the saved one (PNG) are both drawn from this, so that a run's end does not change its look.
The picture is a pure function of the rows. Its size and its number of points are fixed, however long the history is.

Epoch 3 is the band from 2.5 to 3.5 with its row in the middle, so that the mean loss of an epoch stands in the middle
of the live losses that it is the mean of.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from quik_nb.events import Row
from quik_nb.history import History, score
from quik_nb.views.axis import Axis, around, tick_words
from quik_nb.views.format import number, one_line

WIDTH, HEIGHT = 440, 290
"""pixels"""
FONT = 12
"""pixels; at a width of 400 still legible"""
LETTER = 7.2
"""pixels of a letter at most in the mean of a few"""
POINTS = 160
"""Points of a line at most; more could not be told apart."""
LIVE_UNTIL = 30
"""Rows up to which the live losses of finished epochs are drawn; later they are a blur behind the line."""
PANELS = 3
"""Metrics that are drawn; all of them are in the table."""
MARKS = 24
"""Marks that are drawn, the latest; the latest few of them with their words."""
WORDED_MARKS = 4

Role = Literal["train", "valid", "live", "grid", "word", "strong", "mark", "best"]
Point = tuple[float, float]

COLOURS: dict[Role, str] = {
    # blue and orange differ for every kind of colour vision, and both have a contrast of 3:1 on white and on near-black
    "train": "#2f83cf",
    "valid": "#d9730d",
    "live": "#2f83cf",
    "best": "#d9730d",
    "grid": "#d0d0d0",
    "mark": "#808080",
    "word": "#444444",
    "strong": "#111111",
}


class Line(NamedTuple):
    """A polyline; `width` in pixels."""

    points: list[Point]
    role: Role
    width: float = 1.0
    dashed: bool = False


class Dot(NamedTuple):
    """A disc, or a ring where it is not filled; `radius` in pixels."""

    x: float
    y: float
    radius: float
    role: Role
    filled: bool = True


class Word(NamedTuple):
    """Words on a base line."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"] = "start"
    role: Role = "word"


Shape = Line | Dot | Word


@dataclass(frozen=True, slots=True)
class Picture:
    """Shapes in drawing order, and the same told in a sentence for those who cannot see it."""

    shapes: list[Shape]
    alt: str
    width: int = WIDTH
    height: int = HEIGHT


class Area(NamedTuple):
    """A rectangle of the picture, pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float


def picture(history: History, epochs: int | None = None, log: bool = False) -> Picture:
    """Lay out the losses, and under them the metrics.

    `epochs` is where the run is to end, if it still runs: the axis then leaves room to grow, in few steps.
    """
    metrics = [name for name in history.columns if name not in ("train_loss", "valid_loss")][:PANELS]
    losses = _Losses.of(history, log)
    up = _values_axis(losses.values, HEIGHT - (116 if metrics else 24), 26, log)
    area = Area(max(52, _room(up.ticks(), log)), 26, WIDTH - 10, up.start)
    along = _epoch_axis(history, epochs, area)
    shapes = _losses(history, losses, area, along, up)
    if metrics:
        shapes += _metrics(history, metrics, along)
    return Picture(shapes, alt=describe(history))


class _Losses(NamedTuple):
    """The lines of the losses in data coordinates, cut where there are gaps."""

    train: list[list[Point]]
    valid: list[list[Point]]
    live: list[list[Point]]

    @classmethod
    def of(cls, history: History, log: bool) -> "_Losses":
        train = _runs(history.rows, lambda row: row.train_loss, log)
        valid = _runs(history.rows, lambda row: row.valid_loss, log)
        return cls(train, valid, [_drawable([(at - 0.5, loss) for at, loss in _live(history)], log)])

    @property
    def values(self) -> list[float]:
        return [y for lines in self for run in lines for _, y in run]


def _values_axis(values: list[float], bottom: float, top: float, log: bool = False) -> Axis:
    return around(values, bottom, top, log) if values else Axis(0, 1, bottom, top)


def _room(ticks: list[float], log: bool = False) -> float:
    """Pixels that the words of an axis take, with the gap to its lines."""
    return 8 + LETTER * max(map(len, tick_words(ticks, log)), default=0)


def describe(history: History) -> str:
    """The curve in words, as its text alternative."""
    if not history.rows:
        return "Loss curve, no epoch finished yet"
    last, best = history.rows[-1], history.best
    words = f"Loss curve over {len(history)} epochs; last train loss {number(last.train_loss)}"
    if last.valid_loss is not None:
        words += f", valid loss {number(last.valid_loss)}"
    return words + (f"; best epoch {best.epoch} with {number(score(best))}" if best is not None else "")


def _losses(history: History, losses: _Losses, area: Area, along: Axis, up: Axis) -> list[Shape]:
    shapes = _grid(area, along, up) + _marks(history, area, along)
    shapes += _lines(losses.live, "live", along, up, width=1.2)
    shapes += _lines(losses.train, "train", along, up, width=2)
    shapes += _lines(losses.valid, "valid", along, up, width=2, dots=len(history) <= 24)
    best = history.best
    if best is not None and math.isfinite(score(best)) and (score(best) > 0 or not up.log):
        shapes.append(
            Dot(along.at(best.epoch), up.at(score(best)), 6, "best" if best.valid_loss is not None else "train", False)
        )
    return shapes + _legend(history, bool(losses.valid), up.log)


def _metrics(history: History, names: list[str], along: Axis) -> list[Shape]:
    """Small panels side by side, one metric each, with its latest value as the title."""
    shapes: list[Shape] = []
    bottom, top = HEIGHT - 10.0, HEIGHT - 66.0
    runs = {name: _runs(history.rows, lambda row, name=name: row.metrics.get(name)) for name in names}  # type: ignore[misc]
    ups = {name: _values_axis([y for run in runs[name] for _, y in run], bottom, top) for name in names}
    room = max(_room(up.ticks(3)) for up in ups.values())
    gap, left, right = max(46.0, room), max(52.0, room), float(WIDTH - 10)
    width = (right - left - gap * (len(names) - 1)) / len(names)
    for i, (name, up) in enumerate(ups.items()):
        start = left + i * (width + gap)
        area = Area(start, top, start + width, bottom)
        here = Axis(along.low, along.high, area.left, area.right)
        ticks = up.ticks(3)
        shapes += [Line([(area.left, up.at(tick)), (area.right, up.at(tick))], "grid") for tick in ticks]
        shapes += [
            Word(area.left - 6, up.at(tick) + 4, word, "end")
            for tick, word in zip(ticks, tick_words(ticks), strict=True)
        ]
        shapes += _lines(runs[name], "valid", here, up, width=1.8)
        latest = f"{runs[name][-1][-1][1]:.3g}" if runs[name] else ""
        letters = max(4, int(width / LETTER) - len(latest) - 1)
        shapes.append(Word(area.left, area.top - 8, f"{one_line(name, letters)} {latest}", role="strong"))
    return shapes


def _epoch_axis(history: History, epochs: int | None, area: Area) -> Axis:
    rows, live = history.rows, history.live
    first = min([row.epoch for row in rows[:1]] + [math.floor(at) for at, _ in live[:1]], default=0)
    done = max([row.epoch + 1 for row in rows[-1:]] + [math.ceil(at) for at, _ in live[-1:]], default=1)
    end = done
    if epochs is not None and epochs > done:
        # rooms of 5, 10, 20, 50, ... epochs: the lines keep their place for long, and the axis is never mostly empty
        room = next(r for n in range(20) for r in (5 * 10**n, 10 * 10**n, 20 * 10**n) if first + r >= done)
        end = min(epochs, first + room)
    return Axis(first - 0.5, max(end, first + 1) - 0.5, area.left, area.right)


def _grid(area: Area, along: Axis, up: Axis) -> list[Shape]:
    ticks, epochs = up.ticks(), along.ticks(6, whole=True)
    shapes: list[Shape] = [Line([(area.left, up.at(tick)), (area.right, up.at(tick))], "grid") for tick in ticks]
    shapes += [Line([(along.at(tick), area.bottom), (along.at(tick), area.bottom + 4)], "grid") for tick in epochs]
    shapes.append(Line([(area.left, area.bottom), (area.right, area.bottom)], "mark"))
    words = zip(ticks, tick_words(ticks, up.log), strict=True)
    shapes += [Word(area.left - 6, up.at(tick) + 4, word, "end") for tick, word in words]
    room = area.right - 54  # where the word "epoch" stands
    shapes += [Word(along.at(t), area.bottom + 17, f"{t:.0f}", "middle") for t in epochs if along.at(t) < room]
    shapes.append(Word(area.right, area.bottom + 17, "epoch", "end"))
    return shapes


def _marks(history: History, area: Area, along: Axis) -> list[Shape]:
    marks = [mark for mark in history.annotations if along.low <= mark.epoch - 0.5 <= along.high][-MARKS:]
    shapes: list[Shape] = []
    for i, mark in enumerate(marks):
        x = along.at(mark.epoch - 0.5)
        shapes.append(Line([(x, area.bottom), (x, area.top)], "mark", dashed=True))
        if i >= len(marks) - WORDED_MARKS:
            anchor: Literal["start", "end"] = "end" if x > (area.left + area.right) / 2 else "start"
            y = area.top + 12 + 14 * ((len(marks) - 1 - i) % WORDED_MARKS)  # one below the other: they never overlap
            shapes.append(Word(x + (4 if anchor == "start" else -4), y, one_line(mark.label, 24), anchor))
    return shapes


def _legend(history: History, valid: bool, log: bool) -> list[Shape]:
    shapes: list[Shape] = [Word(6, 14, "loss (log)" if log else "loss", role="strong")]
    x = 84.0
    for role, name in (("train", "train"), ("valid", "valid"))[: 1 + valid]:
        shapes.append(Line([(x, 10), (x + 18, 10)], role, 2))  # type: ignore[arg-type]
        if role == "valid":
            shapes.append(Dot(x + 9, 10, 2.6, "valid"))
        shapes.append(Word(x + 24, 14, name))
        x += 68
    best = history.best
    if best is not None:
        shapes += [Dot(x + 6, 10, 5, "best" if valid else "train", False)]
        shapes += [Word(x + 16, 14, f"best {number(score(best))}, epoch {best.epoch}")]
    return shapes


def _lines(
    runs: Iterable[list[Point]], role: Role, along: Axis, up: Axis, width: float, dots: bool = False
) -> list[Shape]:
    shapes: list[Shape] = []
    for run in runs:
        points = [(along.at(x), up.at(y)) for x, y in thin(run)]
        if len(points) > 1:
            shapes.append(Line(points, role, width))
        if dots or len(points) == 1:
            shapes += [Dot(x, y, 2.6, role) for x, y in points]
    return shapes


def _runs(rows: list[Row], value: Callable[[Row], float | None], log: bool = False) -> list[list[Point]]:
    """The points of a line, cut where a value is missing or cannot be drawn, so that a gap is seen as a gap."""
    runs: list[list[Point]] = [[]]
    for row in rows:
        y = value(row)
        if y is not None and math.isfinite(y) and (y > 0 or not log):
            runs[-1].append((float(row.epoch), y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run][-POINTS:]


def _drawable(points: list[Point], log: bool) -> list[Point]:
    return [(x, y) for x, y in points if y > 0] if log else points


def _live(history: History) -> list[Point]:
    if len(history) <= LIVE_UNTIL:
        return history.live
    done = history.rows[-1].epoch + history.rows[-1].fraction
    return [point for point in history.live if point[0] >= done]


def thin(points: list[Point], limit: int = POINTS) -> list[Point]:
    """At most `limit` points that look the same: the ends, and the lowest and the highest of each stretch between."""
    if len(points) <= limit:
        return points
    inner, stretches = points[1:-1], (limit - 2) // 2
    kept = [points[0]]
    for i in range(stretches):
        stretch = inner[len(inner) * i // stretches : len(inner) * (i + 1) // stretches]
        low, high = min(stretch, key=_height), max(stretch, key=_height)
        kept += sorted({low, high})
    return [*kept, points[-1]]


def _height(point: Point) -> float:
    return point[1]
