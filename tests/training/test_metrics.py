"""Metrics are of the whole split: exact over ranks, whichever way they count."""

from typing import Any

import pytest
import torch
from harness.plain import classes, network, quiet
from sklearn import metrics as reference
from torch import Tensor, nn, optim
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassAUROC, MulticlassF1Score

from quik_nb import QuikSession


class Score(BinaryAUROC):
    """AUROC of one class against the others."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.softmax(1)[:, 1], (target == 1).long())


class Area(MulticlassAUROC):
    """AUROC of shares: what comes as logits, torchmetrics normalises or not by what it sees in each batch."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.softmax(1), target)


class Width(MeanMetric):
    """A mean that gets outputs and targets."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        super().update(outputs.abs().mean(dim=1))


def f1(outputs: Tensor, targets: Tensor) -> float:
    """Macro F1 by scikit-learn: no mean of means would give it."""
    return float(reference.f1_score(targets.numpy(), outputs.argmax(1).numpy(), average="macro"))


def auroc(outputs: Tensor, targets: Tensor) -> float:
    """Area under the curve by scikit-learn, which needs all scores at once."""
    scores = outputs.softmax(1).numpy()
    return float(reference.roc_auc_score(targets.numpy(), scores, multi_class="ovr", average="macro"))


METRICS: dict[str, Any] = {
    "accuracy": MulticlassAccuracy(3, average="micro"),
    "balanced": MulticlassAccuracy(3, average="macro"),
    "f1_macro": MulticlassF1Score(3, average="macro"),
    "f1_sklearn": f1,
    "auroc": Area(3),
    "auroc_binned": Area(3, thresholds=20),
    "auroc_sklearn": auroc,
    "auroc_one": Score(),
    "width": Width(),
    "largest": lambda outputs, targets: outputs.max(),
}


def judged(samples: int, processes: int, train: bool = False) -> QuikSession:
    """Trained for two epochs on uneven classes, with all metrics."""
    session = quiet(epochs=2, lr=0.05, processes=processes, batch_size=7)
    session.add_data(train=classes(), valid=classes(samples)).add_model(network(3))
    session.set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.Adam).set_metrics(train=train, **METRICS)
    session.train()
    return session


@pytest.mark.parametrize("samples", [37, 800])
def test_two_ranks_measure_what_one_does(samples: int) -> None:
    """Each metric has the same value on two ranks as on one, for lengths that ranks do not share evenly."""
    one, two = judged(samples, 1), judged(samples, 2)

    for name in METRICS:
        assert list(one.history[name]) == pytest.approx(list(two.history[name]), abs=1e-6), name


def test_values_are_those_of_the_whole_split() -> None:
    """In the last row stands what scikit-learn says of the model's outputs, and evaluate says the same."""
    session = judged(57, 1)
    x, y = classes(57)
    outputs = session.predict(x)
    row = session.history.iloc[-1]

    assert reference.accuracy_score(y, outputs.argmax(1)) == pytest.approx(row.accuracy, abs=1e-6)
    assert f1(outputs, y) == pytest.approx(row.f1_macro, abs=1e-6)
    assert f1(outputs, y) == pytest.approx(row.f1_sklearn)
    assert auroc(outputs, y) == pytest.approx(row.auroc, abs=1e-6)
    assert {name: row[name] for name in METRICS} == {
        name: value for name, value in session.evaluate("valid").items() if name != "loss"
    }


def test_metrics_on_the_training_batches() -> None:
    """With train=True each metric has a column for the training batches too, the same on two ranks as on one."""
    one, two = judged(37, 1, train=True), judged(37, 2, train=True)

    for name in METRICS:
        assert list(one.history[f"train_{name}"]) == pytest.approx(list(two.history[f"train_{name}"]), abs=1e-6), name


def test_a_metric_is_not_used_up() -> None:
    """The object that was handed in stays as it was: two sessions may share it."""
    metric = MulticlassAccuracy(3)
    session = quiet(epochs=1).add_data(train=classes(), valid=classes(20)).add_model(network(3))
    session.set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.SGD).set_metrics(accuracy=metric).train()

    assert 0 == metric.update_count
    assert torch.equal(MulticlassAccuracy(3).tp, metric.tp)
