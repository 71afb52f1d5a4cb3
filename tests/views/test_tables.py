"""Rows as a table, in text and in HTML."""

from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest

from quik_nb.events import Row
from quik_nb.history import History
from quik_nb.views import table

Make = Callable[..., Any]


def html_rows(history: History, limit: int = 20) -> list[list[str]]:
    """The words of each line of the HTML table, header first."""
    tree = ElementTree.fromstring(table.html(history, limit))
    return [["".join(cell.itertext()) for cell in line] for line in tree.iter("tr")]


def test_both_tables_say_the_same(make_history: Make) -> None:
    """Text and HTML hold the same values, in the order epoch, losses, metrics, time."""
    history = make_history(3)
    expected = [
        ["epoch", "train_loss", "valid_loss", "accuracy", "time"],
        ["0", "2.0000", "1.0000", "0.5000", "01:01"],
        ["1", "1.0000", "0.5000", "0.6667", "01:01"],
        ["2", "0.6667", "0.3333", "0.7500", "01:01"],
    ]

    assert expected == html_rows(history)
    assert expected == [line.replace("*", "").split() for line in table.text(history).splitlines()]


def test_the_best_row_is_set_off(make_history: Make) -> None:
    """The best epoch and the loss that makes it the best are bold in HTML, and the loss has a star in text."""
    history = make_history(8)

    bold = [cell.text for cell in ElementTree.fromstring(table.html(history)).iter("b")]
    starred = [line for line in table.text(history).splitlines() if "*" in line]

    assert ["5", "0.1667"] == bold
    assert ["    5      0.3333     *0.1667    0.8571  01:01"] == starred


def test_without_validation_the_train_loss_decides(make_row: Make) -> None:
    """With no valid_loss there is no such column, and the best train_loss is set off."""
    history = History([make_row(epoch, valid_loss=None, metrics={}) for epoch in range(2)])

    assert ["epoch", "train_loss", "time"] == html_rows(history)[0]
    assert "*1.0000" in table.text(history)


def test_many_rows_are_cut_to_the_latest_and_the_best(make_history: Make) -> None:
    """At most `limit` rows are shown, the best and the last among them, and a line says how many are not."""
    lines = html_rows(make_history(100), limit=4)

    assert ["5", "97", "98", "99"] == [line[0] for line in lines[1:] if len(line) > 1]
    assert ["96 more in the history"] == lines[2]


def test_the_line_of_what_is_left_out_comes_first_when_the_best_is_among_the_latest(make_row: Make) -> None:
    """Where the best row is shown anyway, one row more of the latest is shown."""
    history = History([make_row(epoch, valid_loss=1 / (epoch + 1)) for epoch in range(10)])

    assert ["(7 more in the history)", "7", "8", "9"] == [
        line if "more" in line else line.split()[0] for line in table.text(history, limit=3).splitlines()[1:]
    ]


def test_a_partial_row_says_its_share(make_history: Make, make_row: Make) -> None:
    """The row of an epoch that was stopped is marked with the part that was trained."""
    history = make_history(3, make_row(3, fraction=0.4, valid_loss=None, metrics={}))

    assert ["3 (40 %)", "0.5000", "—", "—", "01:01"] == html_rows(history)[-1]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "—"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (0.0, "0.0000"),
        (1e-9, "1.000e-09"),
        (-2e6, "-2.000e+06"),
    ],
)
def test_values_that_are_no_common_number(make_row: Make, value: float | None, expected: str) -> None:
    """Missing, infinite, tiny and huge values read as what they are."""
    history = History([make_row(0), make_row(1, valid_loss=value)])

    assert expected == html_rows(history)[-1][2]


def test_names_cannot_break_out(make_row: Make) -> None:
    """A metric named like a tag is text in HTML, and one with a line break stays on one line of text."""
    history = History([make_row(0, metrics={"<script>alert(1)</script>\n&": 1.0})])

    assert "<script" not in table.html(history)
    assert "<script>alert(1)</s… " not in table.html(history)
    assert 2 == len(table.text(history).splitlines())
    assert "<script>alert(1)</scrip…" == html_rows(history)[0][3]


def test_html_needs_no_style(make_history: Make) -> None:
    """The table uses nothing that GitHub strips: no style, class, id or script."""
    elements = list(ElementTree.fromstring(table.html(make_history(30))).iter())

    assert {"table", "thead", "tbody", "tr", "th", "td", "b", "i"} >= {element.tag for element in elements}
    assert {"align", "colspan"} >= {name for element in elements for name in element.attrib}


def test_bytes_do_not_grow_with_the_epochs(make_history: Make) -> None:
    """10,000 rows take hardly more room than 30."""
    assert len(table.html(make_history(10_000))) < 1.1 * len(table.html(make_history(30)))


def test_columns_that_come_later_are_filled_with_dashes(make_row: Make) -> None:
    """A metric that only some rows have is a column for all."""
    rows: list[Row] = [make_row(0, metrics={}), make_row(1, metrics={"f1": 0.5})]

    assert [["0", "—"], ["1", "0.5000"]] == [[line[0], line[3]] for line in html_rows(History(rows))[1:]]
