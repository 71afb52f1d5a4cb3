"""What stays in the notebook when a run is over, and what stands in for a live view in a page without its kernel.

Both are one mime bundle with the places of the live view: status on top, the table, the curve beside it, a footer. It
needs no widget, no script and no SVG element. With its style it follows the page's theme; where style is stripped, as
on GitHub and in a notebook that is not trusted, a picture whose inks read on light and dark shows instead of the SVG.
"""

import base64
from html import escape

from quik_nb.history import History
from quik_nb.views import html, table
from quik_nb.views.chart_layout import picture
from quik_nb.views.png import png
from quik_nb.views.shapes import Picture
from quik_nb.views.status import RunStatus
from quik_nb.views.svg import svg_file

Bundle = dict[str, str]


def record(history: History, status: RunStatus, uid: str = "") -> Bundle:
    """The bundle of a run that is over: `text/html` and `text/plain`.

    Args:
        history: the rows.
        status: of the run.
        uid: a name for it that is no other's in the page.
    """
    summary = status.summary()
    if not history.rows and not history.live:
        return {"text/html": f"<p>{_set_off(summary)}</p>", "text/plain": summary}

    chart = picture(history, html.outlook(status)._replace(epochs=None))
    png_data = _data_uri("image/png", png(chart))
    svg_data = _data_uri("image/svg+xml", svg_file(chart).encode())
    # a page that drops `srcset` drops the style as well, and gets the picture that needs none
    image = _image(chart, f'src="{png_data}" srcset="{svg_data}"')
    page = _page(history, status, uid, image, html.small_print(history, status))
    return {"text/html": page, "text/plain": _text(history, summary)}


def stand_in(history: History, status: RunStatus, uid: str, go_on: str) -> Bundle:
    """The bundle that shows a run up to now wherever its live view is gone, such as in a page that is loaded again.

    Args:
        history: the rows.
        status: of the run.
        uid: a name for it that is no other's in the page; the class `quik-UID` hides it beside the live view.
        go_on: how to see more of the run.
    """
    image = _svg_image(history, status)
    page = _page(history, status, uid, image, escape(go_on))
    return {"text/html": page, "text/plain": _text(history, f"{status.summary()}\n{go_on}")}


def in_place(history: History, status: RunStatus, uid: str, hint: str) -> Bundle:
    """The bundle that is a live view by itself: the bars instead of the summary."""
    image = _svg_image(history, status)
    footer = " · ".join(part for part in (escape(hint), html.small_print(history, status)) if part)
    page = _page(history, status, uid, image, footer, top=html.bar(status))
    return {"text/html": page, "text/plain": _text(history, status.status())}


def _page(history: History, status: RunStatus, uid: str, image: str, footer: str, top: str = "") -> str:
    ahead = html.outlook(status)._replace(epochs=None)
    parts = [
        html.STYLE,
        f'<div class="quik-wide">{top or _summary(status)}</div>',
        html.rows(history, ahead),
        f'<div class="quik-curve">{image}{html.note(history, status)}</div>',
        '<br clear="all">',
        f'<small class="quik-footer quik-wide">{footer}</small>',
    ]
    return f'<div class="quik-view quik-{uid}">\n' + "\n".join(parts) + "\n</div>"


def _summary(status: RunStatus) -> str:
    return f'<p class="quik-bar">{_set_off(status.summary())}<br><small>{escape(status.pace())}</small></p>'


def _svg_image(history: History, status: RunStatus) -> str:
    chart = picture(history, html.outlook(status))
    return _image(chart, f'src="{_data_uri("image/svg+xml", svg_file(chart).encode())}"')


def _image(chart: Picture, source: str) -> str:
    """The picture, and over it invisible bands that tell the pointer their values, at any size of the picture."""
    return (
        f'<div class="quik-chart"><img class="quik-picture" hspace="20" {source} width="{chart.width}" '
        f'height="{chart.height}" alt="{escape(chart.alt)}">{_hints(chart)}</div>'
    )


def _hints(chart: Picture) -> str:
    if not chart.hints:
        return ""
    first, last = chart.hints[0].area, chart.hints[-1].area
    edges = {
        "left": first.left / chart.width,
        "right": 1 - last.right / chart.width,
        "top": first.top / chart.height,
        "bottom": 1 - first.bottom / chart.height,
    }
    place = ";".join(f"{name}:{100 * share:.1f}%" for name, share in edges.items())
    bands = "".join(f'<i title="{escape(hint.text)}"></i>' for hint in chart.hints)
    return f'<div class="quik-hints" style="{place}">{bands}</div>'


def _data_uri(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def _set_off(summary: str) -> str:
    """The first part of the summary, which says how the run ended, in bold."""
    ending, dot, rest = summary.partition(" · ")
    return f"<b>{escape(ending)}</b>{dot}{escape(rest)}"


def _text(history: History, summary: str) -> str:
    return f"{summary}\n{table.text(history)}" if history.rows else summary
