"""Where a run stands, in words: how far, how long, how fast, and how it ended."""

from collections.abc import Callable
from typing import Any

import pytest

from quik_nb.events import EpochEnd, Event, RunEnd, RunFailed, RunStart, StepEnd
from quik_nb.history import History
from quik_nb.views.status import RunStatus

Make = Callable[..., Any]

START = RunStart(0, 10, 50, "here")


def summary(history: History, *events: Event, title: str = "", closed: bool = True) -> str:
    """How a run with these events is summed up."""
    status = RunStatus(history, title)
    for event in events:
        history.record(event)
        status.record(event)
    status.closed = closed
    return status.summary()


def followed(history: History, clock: Any, *events: Event | float) -> RunStatus:
    """The status after these events; numbers are seconds that pass between them."""
    status = RunStatus(history, wall=clock.wall)
    for event in events:
        if isinstance(event, float):
            clock.now += event
        else:
            history.record(event)
            status.record(event)
    return status


# ------------------------------------------------------------------ how it ended


def test_the_summary_of_a_finished_run(make_history: Make) -> None:
    """It says the state, the epochs, the time, the best epoch, and the session's name where it has one."""
    expected = "digits: finished · 8 epochs in 08:08 · best valid_loss 0.1667 in epoch 5"

    assert expected == summary(make_history(8), START, RunEnd("finished"), title="digits")


def test_the_summary_speaks_of_its_own_call(make_history: Make, make_row: Make) -> None:
    """Epochs and time are those of this run; how many there are in all stands behind them."""
    rows = [EpochEnd(make_row(epoch, time=1.25)) for epoch in range(10, 14)]

    words = summary(make_history(10), RunStart(10, 14, 50, "here"), *rows, RunEnd("finished"))

    assert words.startswith("finished · 4 epochs in 00:05, 14 in all · best valid_loss")


def test_a_call_that_goes_on_within_an_epoch_counts_it(make_history: Make, make_row: Make) -> None:
    """The part that an earlier call has trained is not this call's; the whole epoch that comes of it is."""
    history = make_history(2, make_row(2, fraction=0.5))
    whole = EpochEnd(make_row(2, time=3.0))

    assert "stopped in epoch 2, all kept · 2.5 epochs in all" in summary(history, RunStart(2, 3, 50, "here"))
    assert "finished · 1 epoch in 00:03, 3 in all" in summary(
        history, RunStart(2, 3, 50, "here"), whole, RunEnd("finished")
    )


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


# ------------------------------------------------------------------ how long


def test_the_time_left_comes_from_the_epochs_of_this_run(make_history: Make, make_row: Make, make_clock: Make) -> None:
    """After 31 of the 61 seconds that the last epoch took, what is left are 30, and six epochs more."""
    half = StepEnd(3, 50, 100, 0.5, 50.0)
    status = followed(make_history(2), make_clock(), RunStart(2, 10, 100, ""), 61.0, EpochEnd(make_row(2)), 31.0, half)

    assert 30.0 + 6 * 61.0 == status.seconds_left()
    assert 61.0 + 31.0 == status.seconds()
    assert "epoch 3 (4 of 10) · 01:32 elapsed · 06:36 left" == status.status()
    assert "train loss 0.5000 · 50 steps/s" == status.facts()


def test_bar_elapsed_and_left_speak_of_the_same(make_clock: Make, make_row: Make) -> None:
    """At equal epochs the part of the run that is done is elapsed / (elapsed + left)."""
    events = [EpochEnd(make_row(epoch)) for epoch in range(3)]
    passed = [part for event in events for part in (61.0, event)]
    status = followed(History(), make_clock(), RunStart(0, 8, 100, ""), *passed, 30.5, StepEnd(3, 50, 100, 0.5, 1.64))
    left = status.seconds_left()

    assert left is not None
    assert 3.5 / 8 == pytest.approx(status.run_share)
    assert status.seconds() / (status.seconds() + left) == pytest.approx(status.run_share, abs=0.01)


def test_the_first_validation_has_an_honest_estimate(make_clock: Make) -> None:
    """70 epochs of 20 seconds' training and 5 of validation: before it is seen "at least", and then with all of it."""
    columns = ("train_loss", "valid_loss")
    start = RunStart(0, 70, 200, "", columns=columns)
    training = followed(History(), make_clock(), start, 10.0, StepEnd(0, 100, 200, 0.5, 10.0))
    clock = make_clock()
    validating = followed(
        History(), clock, start, 20.0, StepEnd(0, 200, 200, 0.5, 10.0), 2.0, StepEnd(0, 20, 50, 0.5, 10.0, "valid")
    )

    assert 10.0 + 69 * 20.0 == training.seconds_left()
    assert "at least 23:10 left" in training.status()
    assert 3.0 + 69 * (20.0 + 5.0) == validating.seconds_left()
    assert "28:48 left · validating" in validating.status()
    assert "at least" not in validating.status()


def test_between_epochs_loss_and_pace_stay(make_history: Make, make_row: Make, make_clock: Make) -> None:
    """After epoch 2 of 10 the line says how long the other seven take, with the loss and the pace of the last step."""
    events = (RunStart(2, 10, 100, ""), StepEnd(2, 99, 100, 0.5, 50.0), 61.0, EpochEnd(make_row(2)))
    status = followed(make_history(2), make_clock(), *events)

    assert "epoch 3 (4 of 10) · 01:01 elapsed · 07:07 left" == status.status()
    assert "train loss 0.5000 · 50 steps/s" == status.facts()
    assert 0.0 == status.epoch_share
    assert 1 / 8 == status.run_share


def test_a_view_that_joins_a_run_counts_what_came_before(make_history: Make, make_clock: Make) -> None:
    """It is shown the start again: the rows since then are this run's."""
    status = followed(make_history(4), make_clock(), RunStart(2, 10, 100, ""), 10.0)

    assert 2 * 61.0 + 10.0 == status.seconds()
    assert 2 / 8 == status.run_share


def test_a_view_that_joins_without_the_start_knows_its_epoch(make_history: Make) -> None:
    """Without the run's start the status still names the epoch."""
    status = RunStatus(make_history(2))
    status.record(StepEnd(7, 5, None, 0.5, 0.25, phase="valid"))

    assert "epoch 7 · validating" == status.status()
    assert "train loss 0.5000 · 4.0 s/step" == status.facts()


# ------------------------------------------------------------------ how fast


def test_what_is_known_of_the_present_step_is_said(make_clock: Make) -> None:
    """The learning rate, the samples per second and the GPU's memory, where there are such."""
    step = StepEnd(0, 5, 50, 0.5, 9.0, lr=3e-4, samples_per_second=51_234.0, gpu_memory=2_340_000_000)
    status = followed(History(), make_clock(), START, step)

    assert "train loss 0.5000 · lr 0.0003 · 51,234 samples/s · GPU memory 2.3 GB" == status.facts()
    assert "51,234 samples/s · GPU memory 2.3 GB" == status.pace()
