"""What is left in the notebook when a run is over."""

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from quik_nb.events import RunEnd, RunFailed, RunStart
from quik_nb.history import History
from quik_nb.views import html
from quik_nb.views.static_record import Bundle, record, stand_in
from quik_nb.views.status import RunStatus

Make = Callable[..., Any]


class Tags(HTMLParser):
    """Collects the elements and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: dict[str, str | None] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= dict(attrs)


def finished(history: History, end: Any = None) -> RunStatus:
    """The status of a run that had all rows of a history."""
    status = RunStatus(history)
    status.record(RunStart(0, len(history), 2, "here"))
    status.record(end or RunEnd("finished"))
    return status


def recorded(history: History, end: Any = None) -> Bundle:
    """The record of such a run."""
    return record(history, finished(history, end), "1")


def image_source(page: str, attribute: str, mime: str) -> bytes:
    """The picture that stands in an attribute of the `img`."""
    (data,) = re.findall(rf'<img[^>]* {attribute}="data:{re.escape(mime)};base64,([^"]*)"', page)
    return base64.b64decode(data)


def test_the_record_is_a_table_and_a_picture(make_history: Make) -> None:
    """One bundle holds the summary, an HTML table, the curve as an image with words, and the same as text."""
    bundle = recorded(make_history(8))
    tags = Tags(bundle["text/html"])

    assert {"text/html", "text/plain"} == set(bundle)
    assert {"table", "img"} <= tags.names
    assert "Loss curve over 8 epochs" in str(tags.attributes["alt"])
    assert "PNG" == Image.open(io.BytesIO(image_source(bundle["text/html"], "src", "image/png"))).format
    assert image_source(bundle["text/html"], "srcset", "image/svg+xml").startswith(b"<svg")
    assert bundle["text/plain"].startswith("finished · 8 epochs in 08:08 · best valid_loss 0.1667 in epoch 5\nepoch")


def test_the_record_is_whole_without_what_is_stripped(make_history: Make) -> None:
    """No script and no SVG element; without style and classes, table and picture stand side by side all the same."""
    page = recorded(make_history(50))["text/html"]
    tags = Tags(re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL))

    assert not tags.names & {"style", "script", "svg", "iframe", "link", "object", "form", "input"}
    assert not set(tags.attributes) & {"onclick", "onload"}
    assert '<table align="left">' in page
    assert '<br clear="all">' in page


@pytest.mark.parametrize("rows", [3, 11, 40])
def test_the_record_has_the_places_of_the_live_view(make_history: Make, rows: int) -> None:
    """Status, table, curve and footer follow each other in both, and the table is the same to the letter."""
    history = make_history(rows)
    page = recorded(history)["text/html"]
    live = html.rows(history, html.outlook(finished(history)))

    assert ["quik-bar", "quik-table", "quik-curve", "quik-footer"] == re.findall(
        r'<\w+ class="(quik-bar|quik-table|quik-curve|quik-footer)', page
    )
    assert re.findall("<table.*</table>", live) == re.findall("<table.*</table>", page)


def test_the_users_words_are_escaped(make_row: Make) -> None:
    """Exception messages and metric names stand in the record as text."""
    history = History([make_row(0, metrics={"<img src=x>": 1.0})])
    page = recorded(history, RunFailed('<script>alert("1")</script> · <b>&'))["text/html"]

    assert not Tags(page).names - {
        *("div", "style", "p", "b", "br", "small", "img", "i"),
        *("table", "thead", "tbody", "tr", "th", "td"),
    }
    assert 1 == len(re.findall("<img", page))
    assert "&lt;script&gt;alert(&quot;1&quot;)" in page


def test_a_record_of_nothing_is_one_line() -> None:
    """A run that ended before its first step leaves its summary, and no empty table."""
    status = RunStatus(History())
    status.record(RunStart(0, 3, 2, "here"))
    status.record(RunEnd("stopped"))
    words = "stopped before the first epoch was over, all kept"

    assert {"text/html": f"<p><b>{words}</b></p>", "text/plain": words} == record(History(), status)


def test_the_pointer_is_told_the_values_in_the_record(make_history: Make) -> None:
    """Over the picture lie bands with the words of the live view's hints, which grow and shrink with it."""
    page = recorded(make_history(8))["text/html"]

    assert 8 == page.count("<i title=")
    assert re.search(r'class="quik-hints" style="left:[\d.]+%;right:[\d.]+%;top:[\d.]+%;bottom:[\d.]+%"', page)
    assert '<i title="epoch 3: train_loss 0.5000, valid_loss 0.2500, accuracy 0.8000, lr 0.001"' in page


def test_what_stands_in_for_a_live_view_says_how_to_go_on(make_history: Make) -> None:
    """It shows the rows so far and the picture in the page's colours, without the PNG, which takes longer to draw."""
    history = make_history(3)
    status = RunStatus(history)
    status.record(RunStart(0, 9, 2, "here"))
    page = stand_in(history, status, "1", "go on with <this>")["text/html"]

    assert "<b>training after epoch 2</b> · 3 epochs in 03:03" in page
    assert image_source(page, "src", "image/svg+xml").startswith(b"<svg")
    assert "go on with &lt;this&gt;" in page
    assert "image/png" not in page
