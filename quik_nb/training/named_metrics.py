"""Metrics by name: what `set_metrics("accuracy", top="f1")` means for the criterion, outputs and targets at hand.

| name                       | classes                            | labels (BCE losses)      | numbers              |
|----------------------------|------------------------------------|--------------------------|----------------------|
| accuracy                   | share of right answers             | share of right labels    |                      |
| top5_accuracy              | right class among the five highest |                          |                      |
| precision, recall, f1      | mean over the classes (macro)      | mean over the labels     |                      |
| auroc, average_precision   | each class against the rest (mean) | mean over the labels     |                      |
| mae, mse, rmse, r2         |                                    |                          | mean over the outputs |

Labels that the criterion ignores count nothing. All but auroc and average_precision, which torchmetrics counts, are
sums that are added up batch by batch, so that no outputs are kept.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quik_nb.errors import QuikError, RecipeError
from quik_nb.training.outputs import IGNORED
from quik_nb.training.world import World, exact

YES_OR_NO = (nn.BCELoss, nn.BCEWithLogitsLoss)
"""Criteria of labels: yes or no for each of several."""

SHARES = "probabilities: "
"""Before the names of sums that hold if scores are probabilities."""

Sums = dict[str, Tensor]


class Classes(NamedTuple):
    """Answers to a question of which one of several is right, one after the other."""

    scores: Tensor
    """(answers, classes)"""
    true: Tensor
    """(answers,) class numbers"""


class Labels(NamedTuple):
    """Answers of yes or no to several questions."""

    scores: Tensor
    """(samples, labels); yes from 0 up for logits, from 0.5 up for probabilities"""
    true: Tensor
    """(samples, labels) of 0 and 1"""
    threshold: float | None
    """of the scores; None where only all scores of a split tell whether they are logits or probabilities"""


class NamedMetric:
    """A metric by its name, counted over the batches of a split.

    Args:
        name: one of `METRIC_NAMES`.
        criterion: of the training, by which labels and what is ignored are known; None for a model's own loss.
        world: this rank among the others.
    """

    def __init__(self, name: str, criterion: object, world: World) -> None:
        self.name = name
        self.criterion = criterion
        self.world = world
        self._sums: Sums = {}
        self._scores: list[Classes | Labels] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """Take the outputs and targets of a batch."""
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
            raise RecipeError(
                f"{self.name} compares a tensor of outputs with a tensor of targets, and got a "
                f"{type(outputs).__name__} and a {type(targets).__name__}: use a function of (outputs, targets)."
            )
        if self.name in ("mae", "mse", "rmse", "r2"):
            self._add(sums_of_numbers(self.name, outputs, targets))
            return

        answers = answers_of(self.criterion, outputs, targets)
        if self.name in ("auroc", "average_precision"):
            self._scores.append(answers)
        elif isinstance(answers, Labels):
            self._add(sums_of_labels(self.name, answers))
        else:
            self._add(sums_of_classes(self.name, answers))

    def _add(self, sums: Sums) -> None:
        for key, value in sums.items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value

    def compute(self) -> float:
        """The value over the batches of all ranks (all ranks participate)."""
        own = ({key: value.cpu() for key, value in self._sums.items()}, self._on_cpu())
        ranks = self.world.gather(own)
        self._sums, self._scores = {}, []
        for sums, scores in ranks:
            self._add(sums)
            self._scores += scores
        if not self._sums and not self._scores:
            raise RecipeError(
                "There are no outputs to judge: have the step return (loss, outputs), not the loss alone."
            )
        return area(self.name, self._scores) if self._scores else RESULTS[self.name](by_what_they_are(self._sums))

    def _on_cpu(self) -> list[Classes | Labels]:
        return [part._replace(scores=part.scores.cpu(), true=part.true.cpu()) for part in self._scores]


# ---------------------------------------------------------------------- what is compared


def answers_of(criterion: object, outputs: Tensor, targets: Tensor) -> Classes | Labels:
    """Outputs and targets as answers, by the criterion and their shapes.

    Raises:
        RecipeError: they are neither classes nor labels.
    """
    if outputs.numel() == targets.numel():  # (n, 1) for (n,)
        outputs = outputs.reshape(targets.shape)
    alike = outputs.shape == targets.shape
    is_yes_or_no = isinstance(criterion, YES_OR_NO)
    scores_for_targets = alike and targets.is_floating_point() and isinstance(criterion, nn.CrossEntropyLoss)
    if is_yes_or_no or (alike and not scores_for_targets):
        return as_labels(outputs, targets, threshold_of(criterion))

    return as_classes(outputs, targets, getattr(criterion, "ignore_index", IGNORED), has_classes_second(criterion))


def threshold_of(criterion: object) -> float | None:
    """From where up a score means yes; None where the criterion does not tell."""
    if isinstance(criterion, nn.BCELoss):
        return 0.5
    return 0.0 if isinstance(criterion, nn.BCEWithLogitsLoss) else None


def has_classes_second(criterion: object) -> bool:
    """Whether it is one of torch's criteria, for which the classes are the second dimension."""
    return isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss)


def as_labels(outputs: Tensor, targets: Tensor, threshold: float | None) -> Labels:
    """Outputs and targets as labels, which are the second dimension: pixels of a mask count as samples do.

    Raises:
        RecipeError: the targets are not 0 and 1.
    """
    if not ((targets == 0) | (targets == 1)).all():
        raise RecipeError(
            f"The targets {tuple(targets.shape)} have the shape of the outputs and are not 0 and 1, so they are "
            f"numbers rather than labels: use mae, mse, rmse or r2, or a function of (outputs, targets)."
        )
    if targets.ndim in (1, 3):  # one question: of each sample, or of each pixel of masks (samples, height, width)
        outputs, targets = outputs.reshape(-1, 1), targets.reshape(-1, 1)
    scores, true = (value.movedim(1, -1).reshape(-1, value.shape[1]) for value in (outputs, targets))
    return Labels(scores, true.long(), threshold)


def as_classes(outputs: Tensor, targets: Tensor, ignored: int = IGNORED, second: bool = False) -> Classes:
    """Scores and true class numbers, one after the other, without those that are ignored.

    Args:
        outputs: scores, (samples, classes) or with further dimensions before or after the classes.
        targets: class numbers without the dimension of the classes, or scores of the outputs' shape.
        ignored: the class number that is left aside, as the criterion does.
        second: whether the classes are the second dimension where both it and the last could be.

    Raises:
        RecipeError: there is no dimension of classes.
    """
    shape = list(outputs.shape)
    if outputs.shape == targets.shape and targets.is_floating_point():
        targets = targets.argmax(dim=1)
    last, first = shape[:-1] == list(targets.shape), shape[:1] + shape[2:] == list(targets.shape)
    if not (last or first) or outputs.ndim < 2:
        raise RecipeError(
            f"There are no classes in outputs of shape {tuple(shape)} for targets of shape {tuple(targets.shape)}: "
            f"have set_step return (loss, outputs) with outputs of shape (samples, classes)."
        )
    dim = 1 if first and (second or not last) else -1  # as torch's criteria have it, or as Hugging Face's models do
    scores = outputs.movedim(dim, -1).reshape(-1, shape[dim])
    kept = targets.flatten() != ignored
    return Classes(scores[kept], targets.flatten()[kept].long())


# ---------------------------------------------------------------------- sums of a batch


def sums_of_classes(name: str, answers: Classes) -> Sums:
    """What a batch adds, for classes."""
    scores, true = answers
    if name == "top5_accuracy":
        five = scores.topk(min(5, scores.shape[1]), dim=1).indices
        return share((five == true[:, None]).any(1))
    predicted = scores.argmax(1)
    if name == "accuracy":
        return share(predicted == true)
    count = scores.shape[1]
    return {
        "right": exactly(torch.bincount(true[predicted == true], minlength=count)),
        "predicted": exactly(torch.bincount(predicted, minlength=count)),
        "true": exactly(torch.bincount(true, minlength=count)),
    }


def sums_of_labels(name: str, answers: Labels) -> Sums:
    """What a batch adds, for labels; twice where the threshold is not known, for logits and for probabilities."""
    if name == "top5_accuracy":
        raise RecipeError("top5_accuracy is for classes, of which one is right, and these are labels: use accuracy.")
    scores = answers.scores
    if answers.threshold is not None:
        return sums_by_threshold(name, answers, answers.threshold)

    as_shares = {f"{SHARES}{key}": value for key, value in sums_by_threshold(name, answers, 0.5).items()}
    outside = exactly((scores < 0) | (scores > 1)).sum()
    return {**sums_by_threshold(name, answers, 0.0), **as_shares, "outside": outside}


def sums_by_threshold(name: str, answers: Labels, threshold: float) -> Sums:
    """What a batch of labels adds where scores above the threshold mean yes."""
    predicted, true = answers.scores > threshold, answers.true == 1
    if name == "accuracy":
        return share((predicted == true).flatten())
    return {
        "right": exactly(predicted & true).sum(0),
        "predicted": exactly(predicted).sum(0),
        "true": exactly(true).sum(0),
        "is label": exactly(true.new_ones(())),
    }


def by_what_they_are(sums: Sums) -> Sums:
    """The sums for logits, or those for probabilities where no score of the split is below 0 or above 1."""
    if "outside" not in sums or sums["outside"] > 0:
        return sums
    return {key.removeprefix(SHARES): value for key, value in sums.items() if key.startswith(SHARES)}


def exactly(values: Tensor) -> Tensor:
    """Numbers as long sums want them."""
    return values.to(exact(values.device))


def share(right: Tensor) -> Sums:
    """What a batch adds to a share of right answers."""
    return {"right": exactly(right).sum(), "count": exactly(right.new_ones(right.shape)).sum()}


def sums_of_numbers(name: str, outputs: Tensor, targets: Tensor) -> Sums:
    """What a batch adds, for numbers.

    Raises:
        RecipeError: outputs and targets are not of one shape.
    """
    if outputs.numel() != targets.numel():
        raise RecipeError(
            f"{name} compares numbers one by one, and the outputs are {tuple(outputs.shape)} for targets of shape "
            f"{tuple(targets.shape)}: use accuracy for classes, or a function of (outputs, targets)."
        )
    true = exactly(targets.reshape(len(targets), -1))
    error = exactly(outputs.reshape(true.shape)) - true
    if name == "mae":
        return {"absolute": error.abs().sum(), "count": torch.ones_like(true).sum()}
    if name != "r2":
        return {"squared": error.square().sum(), "count": torch.ones_like(true).sum()}
    return {
        "squared": error.square().sum(0),
        "sum": true.sum(0),
        "sum of squares": true.square().sum(0),
        "count": true.new_tensor(len(true)),
    }


# ---------------------------------------------------------------------- results


def macro(numerator: Tensor, denominator: Tensor, sums: Sums) -> float:
    """The mean over the classes that occur, in truth or in the answers; 0 for one without a denominator."""
    values = numerator / denominator.clamp(min=1.0)
    if "is label" in sums:
        return float(values.mean())
    return float(values[(sums["predicted"] + sums["true"]) > 0].mean())


def r2(sums: Sums) -> float:
    """The share of the variance that is explained, as its mean over the outputs."""
    spread = sums["sum of squares"] - sums["sum"].square() / sums["count"]
    return float((1 - sums["squared"] / spread).mean())


RESULTS: dict[str, Callable[[Sums], float]] = {
    "accuracy": lambda sums: float(sums["right"] / sums["count"]),
    "top5_accuracy": lambda sums: float(sums["right"] / sums["count"]),
    "precision": lambda sums: macro(sums["right"], sums["predicted"], sums),
    "recall": lambda sums: macro(sums["right"], sums["true"], sums),
    "f1": lambda sums: macro(2 * sums["right"], sums["predicted"] + sums["true"], sums),
    "mae": lambda sums: float(sums["absolute"] / sums["count"]),
    "mse": lambda sums: float(sums["squared"] / sums["count"]),
    "rmse": lambda sums: float((sums["squared"] / sums["count"]).sqrt()),
    "r2": r2,
}
"""How the sums of a split become a value, by name."""


def area(name: str, parts: list[Classes | Labels]) -> float:
    """The area under a curve as its mean over the classes or labels that have one, by torchmetrics; else NaN.

    Raises:
        QuikError: torchmetrics is not installed.
    """
    try:
        from torchmetrics.functional import classification
    except ImportError as error:
        raise QuikError(
            f"The metric {name!r} counts with torchmetrics, which is not installed: pip install 'quik_nb[metrics]'."
        ) from error
    scores = torch.cat([part.scores for part in parts]).double()
    true = torch.cat([part.true for part in parts])
    if isinstance(parts[0], Classes):
        scores, true = as_shares(scores), nn.functional.one_hot(true, scores.shape[1])

    # a class without samples has no curve; nor has a ROC one without samples of others
    positive = true.sum(0)
    has_curve = (positive > 0) & ((positive < len(true)) | (name != "auroc"))
    function = getattr(classification, f"binary_{name}")
    values = [float(function(scores[:, c], true[:, c])) for c in has_curve.nonzero().flatten().tolist()]
    return sum(values) / len(values) if values else math.nan


def as_shares(scores: Tensor) -> Tensor:
    """Scores of classes as probabilities; those that are probabilities stay as they are."""
    are_shares = bool((scores >= 0).all()) and bool(torch.allclose(scores.sum(1), scores.new_ones(()), atol=1e-3))
    return scores if are_shares else scores.softmax(1)
