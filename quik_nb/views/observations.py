"""What a look at the curve tells an experienced eye, in one short sentence, and only where it is plain.

Each question is a pure function of the rows and of what is known beside them; `observation` asks them in the order of
what matters most. Thresholds are wide on purpose: a sentence that comes too often is not read any more. Nothing here
changes a training.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from quik_nb.events import Row
from quik_nb.history import History
from quik_nb.views.format import learning_rate, number

EXPLODED = 10.0
"""How many times the loss of the first steps a loss must be."""
WAITING = 0.5
"""Part of an epoch's time that the data must be waited for."""
WAITING_SECONDS = 1.0
"""Seconds of waiting in an epoch below which nobody minds."""
RISING_EPOCHS = 3
"""Epochs since the lowest valid_loss, all of them above it."""
RISING_BY = 0.05
"""Part of the lowest valid_loss by which the latest one is higher."""
FALLING_BY = 0.02
"""Part of the train_loss by which it fell in the same epochs."""
STILL_EPOCHS = 6
"""Epochs without any movement."""
STILL_WITHIN = 1e-3
"""Part of the loss within which it stands still."""
ONE_CLASS_EPOCHS = 5
"""Epochs in which the accuracy is the very same number."""
ONE_CLASS_BELOW = 0.9
"""Accuracy above which the same number says nothing: hardly any sample is left that could change it."""


class Facts(NamedTuple):
    """What is known beside the rows."""

    first_loss: float | None = None
    """training loss of the first steps"""
    data_wait: float | None = None
    """part of the last epoch's time that was spent waiting for data, 0.0 to 1.0"""


def observation(history: History, data_wait: float | None = None) -> str:
    """The sentence that is due; empty where there is none.

    Args:
        history: rows, and the losses of the first steps.
        data_wait: part of the last epoch's time that was spent waiting for data, 0.0 to 1.0.
    """
    rows = history.comparable
    same_loss_throughout = len(rows) == len(history)
    first_loss = history.live[0].loss if history.live and same_loss_throughout else None
    facts = Facts(first_loss, data_wait)

    sentences = (ask(rows, facts) for ask in (exploded, waits_for_data, one_class, overfits, stands_still))
    return next((sentence for sentence in sentences if sentence), "")


def exploded(rows: Sequence[Row], facts: Facts) -> str:
    """The loss is many times what it was at first, and is a number still.

    >>> rows = [Row(epoch=0, train_loss=3.2e5, valid_loss=None, time=1.0, lr=1e6)]
    >>> exploded(rows, Facts(first_loss=2.3))
    'train_loss is 139,130 times that of the first steps: lr=1e6 is too high.'
    """
    if not rows:
        return ""
    first = facts.first_loss if facts.first_loss is not None else rows[0].train_loss
    last = rows[-1]
    if first <= 0 or not EXPLODED * first < last.train_loss < math.inf:
        return ""
    times = number(last.train_loss / first).split(".")[0]
    rate = learning_rate(last.lr)
    return f"train_loss is {times} times that of the first steps: lr={rate} is too high."


def waits_for_data(rows: Sequence[Row], facts: Facts) -> str:
    """Most of an epoch's time goes by before the batches are there.

    >>> rows = [Row(epoch=0, train_loss=1.0, valid_loss=None, time=20.0, lr=0.1)]
    >>> waits_for_data(rows, Facts(data_wait=0.7))
    'Waiting for data takes 70 % of the time: use num_workers=2.'
    """
    wait = facts.data_wait
    if not rows or wait is None or wait < WAITING or wait * rows[-1].time < WAITING_SECONDS:
        return ""
    return f"Waiting for data takes {100 * wait:.0f} % of the time: use num_workers=2."


def one_class(rows: Sequence[Row], facts: Facts) -> str:
    """The accuracy never changes, as of a model that gives every sample the same class.

    >>> rows = [Row(i, 2.3 - i / 100, 2.3, 1.0, 0.1, {"accuracy": 0.1}) for i in range(5)]
    >>> one_class(rows, Facts())
    'accuracy is 0.1000 in all epochs: the model may see one class only.'
    """
    if len(rows) < ONE_CLASS_EPOCHS:
        return ""
    for name in rows[-1].metrics:
        values = {row.metrics.get(name) for row in rows}
        value = rows[-1].metrics[name]
        if "acc" in name and len(values) == 1 and 0.0 < value < ONE_CLASS_BELOW:
            return f"{name} is {number(value)} in all epochs: the model may see one class only."
    return ""


def overfits(rows: Sequence[Row], facts: Facts) -> str:
    """The valid_loss rises since its lowest epoch, while the train_loss falls.

    >>> rows = [Row(i, 1 / (i + 1), 0.5 + 0.1 * abs(i - 2), 1.0, 0.1) for i in range(6)]
    >>> overfits(rows, Facts())
    'valid_loss rises since epoch 2 (0.5000 to 0.8000): the model overfits.'
    """
    whole = [(row, row.valid_loss) for row in rows if row.valid_loss is not None and row.fraction == 1.0]
    pairs = [(row, value) for row, value in whole if math.isfinite(value)]
    if len(pairs) <= RISING_EPOCHS:
        return ""
    best, lowest = min(pairs, key=lambda pair: pair[1])
    last, latest = pairs[-1]
    since = [value for row, value in pairs if row.epoch > best.epoch]
    if len(since) < RISING_EPOCHS or not _rises(since) or latest < lowest + RISING_BY * abs(lowest):
        return ""
    if last.train_loss > best.train_loss - FALLING_BY * abs(best.train_loss):
        return ""
    return f"valid_loss rises since epoch {best.epoch} ({number(lowest)} to {number(latest)}): the model overfits."


def _rises(values: Sequence[float]) -> bool:
    """Whether the later half is above the earlier one, so that a single high value is no rise."""
    half = len(values) // 2
    return sum(values[-half:]) / half > sum(values[:half]) / half


def stands_still(rows: Sequence[Row], facts: Facts) -> str:
    """The train_loss has not moved for some epochs.

    >>> rows = [Row(i, 0.6931, None, 1.0, 1e-9) for i in range(8)]
    >>> stands_still(rows, Facts())
    'train_loss has not moved since epoch 0: lr=1e-9 may be too low.'
    """
    if len(rows) < STILL_EPOCHS:
        return ""
    last = rows[-1]
    still = 0
    for row in reversed(rows):
        if not abs(row.train_loss - last.train_loss) <= STILL_WITHIN * abs(last.train_loss):
            break
        still += 1
    if still < STILL_EPOCHS:
        return ""
    if still < len(rows):
        return f"train_loss has not moved for {still} epochs."
    return f"train_loss has not moved since epoch {rows[0].epoch}: lr={learning_rate(last.lr)} may be too low."
