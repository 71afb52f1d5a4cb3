"""The picture as a small SVG written by hand: crisp, some kilobytes, a millisecond, in the colours of the page.

Live, it is a part of the page and takes its colours from there. In a saved notebook it is the source of an `img`, since
GitHub and JupyterLab's sanitiser drop SVG that stands in the page; such a picture sees nothing of the page but whether
it is dark.
"""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from quik_nb.history import History
from quik_nb.views.chart_layout import NOTHING_AHEAD, Outlook, picture
from quik_nb.views.shapes import COLOURS, FONT, Dot, Hint, Line, Picture, Point, Role, Shape, Word

Paints = dict[Role, str]
"""What stands in `stroke` and `fill` for a role."""

OF_PAGE: Paints = COLOURS | {
    # JupyterLab's variables follow its theme; elsewhere the page's own text colour is right on any ground
    "grid": "var(--jp-border-color2, rgba(128, 128, 128, .35))",
    "mark": "var(--jp-border-color0, rgba(128, 128, 128, .9))",
    "word": "var(--jp-content-font-color1, currentColor)",
    "strong": "var(--jp-content-font-color0, currentColor)",
}

OF_FILE: Paints = COLOURS | {
    "grid": "rgba(128, 128, 128, .35)",
    "mark": "rgba(128, 128, 128, .9)",
    "word": "var(--word)",
    "strong": "var(--strong)",
}

FILE_STYLE = (
    "<style>svg{--word:#444;--strong:#111}@media (prefers-color-scheme:dark){svg{--word:#d0d0d0;--strong:#fff}}</style>"
)

PAGE_FONT = "var(--jp-ui-font-family, system-ui, sans-serif)"
FILE_FONT = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"


def svg(history: History, outlook: Outlook = NOTHING_AHEAD) -> str:
    """The curve as one `<svg>` element with both scales, of which the page shows one by CSS.

    What the scales have in common is drawn once; the rest is in groups of class `quik-linear` and `quik-log`, so that
    a page can switch also while the kernel is busy.
    """
    linear, log = (picture(history, outlook, log=log) for log in (False, True))
    both = set(linear.shapes) & set(log.shapes)
    body = [
        _elements((shape for shape in linear.shapes if shape in both), OF_PAGE),
        _group("quik-linear", [shape for shape in linear.shapes if shape not in both]),
        _group("quik-log", [shape for shape in log.shapes if shape not in both]),
        _hints(linear.hints),
    ]
    return _frame(linear, "".join(body), PAGE_FONT)


def svg_file(picture: Picture) -> str:
    """A picture as a file of its own, which follows the colour scheme of the page that shows it."""
    return _frame(picture, FILE_STYLE + _elements(picture.shapes, OF_FILE), FILE_FONT)


def _frame(picture: Picture, body: str, font: str) -> str:
    alt = escape(picture.alt)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {picture.width} {picture.height}" '
        f'width="{picture.width}" height="{picture.height}" style="max-width:100%;height:auto" role="img" '
        f'aria-label="{alt}" font-family="{font}" font-size="{FONT}" '
        f'fill="none" stroke-linejoin="round"><title>{alt}</title>{body}</svg>'
    )


def _group(name: str, shapes: list[Shape]) -> str:
    return f'<g class="{name}">{_elements(shapes, OF_PAGE)}</g>'


def _elements(shapes: Iterable[Shape], paints: Paints) -> str:
    """The shapes in order; neighbours that are drawn alike share one element, which halves the bytes."""
    return "".join([_element(list(alike), paints) for _, alike in groupby(shapes, key=_look)])


def _look(shape: Shape) -> tuple[object, ...]:
    """What shapes have in common that can share an element."""
    match shape:
        case Line(_, role, width, dashed):
            return (Line, role, width, dashed)
        case Dot(_, _, radius, role, filled):
            return (Dot, role, radius, filled)
        case Word(_, _, _, anchor, role):
            return (Word, role, anchor)


def _element(alike: Sequence[Shape], paints: Paints) -> str:
    paint = paints[alike[0].role]
    match alike[0]:
        case Line(_, _, width, dashed):
            dashes = ' stroke-dasharray="3 3"' if dashed else ""
            path = "".join([f"M{_points(shape.points)}" for shape in alike if isinstance(shape, Line)])
            return f'<path d="{path}" stroke="{paint}" stroke-width="{width:g}"{dashes}/>'
        case Dot(_, _, _, _, filled):
            inside = f'fill="{paint}"' if filled else f'stroke="{paint}" stroke-width="1.6"'
            dots = "".join([_dot(shape) for shape in alike if isinstance(shape, Dot)])
            return f"<g {inside}>{dots}</g>"
        case Word(_, _, _, anchor, role):
            weight = ' font-weight="600"' if role == "strong" else ""
            words = "".join([_word(shape) for shape in alike if isinstance(shape, Word)])
            return f'<g fill="{paint}" text-anchor="{anchor}"{weight}>{words}</g>'


def _dot(dot: Dot) -> str:
    return f'<circle cx="{_number(dot.x)}" cy="{_number(dot.y)}" r="{dot.radius:g}"/>'


def _word(word: Word) -> str:
    return f'<text x="{_number(word.x)}" y="{_number(word.y)}">{escape(word.text)}</text>'


def _hints(hints: Sequence[Hint]) -> str:
    return f'<g pointer-events="all">{"".join(map(_hint, hints))}</g>' if hints else ""


def _hint(hint: Hint) -> str:
    left, top, right, bottom = hint.area
    return (
        f'<rect x="{_number(left)}" y="{_number(top)}" width="{_number(right - left)}" '
        f'height="{_number(bottom - top)}"><title>{escape(hint.text)}</title></rect>'
    )


def _points(points: tuple[Point, ...]) -> str:
    return " ".join([f"{x:.1f},{y:.1f}" for x, y in points])


def _number(pixels: float) -> str:
    """A tenth of a pixel is as fine as a screen shows."""
    return f"{round(pixels, 1):g}"
