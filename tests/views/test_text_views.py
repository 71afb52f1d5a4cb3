"""The view in a terminal and in a log, the silent one, and the choice between all of them."""

import io
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from quik_nb.errors import RecipeError
from quik_nb.events import EpochEnd, Output, Row, RunEnd, RunFailed, RunStart, StepEnd
from quik_nb.history import History
from quik_nb.views.choose import FrontEnd, choose, decide
from quik_nb.views.null_view import NullView
from quik_nb.views.text import TextView

Make = Callable[..., Any]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(history: History, *events: Any, err: io.StringIO | None = None) -> str:
    """What the text view prints for a run."""
    out = io.StringIO()
    view = TextView(history, out=out, err=err or io.StringIO())
    for event in events:
        history.record(event)
        view.show(event)
    view.close()
    return out.getvalue()


def test_a_log_has_one_line_per_epoch(make_events: Make) -> None:
    """Under a header that stands once there is a line for each epoch, and a summary at the end."""
    err = io.StringIO()
    lines = shown(History(), *make_events(3), err=err).splitlines()

    assert [
        "on the CPU: this machine has no GPU",
        "    epoch   train_loss   valid_loss   accuracy       time",
        "        0       2.0000       1.0000     0.5000      01:01",
        "        1       1.0000       0.5000     0.6667      01:01",
        "        2       0.6667       0.3333     0.7500      01:01",
        "finished · 3 epochs in 03:03 · best valid_loss 0.3333 in epoch 2",
    ] == lines
    assert "" == err.getvalue()


def test_a_row_that_is_the_best_so_far_has_a_star(make_row: Make) -> None:
    """The star says so when the row is printed."""
    text = shown(History(), RunStart(0, 2, 1, ""), EpochEnd(make_row(0), best=True), EpochEnd(make_row(1)))

    assert ["*1.0000"] == [word for word in text.split() if "*" in word]


def test_a_terminal_has_a_bar_for_the_run(make_events: Make) -> None:
    """The bar goes to the error stream and is gone when an epoch is over, so that rows stand in whole lines."""
    err = Terminal()
    text = shown(History(), *make_events(2), err=err)

    assert [" 25% |", " 50% |", " 75% |", "100% |"] == re.findall(r"[ \d]{3}% \|(?=[^|]*\| epoch)", err.getvalue())
    assert "epoch 1 (2 of 2) · 01:01 elapsed · 01:01 left · train loss 1.0000 · 10 steps/s" in err.getvalue()
    assert err.getvalue().rstrip(" ").endswith("\r")
    assert 5 == len(text.splitlines())


def test_each_run_prints_its_own_rows(make_history: Make, make_row: Make) -> None:
    """A run that goes on does not repeat the rows of the one before; a view that joins it later has all of its rows."""
    text = shown(make_history(3), RunStart(2, 4, 1, "here"), EpochEnd(make_row(3)), RunEnd("finished"))

    assert ["here", "epoch", "2", "3", "finished"] == [line.split()[0] for line in text.splitlines()]


def test_a_history_alone_is_printed_as_a_table(make_history: Make) -> None:
    """Where no run is under way all rows are printed, under one header."""
    assert ["epoch", "0", "1"] == [line.split()[0] for line in shown(make_history(2)).splitlines()]


def test_a_terminal_of_few_letters(make_events: Make) -> None:
    """Where dots and dashes cannot be written others stand in their place, and the training goes on."""
    raw = io.BytesIO()
    view = TextView(history := History(), out=io.TextIOWrapper(raw, encoding="ascii"), err=io.StringIO())
    for event in make_events(1):
        history.record(event)
        view.show(event)
    view.close()

    assert b"finished ? 1 epoch in 01:01" in raw.getvalue()


def test_an_early_end_says_why(make_events: Make) -> None:
    """A training that patience ended is not like one that came to its last epoch."""
    text = shown(History(), *make_events(3)[:-1], RunEnd("finished", "no better loss for 2 epochs"))

    assert "finished after epoch 2 (no better loss for 2 epochs)" in text.splitlines()[-1]


def test_columns_that_were_announced_have_their_place_from_the_first_row(make_row: Make) -> None:
    """A metric that comes late is known beforehand, so that the header is printed once."""
    start = RunStart(0, 2, 1, "", columns=("train_loss", "valid_loss", "accuracy"))
    text = shown(History(), start, EpochEnd(make_row(0, metrics={})), EpochEnd(make_row(1)))

    assert 1 == text.count("accuracy")


def test_a_row_costs_the_same_however_many_came_before(make_row: Make) -> None:
    """The rows before it are not looked at again: none of their values is read."""
    history = History(Counted.rows(50))
    view = TextView(history, out=io.StringIO(), err=io.StringIO())
    view.show(RunStart(50, 52, 1, ""))
    view.show(EpochEnd(make_row(50)))
    history.add(make_row(50))
    assert history.best is not None
    before = Counted.reads

    history.add(make_row(51))
    view.show(EpochEnd(make_row(51)))

    assert history.best is not None
    assert before == Counted.reads


class Counted(dict[str, float]):
    """Metrics that count how often they are read."""

    reads = 0

    @classmethod
    def rows(cls, count: int) -> list[Row]:
        return [Row(epoch, 1.0, 1.0, 1.0, 0.1, cls(accuracy=0.5)) for epoch in range(count)]

    def __iter__(self) -> Iterator[str]:
        Counted.reads += 1
        return super().__iter__()


def test_what_the_curve_tells_is_printed_at_the_end(make_row: Make) -> None:
    """Under the summary of a run stands the sentence that is due, if any."""
    rows = [EpochEnd(make_row(epoch, train_loss=0.7, valid_loss=None, metrics={}, lr=1e-9)) for epoch in range(8)]
    text = shown(History(), RunStart(0, 8, 1, ""), *rows, RunEnd("finished"))

    assert "train_loss has not moved since epoch 0: lr=1e-9 may be too low." == text.splitlines()[-1]


def test_a_new_metric_gets_a_new_header(make_row: Make) -> None:
    """When the columns change on the way, the header is printed again."""
    text = shown(History(), RunStart(0, 2, 1, ""), EpochEnd(make_row(0, metrics={})), EpochEnd(make_row(1)))

    assert 2 == text.count("valid_loss  ")


def test_a_failure_is_summed_up(make_events: Make) -> None:
    """The last line says that it failed, where and why."""
    text = shown(History(), *make_events(2)[:4], RunFailed("ValueError: no\nmore", rank=1))

    assert text.splitlines()[-1].startswith("failed on rank 1 after epoch 0: ValueError: no ·")


def test_a_run_that_never_began_prints_nothing() -> None:
    """No event, no line."""
    assert "" == shown(History())


def test_prints_stand_between_the_bars(capsys: pytest.CaptureFixture[str]) -> None:
    """What a worker prints within an epoch does not end up inside the bar."""
    err = Terminal()
    shown(History(), RunStart(0, 1, 9, ""), StepEnd(0, 1, 9, 1.0, 2.0), Output(3, "hello\n"), err=err)

    assert "[rank 3] hello\n" in capsys.readouterr().out


def test_the_silent_view_prints_only_what_workers_print(make_events: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """view=False draws nothing, and swallows nothing."""
    view = NullView()
    for event in [*make_events(2), Output(1, "hello\n")]:
        view.show(event)
    view.close()

    assert ("[rank 1] hello\n", "") == capsys.readouterr()


NOTEBOOK, BARE, TERMINAL = FrontEnd(True, True), FrontEnd(True, False), FrontEnd(False, True)


@pytest.mark.parametrize(
    ("view", "front_end", "kind", "words"),
    [
        ("auto", NOTEBOOK, "widget", "a notebook kernel with ipywidgets"),
        ("auto", BARE, "display", "ipywidgets is not installed"),
        ("auto", TERMINAL, "text", "no notebook kernel"),
        ("widget", TERMINAL, "text", "view='widget' was asked for, but"),
        ("text", NOTEBOOK, "text", "was asked for"),
        (False, NOTEBOOK, "null", "draws nothing"),
    ],
)
def test_the_choice_has_its_reason(view: Any, front_end: FrontEnd, kind: str, words: str) -> None:
    """What is asked for and what there is decide, and the reason is said."""
    decided, reason = decide(view, front_end)

    assert kind == decided
    assert words in reason


@pytest.mark.parametrize("view", ["wigdet", True, None, 3])
def test_an_unknown_view_is_refused_with_what_to_use(view: Any) -> None:
    """A typo gets the near word, anything else the list."""
    with pytest.raises(RecipeError, match=r"(?s)view=.* is not known.*Use view='auto'") as caught:
        choose(view, History())
    assert view != "wigdet" or "did you mean 'widget'?" in str(caught.value)


def test_a_script_gets_the_text_view() -> None:
    """Here, in no kernel, the facts say so without loading IPython."""
    loaded = "IPython" in sys.modules
    view, reason = choose("auto", History())

    assert isinstance(view, TextView)
    assert "no notebook kernel" in reason
    assert loaded == ("IPython" in sys.modules)
