"""The record of a training: what it keeps up to date, and the losses between its rows."""

from collections.abc import Callable

import pytest

from quik_nb.events import Annotation, Row, StepEnd
from quik_nb.history import LIVE_POINTS, STRETCHES, History


def row(epoch: int, loss: float = 1.0, fraction: float = 1.0, **metrics: float) -> Row:
    """A row whose valid_loss is given."""
    return Row(epoch, loss, loss, 1.0, 0.1, metrics, fraction)


def steps(epoch: int, done: int, of: int, losses: list[float], phase: str = "train") -> StepEnd:
    """A sign of life with the losses of its latest steps."""
    return StepEnd(epoch, done, of, losses[-1], 9.0, phase, losses=tuple(losses))  # type: ignore[arg-type]


def mean(history: History) -> float:
    """Of the steps' losses, each point by the number of its steps."""
    return sum(point.loss * point.steps for point in history.live) / sum(point.steps for point in history.live)


# ------------------------------------------------------------------ rows


@pytest.mark.parametrize(
    ("change", "best"),
    [
        (lambda history: history.add(row(3, 0.1)), 3),
        (lambda history: history.add(row(3, 0.9)), 1),
        (lambda history: history.add(row(3, 0.1, fraction=0.5)), 1),
        (lambda history: history.add(row(1, 0.9)), 0),
        (lambda history: history.record(Annotation(2.0, "another loss", breaks_comparison=True)), 2),
        (lambda history: setattr(history, "rows", history.rows[:1]), 0),
    ],
)
def test_the_best_is_kept_up_to_date(change: Callable[[History], None], best: int) -> None:
    """After each change it is what a look at all rows from the start would find."""
    history = History([row(0, 0.5), row(1, 0.2), row(2, 0.3)])
    assert history.best is not None
    assert 1 == history.best.epoch

    change(history)

    assert history.best is not None
    assert best == history.best.epoch
    assert History(history.rows, history.annotations).best == history.best


def test_columns_are_those_of_the_rows_that_are_left() -> None:
    """A metric that only a row had which was replaced is a column no more."""
    history = History([row(0, f1=0.5), row(1, f1=0.5, extra=1.0)])
    history.add(row(1, f1=0.6))

    assert ["train_loss", "valid_loss", "f1"] == history.columns


def test_a_copy_is_not_changed_by_what_is_recorded_later() -> None:
    """Neither its rows nor the losses between them."""
    history = History([row(0)])
    history.record(steps(0, 4, 4, [1.0] * 4))
    copy = history.copy()

    history.add(row(1))
    history.record(steps(1, 4, 4, [1.0] * 4))

    assert (1, 4) == (len(copy), sum(point.steps for point in copy.live))


# ------------------------------------------------------------------ the losses between them


def test_losses_between_rows_are_plain_means() -> None:
    """However many points are joined, the mean over all steps stays that of the losses."""
    history = History()
    losses = [float(step % 7) for step in range(100)]
    for epoch in range(100):
        history.record(steps(epoch, 60, 100, losses[:60]))
        history.record(steps(epoch, 100, 100, losses[60:]))

    assert len(history.live) <= LIVE_POINTS
    assert 100 * 100 == sum(point.steps for point in history.live)
    assert pytest.approx(sum(losses) / 100) == mean(history)


def test_points_end_where_epochs_end() -> None:
    """So that those of an epoch come to its train_loss, and no point mixes two epochs."""
    history = History()
    for epoch in range(3):
        history.record(steps(epoch, 32, 32, [float(epoch)] * 32))

    assert 3 * STRETCHES == len(history.live)
    assert {0.0, 1.0, 2.0} == {point.loss for point in history.live}


def test_a_validation_tells_of_the_last_steps_before_it() -> None:
    """Steps that no event of the training told belong to the end of its epoch."""
    history = History()
    history.record(steps(0, 6, 10, [1.0] * 6))
    history.record(steps(0, 1, 3, [2.0] * 4, phase="valid"))

    assert pytest.approx(1.4) == mean(history)
    assert all(0.0 < point.at < 1.0 for point in history.live)
    assert 2.0 == history.live[-1].loss


def test_steps_that_are_trained_again_replace_the_lost_ones() -> None:
    """A run that ended badly leaves no second line behind."""
    history = History()
    history.record(steps(0, 10, 10, [1.0] * 10))
    history.record(steps(0, 5, 10, [3.0] * 5))

    places = [point.at for point in history.live]
    assert sorted(places) == places
    assert max(places) < 0.6


def test_losses_that_are_no_numbers_are_left_out() -> None:
    """They are an error of their own, and would take the rest of their point with them."""
    history = History()
    history.record(steps(0, 4, 4, [1.0, float("nan"), float("inf"), 3.0]))

    assert pytest.approx(2.0) == mean(history)
