"""A run from its beginning to its end: what fails on the way, what is kept, and what is let go."""

import gc
import warnings
from collections.abc import Callable
from typing import Any, Self

import pytest
from harness.plain import distance, regression

from quik_nb import Run
from quik_nb.events import Event, RunEnd
from quik_nb.history import History
from quik_nb.launch.base import Running
from quik_nb.training.commands import LocalCommands
from quik_nb.training.loop import Loop


class Breaking:
    """A view that fails at an event of a kind, or when it is closed."""

    def __init__(self, kind: str) -> None:
        self.kind, self.seen = kind, 0

    def show(self, event: Event) -> None:
        self.seen += 1
        if type(event).__name__ == self.kind:
            raise OSError("iopub is gone")

    def close(self) -> None:
        if self.kind == "close":
            raise OSError("iopub is gone")


class Watching(Breaking):
    """A view that writes down what it is shown."""

    def __init__(self) -> None:
        super().__init__("")
        self.shown: list[str] = []

    def show(self, event: Event) -> None:
        self.shown.append(type(event).__name__)

    def close(self) -> None:
        self.shown.append("closed")


class Fake:
    """A launched training that emits some events and may fail at any point."""

    undelivered = ()

    def __init__(self, *events: Event, during: BaseException | None = None, after: Exception | None = None) -> None:
        self.commands = LocalCommands()
        self.planned = events
        self.errors = during, after

    def __enter__(self) -> Self:
        return self

    def events(self, emit: Callable[[Event], None]) -> None:
        for event in self.planned:
            emit(event)
        if self.errors[0] is not None:
            raise self.errors[0]

    def __exit__(self, *error: object) -> None:
        if self.errors[1] is not None:
            raise self.errors[1]

    def kill(self) -> None: ...

    def snapshot(self) -> None: ...


def consumed(running: Running, *views: Any) -> Run:
    """A run in the background that has come to its end."""
    run = Run(running, History(), settle=lambda outcome: None)
    for view in views:
        run.attach(view)
    run.background()
    run._done.wait(10)
    return run


@pytest.mark.parametrize("kind", ["RunStart", "EpochEnd", "RunEnd", "close"])
def test_a_view_that_fails_is_no_reason_to_lose_a_training(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What a view raises is a warning, once; the training comes to its end with the numbers of one that is not seen."""
    unseen, session, view = regression(epochs=3), regression(epochs=3), Breaking(kind)
    unseen.train()
    monkeypatch.setattr("quik_nb.session.training_runs.choose", lambda *args: (view, "for the test"))
    with pytest.warns(UserWarning, match="live view failed .*iopub is gone.*continues without it") as warned:
        run = session.train()

    assert ("finished", 1) == (run.state, len(warned))
    assert 0.0 == distance(unseen.model, session.model)


def test_a_view_that_fails_does_not_hide_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the step raises and the view cannot show it, the step's error is the one that comes through."""
    session = regression().set_step(lambda model, criterion, batch: 1 / 0)
    monkeypatch.setattr("quik_nb.session.training_runs.choose", lambda *args: (Breaking("RunFailed"), "for the test"))
    with pytest.warns(UserWarning, match="iopub is gone"), pytest.raises(ZeroDivisionError):
        session.train()


def test_other_views_draw_on() -> None:
    """One view that fails takes no other along."""
    watching = Watching()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        consumed(Fake(RunEnd("finished")), Breaking("RunEnd"), watching)

    assert ["RunEnd", "closed"] == watching.shown


def test_a_final_state_that_cannot_be_retrieved_is_a_failure() -> None:
    """A run whose state is lost at the end says so, in a thread as well, and its views are closed."""
    watching = Watching()
    run = consumed(Fake(RunEnd("finished"), after=OSError("no space left")), watching)

    assert "failed" == run.state
    assert ["RunEnd", "RunFailed", "closed"] == watching.shown
    with pytest.raises(OSError, match="no space left"):
        run.wait()


def test_the_first_error_is_the_one_that_counts() -> None:
    """What goes wrong while a failed run is brought home is a note to its error."""
    run = consumed(Fake(during=KeyError("mine"), after=OSError("no space left")))

    with pytest.raises(KeyError, match="mine") as caught:
        run.wait()
    assert ["quik_nb: in addition, the final state could not be retrieved: OSError: no space left"] == (
        caught.value.__notes__
    )


class MuteError(Exception):
    """Has neither words nor a representation."""

    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


@pytest.mark.parametrize("error", [MuteError(), ExceptionGroup("many", [MuteError()]), SystemExit(3), StopIteration()])
def test_any_error_ends_a_run(error: BaseException) -> None:
    """Whatever an error's class makes of its words, the run has failed, its views are closed and waiting ends."""
    watching = Watching()
    run = consumed(Fake(during=error), watching)

    assert "failed" == run.state
    assert ["RunFailed", "closed"] == watching.shown
    with pytest.raises(type(error)):
        run.wait()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_metric_whose_error_has_no_words(processes: int) -> None:
    """The error comes through as its own class, and the session can be corrected and trained."""

    def metric(outputs: Any, targets: Any) -> float:
        raise MuteError

    session = regression(epochs=1).set_metrics(wrong=metric)
    with pytest.raises(MuteError):
        session.train(processes=processes)
    assert session.run is not None
    assert "failed" == session.run.state
    session.set_metrics()

    assert "finished" == session.train(processes=processes).state


def test_a_view_that_comes_late_knows_the_end() -> None:
    """A view that joins a run which is over is shown how it ended."""
    run, late = consumed(Fake(RunEnd("finished"))), Watching()
    run.attach(late)

    assert ["RunEnd", "closed"] == late.shown


def loops() -> list[Loop]:
    """Those that are alive, each with the model's gradients, the optimizer and the data on the device."""
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) is Loop]


def test_a_finished_run_releases_its_memory() -> None:
    """Model, optimizer and data of a run are freed after it, also after failed runs."""
    session, before = regression(epochs=1), loops()  # what IPython keeps of an error that an earlier test showed
    for _ in range(3):
        session.train()
        with pytest.raises(ZeroDivisionError):
            session.set_step(lambda model, criterion, batch: 1 / 0).train()
        session.set_step(None)
    runs = [session.train() for _ in range(2)]

    assert [] == [loop for loop in loops() if loop not in before]
    assert ["finished", "failed"] * 3 + ["finished"] * 2 == session.runs["state"].tolist()
    assert "finished" == runs[0].state


def test_a_failed_attempt_has_no_rows_of_the_next_one() -> None:
    """`runs` shows an attempt that failed at once with no epochs, also after the next has made some."""
    session = regression(epochs=2).set_step(lambda model, criterion, batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        session.train()
    session.set_step(None).train()

    assert ["none", "0-1"] == session.runs["epochs"].tolist()
