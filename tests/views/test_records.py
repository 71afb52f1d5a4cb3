"""What is left in the notebook when a run is over."""

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

from PIL import Image

from quik_nb.events import EpochEnd, RunEnd, RunFailed, RunStart, StepEnd
from quik_nb.history import History
from quik_nb.views.static_record import record
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


def test_the_record_is_a_table_and_a_picture(make_history: Make) -> None:
    """One bundle holds the summary, an HTML table, the curve as an image with words, and the same as text."""
    bundle = record(make_history(8), "finished · 8 epochs")
    tags = Tags(bundle["text/html"])

    assert {"text/html", "text/plain"} == set(bundle)
    assert {"table", "img"} <= tags.names
    assert "Loss curve over 8 epochs" in str(tags.attributes["alt"])
    image = base64.b64decode(str(tags.attributes["src"]).removeprefix("data:image/png;base64,"))
    assert "PNG" == Image.open(io.BytesIO(image)).format
    assert bundle["text/plain"].startswith("finished · 8 epochs\nepoch  train_loss")


def test_the_record_needs_nothing_that_is_stripped(make_history: Make) -> None:
    """No style, script, SVG, id or class: GitHub and JupyterLab's sanitiser leave it as it is."""
    tags = Tags(record(make_history(50), "finished")["text/html"])

    assert not tags.names & {"style", "script", "svg", "iframe", "link", "object", "form", "input"}
    assert not set(tags.attributes) & {"style", "id", "class", "onclick", "onload"}


def test_the_users_words_are_escaped(make_row: Make) -> None:
    """Exception messages and metric names stand in the record as text."""
    history = History([make_row(0, metrics={"<img src=x>": 1.0})])
    page = record(history, 'failed: <script>alert("1")</script> · <b>&')["text/html"]

    assert {"p", "b", "img", "table", "thead", "tbody", "tr", "th", "td"} == Tags(page).names
    assert 1 == len(re.findall("<img", page))
    assert "&lt;script&gt;alert(&quot;1&quot;)" in page


def test_a_record_of_nothing_is_one_line() -> None:
    """A run that ended before its first step leaves its summary, and no empty table."""
    assert {"text/html": "<p><b>stopped</b></p>", "text/plain": "stopped"} == record(History(), "stopped")


def summary(history: History, *events: Any, title: str = "", closed: bool = True) -> str:
    """How a run with these events is summed up."""
    run_status = RunStatus(history, title)
    for event in events:
        history.record(event)
        run_status.record(event)
    run_status.closed = closed
    return run_status.summary()


START = RunStart(0, 10, 50, "here")


def test_the_summary_of_a_finished_run(make_history: Make) -> None:
    """It says the state, the epochs, the time, the best epoch, and the session's name where it has one."""
    expected = "digits: finished · 8 epochs in 08:08 · best valid_loss 0.1667 in epoch 5"

    assert expected == summary(make_history(8), START, RunEnd("finished"), title="digits")


def test_the_summary_says_where_it_stopped(make_history: Make, make_row: Make) -> None:
    """A stop within an epoch names that epoch, one between epochs the last that was finished; all is kept."""
    within = EpochEnd(make_row(2, fraction=0.4))

    assert "stopped in epoch 2, all kept (Stop button)" in summary(
        make_history(2), START, within, RunEnd("stopped", "Stop button")
    )
    assert "stopped after epoch 1, all kept" in summary(make_history(2), START)
    assert "stopped in epoch 2, all kept" in summary(make_history(2), START, StepEnd(2, 3, 50, 0.5, 9.0))
    assert "stopped before the first epoch was over, all kept" == summary(History(), START)


def test_the_summary_of_a_failed_run_says_why(make_history: Make) -> None:
    """The first line of the error, its rank and the epoch are in the summary."""
    failure = RunFailed("\nRuntimeError: shapes\n  more", rank=1)

    assert summary(make_history(2), START, failure).startswith("failed on rank 1 after epoch 1: RuntimeError: shapes ·")


def test_the_time_left_comes_from_the_epochs_of_this_run(make_history: Make, make_row: Make) -> None:
    """Half of epoch 3 of 10 at 50 steps/s, and six more of the 61 seconds that the last one took."""
    history = make_history(2)
    run_status = RunStatus(history)
    for event in (RunStart(2, 10, 100, ""), EpochEnd(make_row(2)), StepEnd(3, 50, 100, 0.5, 50.0)):
        history.record(event)
        run_status.record(event)

    assert 1 + 6 * 61.0 == run_status.seconds_left()
    assert "epoch 3 (4 of 10) · 06:07 left · train loss 0.5000 · 50 steps/s" == run_status.status()


def test_between_epochs_loss_and_pace_stay(make_history: Make, make_row: Make) -> None:
    """After epoch 2 of 10 the line says how long the other seven take, with the loss and the pace of the last step."""
    history = make_history(2)
    run_status = RunStatus(history)
    for event in (RunStart(2, 10, 100, ""), StepEnd(2, 99, 100, 0.5, 50.0), EpochEnd(make_row(2))):
        history.record(event)
        run_status.record(event)

    assert "epoch 3 (4 of 10) · 07:07 left · train loss 0.5000 · 50 steps/s" == run_status.status()
    assert 0.0 == run_status.share


def test_a_view_that_joins_a_run_on_its_way_knows_its_epoch(make_history: Make) -> None:
    """Without the run's start the status still names the epoch."""
    run_status = RunStatus(make_history(2))
    run_status.record(StepEnd(7, 5, None, 0.5, 0.25, phase="valid"))

    assert "epoch 7 · validating · train loss 0.5000 · 4.0 s/step" == run_status.status()
