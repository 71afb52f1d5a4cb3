"""The views in a notebook: what they put on the page, when, and what they leave there."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ipywidgets import HTML, Box, Button, Text, Widget

from quik_nb.errors import QuikError
from quik_nb.events import EpochEnd, Event, Output, PauseChanged, RunEnd, RunStart, StepEnd
from quik_nb.history import History
from quik_nb.views.budget import ALLOWANCE, FRAME, SHARE, Budget, Clock
from quik_nb.views.display_view import DisplayView
from quik_nb.views.html import STYLE
from quik_nb.views.widget import NOTHING, SAVED_SECONDS, VIEW_MIME, WidgetView

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_widget_is_left() -> Iterator[None]:
    """Every view closes all the models that it opened."""
    before = set(open_widgets())
    yield
    assert before == set(open_widgets())


def open_widgets() -> dict[str, Widget]:
    """All widget models of this process by their id."""
    from ipywidgets.widgets.widget import _instances

    return dict(_instances)


def group(page: Any) -> Box:
    """The box that the page shows."""
    (widgets,) = [bundle for bundle in page.outputs if VIEW_MIME in bundle]
    return open_widgets()[widgets[VIEW_MIME]["model_id"]]


def html(page: Any) -> str:
    """All HTML that the live view shows now."""
    return "".join(child.value for child in group(page).children if isinstance(child, HTML))


def rows(page: Any) -> int:
    """The rows of the live table."""
    return html(page).split("<tbody>")[1].split("</tbody>")[0].count("<tr>")


class Remembered:
    """Controls that write down what was asked of them."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def stop(self) -> None:
        self.asked.append("stop")

    def pause(self) -> None:
        self.asked.append("pause")

    def resume(self) -> None:
        self.asked.append("resume")

    def set_lr(self, lr: float) -> None:
        if lr > 1:
            raise QuikError("lr=2.0 is more than this optimizer bears\nbecause")
        self.asked.append(lr)


def feed(view: Any, history: History, *events: Event) -> None:
    """What the run does with each event."""
    for event in events:
        history.record(event)
        view.show(event)


def test_each_epoch_adds_a_row_at_once(page: Any, make_row: Make, make_clock: Make) -> None:
    """While there is time to draw, the row of an epoch is on the page when it ends, also right after a step's."""
    clock, history = make_clock(), History()
    view = WidgetView(history, clock=clock, publish=page)
    feed(view, history, RunStart(0, 3, 2, "here"))
    seen = []
    for epoch in range(3):
        clock.now += FRAME
        feed(view, history, StepEnd(epoch, 1, 2, 0.5, 9.0), EpochEnd(make_row(epoch)))
        seen.append(rows(page))
    view.close()

    assert [1, 2, 3] == seen


@pytest.mark.parametrize("make", [WidgetView, DisplayView])
def test_nothing_is_drawn_that_nobody_sees(page: Any, make: Make, make_row: Make, make_clock: Make) -> None:
    """Of epochs that follow each other faster than an eye, one in each frame is drawn, however cheap a drawing is."""
    clock, history = make_clock(), History()
    view = make(history, clock=clock, publish=page)
    feed(view, history, RunStart(0, 40, 2, "here"))
    seen = set()
    for epoch in range(40):
        clock.now += FRAME / 4
        feed(view, history, EpochEnd(make_row(epoch)))
        seen.add(html(page) if make is WidgetView else str(page.last))
    view.close()

    assert 10 <= len(seen) <= 11


@pytest.mark.parametrize("make", [WidgetView, DisplayView])
def test_the_last_row_is_never_missing(page: Any, make: Make, make_events: Make, make_clock: Make) -> None:
    """With drawings that cost more than there is time for, the record has all rows all the same."""
    history = History()
    view = make(history, clock=make_clock(cost=0.5), publish=page)
    feed(view, history, *make_events(11))
    view.close()

    assert "finished" in page.last["text/plain"]
    assert 11 == page.last["text/html"].split("<tbody>")[1].count("<tr>")


@pytest.mark.parametrize(("make", "beside"), [(WidgetView, [NOTHING]), (DisplayView, [])])
def test_the_end_replaces_the_live_view_by_the_record(page: Any, make: Make, beside: Any, make_events: Make) -> None:
    """What is left is one bundle that needs no widget, and where widgets were an output of nothing."""
    history = History()
    view = make(history, title="<digits>", publish=page)
    feed(view, history, *make_events(2))
    view.close()
    view.close()

    record, *others = page.outputs
    assert {"text/html", "text/plain"} == set(record)
    assert "&lt;digits&gt;: finished" in record["text/html"]
    assert beside == others


def test_a_page_without_the_widgets_shows_the_rows_so_far(page: Any, make_events: Make, make_clock: Make) -> None:
    """A plain output in front of the widgets, which hide it, holds table, curve and how to go on."""
    clock, history = make_clock(), History()
    view = WidgetView(history, folder=str(Path("data/run_1").resolve()), clock=clock, publish=page)
    for event in make_events(9)[:4]:
        clock.now += SAVED_SECONDS
        feed(view, history, event)
    stand_in, widgets = page.outputs
    hides = re.search(r"<style>[.](quik-\w+) { display: none; }", html(page))
    view.close()

    assert "" == widgets["text/html"]
    assert hides is not None
    assert f'class="quik-view {hides.group(1)}"' in stand_in["text/html"]
    assert "<b>training after epoch 0</b>" in stand_in["text/html"]
    assert "data:image/svg+xml" in stand_in["text/html"]
    assert 1 == stand_in["text/html"].split("<tbody>")[1].count("<tr>")
    assert "session.show()" in stand_in["text/plain"]
    assert "QuikSession.resume('data/run_1')" in stand_in["text/plain"]


def test_the_page_does_not_jump_before_the_widgets_are_there(page: Any, make_events: Make) -> None:
    """The plain output in front of them shows nothing until there is something to show, and brings the style."""
    history = History()
    view = WidgetView(history, publish=page)
    feed(view, history, *make_events(2)[:1])
    first = page.last
    view.close()

    assert {"text/html": STYLE, "text/plain": ""} == first


def test_what_a_saved_notebook_holds_is_not_renewed_at_each_epoch(page: Any, make_row: Make, make_clock: Make) -> None:
    """Of 100 epochs in 10 seconds it is some seconds behind at most, and a run of a second costs it nothing."""
    clock, history = make_clock(), History()
    view = WidgetView(history, clock=clock, publish=page)
    feed(view, history, RunStart(0, 100, 2, "here"))
    for epoch in range(100):
        clock.now += 0.1
        feed(view, history, EpochEnd(make_row(epoch)))
    updates = [bundle for bundle, _, update in page.published if update]
    view.close()

    assert 3 == len(updates)
    assert "training after epoch 29" in updates[0]["text/html"]


@pytest.mark.parametrize("make", [WidgetView, DisplayView])
def test_an_interrupt_leaves_a_record_too(page: Any, make: Make, make_events: Make) -> None:
    """A view that is closed without an end says that the run was stopped and all is kept."""
    history = History()
    view = make(history, publish=page)
    feed(view, history, *make_events(3)[:6])
    view.close()

    assert page.last["text/plain"].startswith("stopped in epoch 1, all kept")


@pytest.mark.parametrize("make", [WidgetView, DisplayView])
def test_a_run_that_never_began_leaves_nothing(page: Any, make: Make) -> None:
    """Where the launch failed before the first event, the page is as it was."""
    make(History(), publish=page).close()

    assert [] == page.published


@pytest.mark.parametrize("make", [WidgetView, DisplayView])
def test_a_second_view_draws_the_whole_history_at_once(page: Any, make: Make, make_history: Make) -> None:
    """A view on a history with rows shows them before any event comes."""
    view = make(make_history(4), publish=page)

    shown = html(page) if make is WidgetView else page.last["text/html"]
    view.close()

    assert 5 == shown.count("<tr>")


def test_drawing_keeps_within_its_budget(page: Any, make_row: Make, make_clock: Make) -> None:
    """However dear a drawing is, each part overdraws its share of the wall time by one drawing at most."""
    clock = make_clock(cost=0.003)
    history = History()
    view = WidgetView(history, clock=clock, publish=page)
    feed(view, history, RunStart(0, 2000, 10, ""))
    for epoch in range(2000):
        clock.now += 0.005
        feed(view, history, StepEnd(epoch, 5, 10, 0.5, 9.0), EpochEnd(make_row(epoch)))
    spent = sum(view._budget.spent.values())
    view.close()

    assert spent <= ALLOWANCE + SHARE * clock.now + 3 * 0.003
    assert spent >= 0.8 * SHARE * clock.now


def test_no_part_starves_the_others(page: Any, make_row: Make, make_clock: Make) -> None:
    """In a run of very short epochs the bar and the curve move too, not only the table."""
    clock = make_clock(cost=0.001)
    history = History()
    view = WidgetView(history, clock=clock, publish=page)
    feed(view, history, RunStart(0, 3000, 10, ""))
    for epoch in range(3000):
        feed(view, history, StepEnd(epoch, 5, 10, 0.5, 9.0), EpochEnd(make_row(epoch)))
    shown = html(page)
    view.close()

    steps = int(shown.split('title="epoch ')[1].split()[0])
    curve = int(shown.split("Loss curve over ")[1].split()[0])
    assert steps > 2700
    assert curve > 2700


def test_a_budget_grows_with_the_wall_time(make_clock: Make) -> None:
    """What is spent is paid off by the time that passes."""
    clock = make_clock()
    budget = Budget({"table": 1.0}, clock)
    with budget.spend("table"):
        clock.now += 1.0

    assert not budget.allows("table")
    clock.now = (1.0 - ALLOWANCE) / SHARE + 0.1
    assert budget.allows("table")


def test_a_drawing_that_had_to_wait_is_no_dearer(make_clock: Make) -> None:
    """A cell or a machine that is busy does not silence the view: work is counted, and not the waiting for it."""
    clock = make_clock()
    clock.now = 7.0
    budget = Budget({"bar": 1.0}, Clock(clock.wall, work=lambda: 0.0))
    with budget.spend("bar"):
        clock.now += 1.0

    assert 0.0 == budget.spent["bar"]
    clock.now += FRAME
    assert budget.allows("bar")


def test_bytes_of_an_update_do_not_grow_with_the_epochs(page: Any, make_history: Make) -> None:
    """After 10,000 epochs the live view is as large as after 100."""
    view = WidgetView(make_history(10_000), publish=page)
    size = len(html(page))
    view.close()

    assert size < 50_000


def test_nothing_jumps_when_rows_come(page: Any, make_events: Make, make_clock: Make) -> None:
    """The columns, the room for the rows to come and that for the curve are there from the start."""
    clock, history = make_clock(), History()
    view = WidgetView(history, clock=clock, publish=page)
    places = set()
    for event in make_events(30):
        clock.now += 10
        feed(view, history, event)
        shown = html(page)
        places.add(tuple(re.findall(r'min-height:[\d.]+em"|<thead>.*</thead>|viewBox="[^"]*"|>accuracy(?= |<)', shown)))
    view.close()

    assert 1 == len(places)
    assert 4 == len(next(iter(places)))  # height, header, size of the curve, and the accuracy's panel


def test_without_controls_the_view_says_what_stops_it(page: Any) -> None:
    """In a blocking run there are no buttons, which would be dead, but the words that help."""
    history = History()
    view = WidgetView(history, publish=page)
    feed(view, history, RunStart(0, 3, 2, "on <2> GPUs"))
    shown = html(page)
    view.close()

    assert "interrupt (■) stops the run and keeps everything" in shown
    assert "on &lt;2&gt; GPUs" in shown


def buttons(page: Any) -> tuple[Button, Button, Text, Any]:
    """Stop, pause, learning rate, and the words beside them."""
    (row,) = [child for child in group(page).children if isinstance(child, Box)]
    stop, pause, lr, said = row.children
    return stop, pause, lr, said


def test_buttons_reach_the_run(page: Any, make_events: Make) -> None:
    """Pause turns into Resume, a new rate is passed on and the field emptied, and Stop is pressed once."""
    controls, history = Remembered(), History()
    view = WidgetView(history, controls, publish=page)
    feed(view, history, *make_events(3)[:3])
    stop, pause, lr, _ = buttons(page)
    pause.click()
    names = [pause.description]
    pause.click()
    names.append(pause.description)
    lr.value = " 3e-4 "
    left = lr.value
    stop.click()
    disabled = stop.disabled, pause.disabled, lr.disabled
    view.close()

    assert ["pause", "resume", 3e-4, "stop"] == controls.asked
    assert ["Resume", "Pause"] == names
    assert "" == left
    assert (True, True, True) == disabled


@pytest.mark.parametrize("words", ["abc", "-1", "0", "nan", "inf"])
def test_a_rate_that_is_none_is_not_passed_on(page: Any, make_events: Make, words: str) -> None:
    """What is no positive number is refused in words, beside the field."""
    controls, history = Remembered(), History()
    view = WidgetView(history, controls, publish=page)
    feed(view, history, *make_events(1)[:1])
    _, _, lr, said = buttons(page)
    lr.value = words
    answer = said.value
    view.close()

    assert f"'{words}' is no learning rate; use a number above 0, such as 3e-4" == answer
    assert [] == controls.asked


def test_what_the_run_refuses_is_said_beside_the_buttons(page: Any, make_events: Make) -> None:
    """An error of the run does not vanish in a log."""
    history = History()
    view = WidgetView(history, Remembered(), publish=page)
    feed(view, history, *make_events(1)[:1])
    _, _, lr, said = buttons(page)
    lr.value = "2"
    answer = said.value
    view.close()

    assert "lr=2.0 is more than this optimizer bears" == answer


def test_a_pause_in_code_is_shown(page: Any, make_events: Make, make_clock: Make) -> None:
    """The button offers what can be done now, and the bar says that the run is paused, however little time is left."""
    history = History()
    view = WidgetView(history, Remembered(), clock=make_clock(cost=0.5), publish=page)
    feed(view, history, *make_events(3)[:3])
    _, pause, _, _ = buttons(page)
    seen = []
    for on in (True, False):
        feed(view, history, PauseChanged(on))
        seen.append((pause.description, "paused" in html(page)))
    view.close()

    assert [("Resume", True), ("Pause", False)] == seen


def test_prints_of_workers_are_printed(page: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Rank 0 as it stands, the others with their rank on each line, each on its stream; nothing is drawn for it."""
    history = History()
    for view in (WidgetView(history, publish=page), DisplayView(history, publish=page)):
        feed(view, history, Output(0, "a\n"), Output(1, "b\nc\n"), Output(2, "d\n", "stderr"))
        view.close()

    assert ("a\n[rank 1] b\n[rank 1] c\n" * 2, "[rank 2] d\n" * 2) == capsys.readouterr()
    assert [] == page.published


def test_the_display_updates_one_output(page: Any, make_events: Make, make_clock: Make) -> None:
    """Without ipywidgets each epoch updates the same output, with a text for pages that show no HTML."""
    clock, history = make_clock(), History()
    view = DisplayView(history, clock=clock, publish=page)
    for event in make_events(3)[:-1]:
        clock.now += FRAME
        feed(view, history, event)
    shown = [bundle["text/plain"].splitlines() for bundle, _, _ in page.published]
    view.show(RunEnd("finished"))
    view.close()

    assert "epoch 0 (1 of 3) · 00:00 elapsed" == shown[0][0]
    assert 4 == max(len(lines) - 1 for lines in shown)  # header and three rows
    assert all("data:image/svg+xml" in bundle["text/html"] for bundle, _, _ in page.published)
