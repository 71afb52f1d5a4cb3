"""The sentence under the curve: there where it is due, and silent where it is not plain."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from quik_nb.events import Row, StepEnd
from quik_nb.history import History
from quik_nb.views.observations import observation

Make = Callable[..., Any]


def history(train: list[float], valid: list[float] | None = None, **values: Any) -> History:
    """A history of these losses."""
    valid_losses: list[float | None] = [*valid] if valid else [None] * len(train)
    fields = {"time": 2.0, "lr": 1e-3} | values
    return History(
        [Row(epoch, loss, valid_losses[epoch], **fields) for epoch, loss in enumerate(train)]  # type: ignore[arg-type]
    )


def test_overfitting_is_named_with_its_epoch() -> None:
    """valid_loss rises for epochs while train_loss falls."""
    train = [1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1]
    valid = [1.1, 0.9, 0.8, 0.85, 0.9, 0.95, 1.0]

    assert "valid_loss rises since epoch 2 (0.8000 to 1.0000): the model overfits." == observation(
        history(train, valid)
    )


def test_a_single_bad_epoch_is_no_overfitting() -> None:
    """One high value among others, and a train_loss that rises as well, are something else."""
    train = [1.0, 0.7, 0.5, 0.4, 0.3, 0.2]

    assert "" == observation(history(train, [1.1, 0.9, 0.8, 0.85, 0.82, 0.81]))
    assert "" == observation(history(train, [1.1, 0.9, 0.8, 0.75, 0.7, 1.3]))
    assert "" == observation(history([1.0, 0.7, 0.5, 0.6, 0.7, 0.8], [1.1, 0.9, 0.8, 0.9, 1.0, 1.1]))


def test_a_loss_that_does_not_move_is_named() -> None:
    """From the first epoch on the rate is suspected; later it is only said."""
    assert "train_loss has not moved since epoch 0: lr=1e-9 may be too low." == observation(
        history([0.6931] * 7, lr=1e-9)
    )
    assert "train_loss has not moved for 6 epochs." == observation(history([2.0, 1.0, *[0.5] * 6]))


def test_a_slow_fall_is_a_movement() -> None:
    """Half a percent an epoch is little, and not nothing."""
    assert "" == observation(history([0.7 * 0.995**epoch for epoch in range(30)]))


def test_a_loss_that_exploded_is_named_with_its_rate() -> None:
    """Compared with the first steps, so that the first epoch can say it."""
    exploded = History()
    exploded.record(StepEnd(0, 1, 100, 2.3, 9.0, losses=(2.3,)))
    exploded.add(Row(0, 3.2e5, 3.1e5, 2.0, 1e6))

    assert "train_loss is 139,130 times that of the first steps: lr=1e6 is too high." == observation(exploded)
    assert "train_loss is 40 times that of the first steps: lr=0.001 is too high." == observation(history([0.5, 20.0]))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_what_is_no_number_is_not_explained(loss: float) -> None:
    """That is an error of its own."""
    assert "" == observation(history([0.5] * 2 + [loss], [0.5] * 2 + [loss]))


def test_waiting_for_data_is_named() -> None:
    """Most of the time, and more than a moment."""
    words = "Waiting for data takes 70 % of the time: use num_workers=2."

    assert words == observation(history([1.0, 0.5]), data_wait=0.7)
    assert "" == observation(history([1.0, 0.5]), data_wait=0.3)
    assert "" == observation(history([1.0, 0.5], time=0.2), data_wait=0.7)
    assert "" == observation(history([1.0, 0.5]), data_wait=None)


def test_an_accuracy_that_never_changes_is_named() -> None:
    """The very same number in all epochs, far from all right."""
    falling = [2.3, 2.2, 2.1, 2.0, 1.9]

    assert "accuracy is 0.1000 in all epochs: the model may see one class only." == observation(
        history(falling, metrics={"accuracy": 0.1})
    )
    assert "" == observation(history(falling, metrics={"accuracy": 0.9778}))
    assert "" == observation(history(falling, metrics={"f1": 0.1}))


def test_only_rows_of_one_loss_are_compared(make_history: Make) -> None:
    """After another criterion the losses are others, which is no explosion."""
    from quik_nb.events import Annotation

    changed = history([0.5, 0.4, 20.0, 19.0])
    changed.record(Annotation(2.0, "another loss", breaks_comparison=True))

    assert "" == observation(changed)


@pytest.mark.parametrize("seed", range(20))
def test_an_ordinary_training_is_left_alone(seed: int) -> None:
    """A noisy fall to a plateau, with a valid_loss that follows and hovers, calls for no sentence at any epoch."""
    noise = random.Random(seed)
    train = [2.0 * math.exp(-epoch / 4) + 0.2 + noise.gauss(0, 0.01) for epoch in range(25)]
    valid = [2.0 * math.exp(-epoch / 4) + 0.25 + noise.gauss(0, 0.01) for epoch in range(25)]

    assert {""} == {observation(history(train[:n], valid[:n])) for n in range(26)}
