"""Rows to a table, as text and as HTML; many rows are cut to the latest and the best.

The HTML carries no style and no script, so that it reads the same on GitHub, which strips them, and in a notebook.
"""

from collections.abc import Sequence
from html import escape

from quik_nb.events import Row
from quik_nb.history import History, flat
from quik_nb.views.format import column, duration, number, one_line

LIMIT = 20
"""Lines that a table has at most below its header."""
CLOCK_FROM = 9.95
"""Seconds below which an epoch's time has a decimal."""
NAME_LIMIT = 24
"""Characters of a metric's name that are shown."""


def html(history: History, limit: int = LIMIT, announced: Sequence[str] = ()) -> str:
    """The table in HTML; the best row's epoch and loss are bold.

    Args:
        history: what to show.
        limit: lines below the header at most.
        announced: columns that are to come; they are there from the start, so that later rows move nothing.
    """
    columns = all_columns(history, announced)
    names = header(columns)
    head = "".join(f'<th align="right">{escape(name)}</th>' for name in names)

    body = []
    for line, values in _lines(history, limit, columns):
        if isinstance(line, int):
            body.append(f'<tr><td colspan="{len(names)}" align="center"><i>{hidden(line)}</i></td></tr>')
            continue
        if line is history.best:
            values = _set_off(values, line, "<b>{}</b>")
        body.append("<tr>" + "".join(f'<td align="right">{value}</td>' for value in values) + "</tr>")

    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def text(history: History, limit: int = LIMIT) -> str:
    """The table in text; the best row's loss has a star."""
    columns = history.columns
    names = header(columns)

    lines: list[list[str] | str] = [names]
    for line, values in _lines(history, limit, columns):
        if isinstance(line, int):
            lines.append(f"({hidden(line)})")
        elif line is history.best:
            lines.append(mark_best(values, line))
        else:
            lines.append(values)

    widths = [max(len(line[i]) for line in lines if not isinstance(line, str)) for i in range(len(names))]
    return "\n".join(line if isinstance(line, str) else aligned(line, widths) for line in lines)


def all_columns(history: History, announced: Sequence[str] = ()) -> list[str]:
    """The value columns in the order of the table: those that were announced, then those that came all the same."""
    return list(dict.fromkeys([*announced, *history.columns]))


def header(columns: Sequence[str]) -> list[str]:
    """Names of all columns as they are shown: epoch, the given ones, time."""
    return ["epoch", *(one_line(name, NAME_LIMIT) for name in columns), "time"]


def cells(row: Row, columns: Sequence[str]) -> list[str]:
    """A row's values as words: epoch, the given columns, time; a partial row says its share of the epoch."""
    values = flat(row)
    return _framed(row, [number(values.get(name)) for name in columns])


def mark_best(values: list[str], row: Row) -> list[str]:
    """A row's cells, with a star at the loss that makes this row the best."""
    return _set_off(values, row, "*{}", parts=(_deciding(row),))


def aligned(values: list[str], widths: list[int]) -> str:
    """One line of a text table, all columns to the right."""
    return "  ".join(value.rjust(width) for value, width in zip(values, widths, strict=True))


def shown(history: History, limit: int) -> list[Row | int]:
    """The lines to draw in order, at most `limit`; a number stands where that many rows are left out."""
    rows, best = history.rows, history.best
    if len(rows) <= limit:
        return list(rows)

    tail = rows[len(rows) - limit + 1 :]
    if best is None or any(row is best for row in tail):
        return [len(rows) - len(tail), *tail]

    tail = tail[1:]
    return [best, len(rows) - len(tail) - 1, *tail]


def hidden(count: int) -> str:
    """What stands in place of the rows that are left out."""
    return f"{count:,} more in the history"


def _lines(history: History, limit: int, columns: Sequence[str]) -> list[tuple[Row | int, list[str]]]:
    """The lines to draw, each with its cells; a column's numbers are written alike."""
    lines = shown(history, limit)
    rows = [line for line in lines if isinstance(line, Row)]
    values = [flat(row) for row in rows]
    by_column = [column([line.get(name) for line in values]) for name in columns]

    words = iter([_framed(row, [numbers[i] for numbers in by_column]) for i, row in enumerate(rows)])
    return [(line, next(words) if isinstance(line, Row) else []) for line in lines]


def _framed(row: Row, numbers: list[str]) -> list[str]:
    epoch = f"{row.epoch}"
    if row.fraction < 1.0:
        epoch += f" ({100 * row.fraction:.0f} %)"
    return [epoch, *numbers, duration(row.time, CLOCK_FROM)]


def _deciding(row: Row) -> int:
    """Position of the loss by which a row is compared with others, among its cells."""
    return 1 if row.valid_loss is None else 2


def _set_off(values: list[str], row: Row, frame: str, parts: tuple[int, ...] = ()) -> list[str]:
    parts = parts or (0, _deciding(row))
    return [frame.format(value) if i in parts else value for i, value in enumerate(values)]
