"""What stays in the notebook when a run is over: one summary line, the curve and the table, in one mime bundle.

It needs no widget, no style, no script and no SVG, so that GitHub, nbconvert and a reopened notebook show it as it is.
"""

import base64
from html import escape

from quik_nb.history import History
from quik_nb.views import table
from quik_nb.views.chart_layout import WIDTH, describe
from quik_nb.views.png import png


def record(history: History, summary: str = "") -> dict[str, str]:
    """The bundle: `text/html` and `text/plain`; the summary is its first line (`repr(history)` where none is given)."""
    summary = summary or repr(history)
    return {"text/html": _html(history, summary), "text/plain": _text(history, summary)}


def _html(history: History, summary: str) -> str:
    parts = [f"<p>{_set_off(summary)}</p>"]
    if history.rows or history.live:
        data = base64.b64encode(png(history)).decode()
        parts.append(f'<img src="data:image/png;base64,{data}" width="{WIDTH}" alt="{escape(describe(history))}">')
    if history.rows:
        parts.append(table.html(history))
    return "\n".join(parts)


def _set_off(summary: str) -> str:
    """The first part of the summary, which says how the run ended, in bold."""
    ending, dot, rest = summary.partition(" · ")
    return f"<b>{escape(ending)}</b>{dot}{escape(rest)}"


def _text(history: History, summary: str) -> str:
    return f"{summary}\n{table.text(history)}" if history.rows else summary
