"""Rows to a table, as text and as HTML; many rows are cut to the latest and the best.

The HTML carries no style and no script, so that it reads the same on GitHub, which strips them, and in a notebook.
"""

from html import escape

from quik_nb.events import Row
from quik_nb.history import History, flat
from quik_nb.views.format import duration, number, one_line

LIMIT = 20
"""Rows that are shown."""
NAME_LIMIT = 24
"""Characters of a metric's name that are shown."""


def html(history: History, limit: int = LIMIT) -> str:
    """The table in HTML; the best row's epoch and loss are bold."""
    columns = history.columns
    names = header(columns)
    head = "".join(f'<th align="right">{escape(name)}</th>' for name in names)
    best = history.best
    parts = [f"<table><thead><tr>{head}</tr></thead><tbody>"]
    for line in shown(history, limit):
        if isinstance(line, int):
            parts.append(f'<tr><td colspan="{len(names)}" align="center"><i>{hidden(line)}</i></td></tr>')
            continue
        values = cells(line, columns)
        if line is best:
            values = _set_off(values, line, "<b>{}</b>")
        parts.append("<tr>" + "".join(f'<td align="right">{value}</td>' for value in values) + "</tr>")
    return "".join(parts) + "</tbody></table>"


def text(history: History, limit: int = LIMIT) -> str:
    """The table in text; the best row's loss has a star."""
    columns = history.columns
    names = header(columns)
    best = history.best
    lines: list[list[str] | str] = [names]
    for line in shown(history, limit):
        if isinstance(line, int):
            lines.append(f"({hidden(line)})")
        else:
            lines.append(mark_best(line, columns) if line is best else cells(line, columns))
    widths = [max(len(line[i]) for line in lines if not isinstance(line, str)) for i in range(len(names))]
    return "\n".join(line if isinstance(line, str) else aligned(line, widths) for line in lines)


def header(columns: list[str]) -> list[str]:
    """Names of all columns as they are shown: epoch, the given ones, time."""
    return ["epoch", *(one_line(name, NAME_LIMIT) for name in columns), "time"]


def cells(row: Row, columns: list[str]) -> list[str]:
    """A row's values as words: epoch, the given columns, time; a partial row says its share of the epoch."""
    values = flat(row)
    epoch = f"{row.epoch}" if row.fraction == 1.0 else f"{row.epoch} ({row.fraction:.0%})".replace("%", " %")
    return [epoch, *(number(values.get(name)) for name in columns), duration(row.time)]


def mark_best(row: Row, columns: list[str]) -> list[str]:
    """`cells`, with a star at the loss that makes this row the best."""
    values = cells(row, columns)
    deciding = _deciding(row)
    return [*values[:deciding], f"*{values[deciding]}", *values[deciding + 1 :]]


def aligned(values: list[str], widths: list[int]) -> str:
    """One line of a text table, all columns to the right."""
    return "  ".join(value.rjust(width) for value, width in zip(values, widths, strict=True))


def shown(history: History, limit: int) -> list[Row | int]:
    """The rows to draw in order, at most `limit`; a number stands where that many rows are left out."""
    rows, best = history.rows, history.best
    if len(rows) <= limit:
        return list(rows)
    tail = rows[-limit:]
    if best is None or any(row is best for row in tail):
        return [len(rows) - limit, *tail]
    return [best, len(rows) - limit, *tail[1:]]


def hidden(count: int) -> str:
    """What stands in place of the rows that are left out."""
    return f"{count:,} more in the history"


def _deciding(row: Row) -> int:
    """Position of the loss by which a row is judged, among its cells."""
    return 1 if row.valid_loss is None else 2


def _set_off(values: list[str], row: Row, frame: str) -> list[str]:
    return [frame.format(value) if i in (0, _deciding(row)) else value for i, value in enumerate(values)]
