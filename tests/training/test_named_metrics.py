"""Metrics by name have the values of torchmetrics and scikit-learn, also where two ranks saw half of the samples."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from harness.plain import classes, network, quiet
from harness.ranks import on_ranks
from sklearn import metrics as reference
from torch import Tensor, nn
from torchmetrics.functional import classification, regression

from quik_nb import QuikSession, RecipeError
from quik_nb.recipe.monitor import METRICS
from quik_nb.training.named_metrics import NamedMetric
from quik_nb.training.world import World

SAMPLES = 60
CLASSES = 7
ROUNDING = 1e-6

Pair = tuple[Tensor, Tensor]
Reference = Callable[[Tensor, Tensor], Any]


def random(*shape: int) -> Tensor:
    """Normal numbers, always the same for a shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def of_classes() -> Pair:
    """Scores of seven classes, of which the last never occurs, and class numbers."""
    scores = random(SAMPLES, CLASSES)
    return scores, (scores + 1.5 * random(CLASSES, SAMPLES).T)[:, : CLASSES - 1].argmax(1)


def some_ignored(ignored: int = -100) -> Pair:
    """The same, of which every fourth counts nothing."""
    scores, true = of_classes()
    true[::4] = ignored
    return scores, true


def of_labels(labels: int = 3) -> Pair:
    """Logits of several labels and 0 or 1 as floats, as BCE losses take them."""
    logits = random(SAMPLES, labels)
    return logits, (logits + random(labels, SAMPLES).T > 0.3).float()


def of_numbers(outputs: int = 2) -> Pair:
    """Predictions far from 0 and true numbers."""
    true = 100 + 5 * random(SAMPLES, outputs)
    return true + random(outputs, SAMPLES).T, true


def on_two_halves(name: str, criterion: object, pair: Pair) -> tuple[float, float]:
    """A metric by name over all samples in batches of 7 on one rank, and over uneven halves on two, which agree."""

    def measured(world: World) -> float:
        metric = NamedMetric(name, criterion, world)
        own = slice(None) if world.world_size == 1 else (slice(0, 37), slice(37, None))[world.rank]
        for outputs, targets in zip(pair[0][own].split(7), pair[1][own].split(7), strict=True):
            metric.update(outputs, targets)
        return metric.compute()

    (whole,) = on_ranks(1, measured)
    halves = on_ranks(2, measured)
    assert halves[0] == halves[1]
    return whole, halves[0]


def by_sklearn(function: Callable[..., Any], **keywords: Any) -> Reference:
    """A metric of scikit-learn over the classes that win."""
    return lambda outputs, true: function(true, outputs.argmax(1), **keywords)


def one_against_the_rest(function: Callable[..., Any]) -> Reference:
    """The mean of a metric of scikit-learn over the classes that occur."""

    def mean(outputs: Tensor, true: Tensor) -> Any:
        scores = outputs.double().softmax(1)
        return np.mean([function((true == c).int(), scores[:, c]) for c in true.unique()])

    return mean


MACRO = {"average": "macro", "zero_division": 0.0}
OF_CLASSES: dict[str, Reference] = {
    "accuracy": by_sklearn(reference.accuracy_score),
    "top5_accuracy": lambda outputs, true: reference.top_k_accuracy_score(
        true, outputs.numpy(), k=5, labels=range(CLASSES)
    ),
    "precision": by_sklearn(reference.precision_score, **MACRO),
    "recall": by_sklearn(reference.recall_score, **MACRO),
    "f1": by_sklearn(reference.f1_score, **MACRO),
    "auroc": one_against_the_rest(reference.roc_auc_score),
    "average_precision": one_against_the_rest(reference.average_precision_score),
}


def by_torchmetrics(name: str, **keywords: Any) -> Reference:
    """A metric of torchmetrics: multilabel, or binary for one label, which multilabel does not take."""

    def measured(outputs: Tensor, true: Tensor) -> Tensor:
        if true.shape[1] == 1:
            binary: Tensor = getattr(classification, f"binary_{name}")(outputs, true.long())
            return binary
        several: Tensor = getattr(classification, f"multilabel_{name}")(
            outputs, true.long(), num_labels=true.shape[1], **keywords
        )
        return several

    return measured


OF_LABELS: dict[str, Reference] = {
    "accuracy": by_torchmetrics("accuracy", average="micro"),
    "precision": by_torchmetrics("precision"),
    "recall": by_torchmetrics("recall"),
    "f1": by_torchmetrics("f1_score"),
    "auroc": by_torchmetrics("auroc"),
    "average_precision": by_torchmetrics("average_precision"),
}
OF_NUMBERS: dict[str, Reference] = {
    "mae": regression.mean_absolute_error,
    "mse": regression.mean_squared_error,
    "rmse": lambda outputs, true: regression.mean_squared_error(outputs, true, squared=False),
    "r2": lambda outputs, true: reference.r2_score(true, outputs),
}


def test_every_name_is_tried_here() -> None:
    """The names that set_metrics knows are those that this module compares with other libraries."""
    assert list(METRICS) == list(OF_CLASSES | OF_LABELS | OF_NUMBERS)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_classes(name: str) -> None:
    """Of several classes, as scikit-learn says, with a class that never occurs left out of the mean over classes."""
    expected = OF_CLASSES[name](*of_classes())

    assert (expected, expected) == pytest.approx(on_two_halves(name, nn.CrossEntropyLoss(), of_classes()), abs=ROUNDING)


@pytest.mark.parametrize("ignored", [-100, 2])
@pytest.mark.parametrize("name", OF_CLASSES)
def test_ignored_labels_count_nothing(name: str, ignored: int) -> None:
    """Samples of the label that the criterion ignores are as if they were not there."""
    scores, true = some_ignored(ignored)
    expected = OF_CLASSES[name](scores[true != ignored], true[true != ignored])
    criterion = nn.CrossEntropyLoss(ignore_index=ignored)

    assert (expected, expected) == pytest.approx(on_two_halves(name, criterion, (scores, true)), abs=ROUNDING)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_pixels_are_answers(name: str) -> None:
    """Scores (samples, classes, height, width) count each pixel, as the same scores one after the other do."""
    scores, true = of_classes()
    images = scores.reshape(15, 2, 2, CLASSES).permute(0, 3, 1, 2), true.reshape(15, 2, 2)
    metric = NamedMetric(name, nn.CrossEntropyLoss(), World())
    metric.update(*images)

    assert OF_CLASSES[name](scores, true) == pytest.approx(metric.compute(), abs=ROUNDING)


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("name", OF_LABELS)
def test_labels_from_logits(name: str, labels: int) -> None:
    """With BCEWithLogitsLoss, as torchmetrics says of one label and of several."""
    pair = of_labels(labels)
    expected = float(OF_LABELS[name](pair[0].double(), pair[1]))

    assert (expected, expected) == pytest.approx(on_two_halves(name, nn.BCEWithLogitsLoss(), pair), abs=ROUNDING)


@pytest.mark.parametrize("name", OF_LABELS)
def test_labels_from_probabilities(name: str) -> None:
    """With BCELoss, whose probabilities mean yes from one half up."""
    logits, true = of_labels()
    expected = float(OF_LABELS[name](logits.double(), true))

    assert (expected, expected) == pytest.approx(
        on_two_halves(name, nn.BCELoss(), (logits.sigmoid(), true)), abs=ROUNDING
    )


@pytest.mark.parametrize("squash", [torch.sigmoid, lambda logits: logits])
@pytest.mark.parametrize("name", OF_LABELS)
def test_labels_of_a_criterion_that_does_not_tell(name: str, squash: Callable[[Tensor], Tensor]) -> None:
    """Without one of torch's BCE losses, all scores of the split tell whether they are logits or probabilities."""
    logits, true = of_labels()
    expected = float(OF_LABELS[name](logits.double(), true))

    assert (expected, expected) == pytest.approx(on_two_halves(name, None, (squash(logits), true)), abs=ROUNDING)


@pytest.mark.parametrize("name", OF_LABELS)
def test_one_output_for_each_answer_of_yes_or_no(name: str) -> None:
    """Outputs (samples, 1) for targets (samples,) are answers of yes or no, not a single class that is always right."""
    logits, true = of_labels(1)
    expected = float(OF_LABELS[name](logits.double(), true))

    assert (expected, expected) == pytest.approx(on_two_halves(name, None, (logits, true[:, 0].long())), abs=ROUNDING)


@pytest.mark.parametrize("shape", [(15, 1, 2, 2), (15, 2, 2)])
def test_pixels_of_a_mask_are_of_one_label(shape: tuple[int, ...]) -> None:
    """F1 of masks is over all pixels, not a mean over pixels' places."""
    logits, true = of_labels(1)
    metric = NamedMetric("f1", nn.BCEWithLogitsLoss(), World())
    metric.update(logits.reshape(shape), true.reshape(shape))

    assert float(reference.f1_score(true, logits > 0)) == pytest.approx(metric.compute(), abs=ROUNDING)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("name", OF_NUMBERS)
def test_numbers(name: str, outputs: int) -> None:
    """For regression, as torchmetrics and scikit-learn say, of one output and of several."""
    predicted, true = of_numbers(outputs)
    expected = float(OF_NUMBERS[name](predicted.double(), true.double()))

    assert (expected, expected) == pytest.approx(
        on_two_halves(name, nn.MSELoss(), (predicted, true)), abs=ROUNDING, rel=ROUNDING
    )


def test_numbers_of_images_of_several_sizes() -> None:
    """The mean error of batches of different widths is over all of their numbers."""
    metric = NamedMetric("mae", nn.L1Loss(), World())
    metric.update(torch.zeros(1, 2), torch.ones(1, 2))
    metric.update(torch.zeros(1, 4), torch.zeros(1, 4))

    assert 2 / 6 == pytest.approx(metric.compute())


@pytest.mark.parametrize(
    ("name", "criterion", "pair", "instead"),
    [
        ("accuracy", nn.MSELoss(), of_numbers(), "use mae, mse, rmse or r2"),
        ("mae", nn.CrossEntropyLoss(), of_classes(), "use accuracy for classes"),
        ("top5_accuracy", nn.BCEWithLogitsLoss(), of_labels(), "use accuracy"),
        ("f1", nn.CrossEntropyLoss(), (random(6, 3), torch.zeros(6, 2).long()), "outputs of shape (samples, classes)"),
    ],
)
def test_what_a_metric_cannot_compare(name: str, criterion: nn.Module, pair: Pair, instead: str) -> None:
    """Outputs that a metric is not for are an error that says which one is."""
    with pytest.raises(RecipeError) as caught:
        NamedMetric(name, criterion, World()).update(*pair)

    assert instead in str(caught.value)


def test_an_unknown_name_lists_those_that_are_known() -> None:
    """A typing error gives the nearest name and all of them."""
    with pytest.raises(RecipeError) as caught:
        QuikSession(view=False).set_metrics("acuracy")

    assert "did you mean 'accuracy'" in str(caught.value).lower()
    assert ", ".join(METRICS) in str(caught.value)


def test_columns_of_a_training() -> None:
    """`set_metrics("accuracy", top="f1")` gives columns accuracy and top, with the values of the model's outputs."""
    session = quiet(epochs=2, lr=0.1).add_data(train=classes(), valid=classes(57)).add_model(network(3))
    session.set_criterion(nn.CrossEntropyLoss).set_optimizer(torch.optim.Adam).set_metrics("accuracy", top="f1")
    session.train()
    x, y = classes(57)
    predicted = session.predict(x).argmax(1)
    row = session.history.iloc[-1]

    assert reference.accuracy_score(y, predicted) == pytest.approx(row.accuracy)
    assert reference.f1_score(y, predicted, average="macro") == pytest.approx(row.top)
