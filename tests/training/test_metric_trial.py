"""Metrics are tried before a training: a fault costs no epoch, and nothing of the trial is to be seen afterwards."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from harness.plain import classes, distance, network, quiet
from torch import Tensor, nn, optim
from torch.utils.data import IterableDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from quik_nb import QuikSession
from quik_nb.events import RunStart
from quik_nb.training.metric_trial import SAMPLES


def session(valid: Any = None, **settings: Any) -> QuikSession:
    """A session that could train a small classifier with dropout for an epoch."""
    made = quiet(**{"epochs": 1, "lr": 0.1, **settings})
    made.add_data(train=classes(), valid=classes(57) if valid is None else valid)
    return made.add_model(network(3, dropout=0.5)).set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.SGD)


def broken(outputs: Tensor, targets: Tensor) -> float:
    """A metric with a fault."""
    raise ArithmeticError("no such number")


class Numbers(IterableDataset[Any]):
    """A stream that counts how far it was read."""

    def __init__(self) -> None:
        self.read = 0
        self.passes: list[int] = []

    def __iter__(self) -> Iterator[Any]:
        """Samples from where the last pass ended."""
        x, y = classes(1000)
        self.passes.append(self.read)
        for i in range(20):
            self.read += 1
            yield x[self.read + i], y[self.read + i]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_fault_ends_the_call_before_a_step(processes: int) -> None:
    """The error of a metric comes before anything was trained, and says how to leave the trial out."""
    made = session(processes=processes).set_metrics("accuracy", spread=broken)

    with pytest.raises(ArithmeticError) as caught:
        made.train()

    assert 0.0 == distance(network(3), made.model)
    assert 0 == len(made.history)
    notes = " ".join(caught.value.__notes__)
    assert "'spread'" in notes
    assert "set_metrics(..., check=False) leaves the trial out" in notes


def test_without_the_trial_the_fault_comes_after_the_epoch() -> None:
    """With check=False metrics are called first at the end of an epoch."""
    made = session().set_metrics(spread=broken, check=False)

    with pytest.raises(ArithmeticError):
        made.train()

    assert 0.0 < distance(network(3), made.model)


def test_a_trial_changes_no_number() -> None:
    """Weights, losses and metrics of a training are equal bit for bit with and without it."""

    def random_metric(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.rand(())

    tried, untried = session(epochs=2), session(epochs=2)
    tried.set_metrics("accuracy", random_metric).train()
    untried.set_metrics("accuracy", random_metric, check=False).train()

    assert 0.0 == distance(tried.model, untried.model)
    assert tried.history.drop(columns="time").equals(untried.history.drop(columns="time"))


def test_a_trial_leaves_modes_and_counters_of_the_notebook() -> None:
    """A part in evaluation mode stays so, and a metric that counts its calls has counted those of epochs alone."""
    calls: list[int] = []

    def size(outputs: Tensor, targets: Tensor) -> int:
        calls.append(len(outputs))
        return len(outputs)

    made = session(eval_modules="2")
    assert made.model is not None
    made.model[2].eval()  # type: ignore[operator]
    before = [part.training for part in made.model.modules()]
    made.set_metrics(size).train()

    assert before == [part.training for part in made.model.modules()]
    assert [57] == calls


def test_a_trial_does_not_read_a_stream_on() -> None:
    """The validation stream is read by the epochs alone, from where it stood."""
    stream = Numbers()
    session(valid=stream, epochs=2).set_metrics("accuracy").train()

    assert [0, 20] == stream.passes


def test_a_trial_takes_some_samples() -> None:
    """At most 256 samples of a long split are tried."""

    def size(outputs: Tensor, targets: Tensor) -> float:
        raise ArithmeticError(len(outputs))

    with pytest.raises(ArithmeticError) as caught:
        session(valid=classes(1000)).set_metrics(size).train()

    assert (SAMPLES,) == caught.value.args


def test_columns_stand_in_the_first_event() -> None:
    """Before the first step the names of all columns are known, those of dicts and collections as NAME_key."""
    collection = MetricCollection({"acc": MulticlassAccuracy(3), "f1": MulticlassF1Score(3)})
    starts: list[RunStart] = []
    made = session().on("run_start", starts.append)
    made.set_metrics(
        "accuracy",
        train=True,
        spread=lambda outputs, targets: {"low": outputs.min(), "high": outputs.max()},
        several=collection,
    )
    made.train()

    metrics = ["accuracy", "spread_low", "spread_high", "several_acc", "several_f1"]
    expected = ["train_loss", "valid_loss", *metrics, *(f"train_{name}" for name in metrics)]
    assert expected == list(starts[0].columns)
    assert set(expected) <= set(made.history.columns)
    assert made.history.spread_low[0] < made.history.spread_high[0]
