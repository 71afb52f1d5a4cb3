"""The picture as a small SVG written by hand: crisp, some kilobytes, a millisecond, in the colours of the page.

It is for live output only. Saved notebooks hold a PNG instead, since GitHub and JupyterLab's sanitiser drop SVG.
"""

from collections.abc import Sequence
from html import escape
from typing import Literal

from quik_nb.history import History
from quik_nb.views.chart_layout import COLOURS, FONT, Dot, Line, Picture, Point, Role, Shape, picture

Scale = Literal["linear", "log"]

THEMED: dict[Role, str] = {
    # JupyterLab's variables follow its theme; elsewhere the page's own text colour is right on any ground
    "grid": "var(--jp-border-color2, rgba(128, 128, 128, .35))",
    "mark": "var(--jp-border-color0, rgba(128, 128, 128, .9))",
    "word": "var(--jp-content-font-color1, currentColor)",
    "strong": "var(--jp-content-font-color0, currentColor)",
}


def svg(history: History, epochs: int | None = None, scales: Sequence[Scale] = ("linear",)) -> str:
    """The curve as one `<svg>` element, with a group of class `quik-linear` or `quik-log` for each scale asked for.

    With both groups in it a page can switch by CSS alone, also while the kernel is busy.
    """
    pictures = {scale: picture(history, epochs, log=scale == "log") for scale in scales}
    first = next(iter(pictures.values()))
    groups = [f'<g class="quik-{scale}">{_group(picture)}</g>' for scale, picture in pictures.items()]
    alt = escape(first.alt)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {first.width} {first.height}" width="{first.width}" '
        f'height="{first.height}" style="max-width:100%;height:auto" role="img" aria-label="{alt}" '
        f'font-family="var(--jp-ui-font-family, system-ui, sans-serif)" font-size="{FONT}" '
        f'fill="none" stroke-linejoin="round"><title>{alt}</title>{"".join(groups)}</svg>'
    )


def _group(picture: Picture) -> str:
    return "".join(map(_element, picture.shapes))


def _element(shape: Shape) -> str:
    paint = THEMED.get(shape.role) or COLOURS[shape.role]
    match shape:
        case Line(points, role, width, dashed):
            more = ' stroke-dasharray="3 3"' if dashed else ' opacity=".55"' if role == "live" else ""
            return f'<polyline points="{_points(points)}" stroke="{paint}" stroke-width="{width}"{more}/>'
        case Dot(x, y, radius, _, filled):
            inside = f'fill="{paint}"' if filled else f'stroke="{paint}" stroke-width="1.6"'
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" {inside}/>'
        case _:
            weight = ' font-weight="600"' if shape.role == "strong" else ""
            return (
                f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" text-anchor="{shape.anchor}" fill="{paint}"{weight}>'
                f"{escape(shape.text)}</text>"
            )


def _points(points: list[Point]) -> str:
    return " ".join([f"{x:.1f},{y:.1f}" for x, y in points])
