"""The small panels under the losses: one value each, side by side, with its whole name and its latest value."""

from typing import NamedTuple

from quik_nb.views.axis import Axis, around, tick_words
from quik_nb.views.format import one_line
from quik_nb.views.shapes import LETTER, WIDTH, Area, Line, Point, Role, Shape, Word, lines

LEFT = 52.0
"""pixels for the words of an axis at least"""
GAP = 14.0
"""pixels between the end of one panel and the words of the next"""
VALUE_LETTERS = 8
"""letters that the latest value takes at most, as a rule"""
PANEL_HEIGHT = 56.0
"""pixels"""
ROW_HEIGHT = 82
"""pixels of a row of panels: its titles, the panels, and the gap below"""


class Series(NamedTuple):
    """One value over the epochs."""

    name: str
    runs: list[list[Point]]
    """pieces of its line in data coordinates"""
    role: Role
    latest: str
    """its latest value in words; empty where there is none yet"""


class PanelGrid(NamedTuple):
    """Which values get a panel, and how many panels stand side by side."""

    names: list[str]
    across: int
    down: int

    @property
    def height(self) -> int:
        """Pixels of all rows."""
        return self.down * ROW_HEIGHT

    @classmethod
    def of(cls, names: list[str], keep_last: bool = False) -> "PanelGrid":
        """As many as fit with their whole names: three in one row, else four in two, else two.

        Args:
            names: in the order in which they are wanted.
            keep_last: whether the last one is to be there, whichever are left out.

        >>> PanelGrid.of(["accuracy", "f1"])
        PanelGrid(names=['accuracy', 'f1'], across=2, down=1)
        >>> PanelGrid.of(["mean_absolute_error_in_dollars", "f1"])
        PanelGrid(names=['mean_absolute_error_in_dollars', 'f1'], across=1, down=2)
        """
        across, down, places = len(names), min(1, len(names)), len(names)
        if len(names) > 3 or not _fit(names, across):
            across = 2 if _fit(_chosen(names, 4, keep_last), 2) else 1
            places = min(len(names), 2 * across)
            down = -(-places // across)
        return cls(_chosen(names, places, keep_last), across, down)


def _chosen(names: list[str], places: int, keep_last: bool) -> list[str]:
    if len(names) <= places or not keep_last:
        return names[:places]
    return [*names[: places - 1], names[-1]]


def _fit(names: list[str], across: int) -> bool:
    """Whether all names can be written whole over panels of which so many stand side by side."""
    return across <= 3 and max(map(len, names), default=0) <= _letters(across)


def _letters(across: int) -> int:
    """Letters that fit above one of so many panels and its axis."""
    return int((WIDTH - 16 - GAP * (across - 1)) / across / LETTER) if across else 0


def draw_panels(grid: PanelGrid, series: list[Series], along: Axis, area: Area) -> list[Shape]:
    """The panels as shapes.

    Args:
        grid: how many stand where.
        series: what they show, in the order of the grid's names.
        along: the epochs.
        area: from the left end of the first panel's axis to the right end of the last; `top` is where the first row's
            panels begin.
    """
    ups = [_values_axis(one, area.top) for one in series]
    axis_room = max([LEFT, *(8 + LETTER * max(map(len, _words(up)), default=0) for up in ups)])
    pitch = (area.right + GAP) / max(1, grid.across)

    shapes: list[Shape] = []
    for i, (one, up) in enumerate(zip(series, ups, strict=True)):
        down = (i // grid.across) * ROW_HEIGHT
        left = (i % grid.across) * pitch + axis_room
        panel = Area(left, area.top + down, left + pitch - axis_room - GAP, area.top + down + PANEL_HEIGHT)
        here = Axis(along.low, along.high, panel.left, panel.right)
        shapes += _panel(one, panel, here, Axis(up.low, up.high, panel.bottom, panel.top))
        shapes += _title(one, panel, axis_room, _letters(grid.across))
    return shapes


def _values_axis(series: Series, top: float) -> Axis:
    values = [y for run in series.runs for _, y in run]
    return around(values, top + PANEL_HEIGHT, top) if values else Axis(0, 1, top + PANEL_HEIGHT, top)


def _words(up: Axis) -> list[str]:
    return tick_words(up.ticks(3))


def _panel(series: Series, panel: Area, along: Axis, up: Axis) -> list[Shape]:
    ticks = up.ticks(3)
    shapes: list[Shape] = [Line(((panel.left, up.at(tick)), (panel.right, up.at(tick))), "grid") for tick in ticks]
    if series.runs:  # the scale is not known before the first value
        words = zip(ticks, _words(up), strict=True)
        shapes += [Word(panel.left - 6, up.at(tick) + 4, word, "end") for tick, word in words]
    return shapes + lines(series.runs, series.role, along, up, width=1.8)


def _title(series: Series, panel: Area, axis_room: float, letters: int) -> list[Shape]:
    """The whole name, and the latest value where there is room for it."""
    name = one_line(series.name, letters)
    title = f"{name} {series.latest}" if len(name) + 1 + len(series.latest) <= letters else name
    start = min(panel.left, panel.right - LETTER * (len(name) + 1 + VALUE_LETTERS))
    return [Word(max(panel.left - axis_room + 6, start), panel.top - 8, title.strip(), role="strong")]
