"""What a picture is made of: lines, dots, words and hints at pixel positions, and the colours of their roles.

Nothing is drawn here and nothing is decided about a training: see `chart_layout` for the one, `svg` and `png` for the
other.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from quik_nb.views.axis import Axis

WIDTH = 440
"""pixels"""
FONT = 12
"""pixels; at a width of 400 still legible"""
LETTER = 7.2
"""pixels of a letter at most in the mean of a few"""
POINTS = 160
"""Points of a line at most; more could not be told apart."""

Role = Literal["train", "valid", "live", "lr", "grid", "word", "strong", "mark", "best"]
Point = tuple[float, float]

COLOURS: dict[Role, str] = {
    # the lines differ for every kind of colour vision, and all have a contrast of 3:1 on white and on near-black
    "train": "#2f83cf",
    "valid": "#d9730d",
    "live": "#7c93ad",
    "lr": "#23968a",
    "best": "#d9730d",
    "grid": "#d0d0d0",
    "mark": "#808080",
    "word": "#444444",
    "strong": "#111111",
}


class Line(NamedTuple):
    """A polyline; `width` in pixels."""

    points: tuple[Point, ...]
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


class Area(NamedTuple):
    """A rectangle of the picture, pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float


class Hint(NamedTuple):
    """What the pointer is told within an area."""

    area: Area
    text: str


Shape = Line | Dot | Word


@dataclass(frozen=True, slots=True)
class Picture:
    """Shapes in drawing order, what the pointer is told, and a sentence for those who cannot see it."""

    shapes: list[Shape]
    hints: list[Hint]
    alt: str
    height: int
    width: int = WIDTH


def lines(
    runs: list[list[Point]], role: Role, along: Axis, up: Axis, width: float = 2.0, dots: bool = False
) -> list[Shape]:
    """The pieces of a line, given in data coordinates; a piece of one point is a dot."""
    shapes: list[Shape] = []
    for run in runs:
        points = tuple([(along.at(x), up.at(y)) for x, y in thin(run)])
        if len(points) > 1:
            shapes.append(Line(points, role, width))
        if dots or len(points) == 1:
            shapes += [Dot(x, y, 2.6, role) for x, y in points]
    return shapes


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
