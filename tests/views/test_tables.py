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
    """At most `limit` lines are shown, the best and the last row among them, and one says how many are not."""
    lines = html_rows(make_history(100), limit=4)

    assert ["5", "98", "99"] == [line[0] for line in lines[1:] if len(line) > 1]
    assert ["97 more in the history"] == lines[2]


def test_a_best_row_among_the_latest_stands_in_its_place(make_row: Make) -> None:
    """Where the best row is shown anyway, one row more of the latest is shown."""
    history = History([make_row(epoch, valid_loss=1 / (epoch + 1)) for epoch in range(10)])

    assert ["(8 more in the history)", "8", "9"] == [
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
        (1e-9, "1.000e-9"),
        (17_940.3, "17,940"),
        (-2e6, "-2,000,000"),
        (8.4329e10, "8.4329e10"),
    ],
)
def test_values_that_are_no_common_number(make_row: Make, value: float | None, expected: str) -> None:
    """Missing, infinite, tiny and huge values read as what they are."""
    history = History([make_row(0), make_row(1, valid_loss=value)])

    assert expected == html_rows(history)[-1][2]


def test_a_change_is_seen(make_row: Make) -> None:
    """A column has as many digits as it takes to tell each row from the next."""
    losses = [8.4329e10, 8.43289e10, 8.43288e10]
    history = History([make_row(epoch, train_loss=loss) for epoch, loss in enumerate(losses)])

    assert ["8.43290e10", "8.43289e10", "8.43288e10"] == [line[1] for line in html_rows(history)[1:]]


def test_short_epochs_have_a_time(make_row: Make) -> None:
    """Below a second the time has decimals."""
    assert ["0.3 s", "0.02 s"] == [html_rows(History([make_row(0, time=time)]))[1][-1] for time in (0.3, 0.017)]


def test_announced_columns_have_their_place(make_row: Make) -> None:
    """Columns that are to come are in the header, and dashes in the rows, before any row has them."""
    history = History([make_row(0, valid_loss=None, metrics={})])
    tree = ElementTree.fromstring(table.html(history, announced=("train_loss", "valid_loss", "f1")))

    assert ["epoch", "train_loss", "valid_loss", "f1", "time"] == [cell.text for cell in tree.iter("th")]
    assert ["0", "2.0000", "—", "—", "01:01"] == ["".join(cell.itertext()) for cell in tree.iter("td")]


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
