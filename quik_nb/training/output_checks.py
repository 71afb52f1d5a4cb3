"""Whether what a model gives at its first batch fits one of torch's criteria: what torch would take in silence, or tell
in words that do not say what to change.

Criteria of the user's own are not looked at: they may compare anything.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quik_nb.errors import RecipeError
from quik_nb.events import Tell
from quik_nb.recipe.recipe import FLOAT_TARGETS, label_tensor
from quik_nb.recipe.samples import Source, Tensors

ROUNDING = 0.01
"""How far a sum of probabilities may be from 1, also in bfloat16."""


def check_outputs(criterion: object, outputs: Any, target: Any, train: Source | None, tell: Tell) -> None:
    """Look at the outputs of the first batch before the criterion does.

    Args:
        criterion: one of torch's.
        outputs: of the model.
        target: of the batch.
        train: the training split, whose labels are all looked at where they are in memory.
        tell: tells the user something once.

    Raises:
        RecipeError: the criterion cannot compare them.
    """
    name = type(criterion).__name__
    if not isinstance(outputs, Tensor):
        raise RecipeError(
            f"{name} compares a tensor with the target, and the model gives a {_kind(outputs)}: say which of its "
            f"outputs counts, with set_step(lambda model, criterion, batch: "
            f"criterion(model(batch[0]){_first(outputs)}, batch[1]))."
        )
    if not isinstance(target, Tensor):
        return
    if isinstance(criterion, FLOAT_TARGETS):
        _check_numbers(name, outputs, target)
    if isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss) and outputs.ndim > 1:
        if not target.is_floating_point():
            labels = label_tensor(train) if isinstance(train, Tensors) else target
            _check_class_numbers(outputs.shape[1], labels, criterion.ignore_index)
        _check_scale(criterion, outputs.detach().float(), tell)


def _kind(outputs: Any) -> str:
    """Outputs in words.

    >>> _kind({"out": 1, "aux": 2}), _kind((1, 2))
    ("dict with 'out', 'aux'", 'tuple of 2')
    """
    name = type(outputs).__name__
    if isinstance(outputs, Mapping):
        return f"{name} with {', '.join(map(repr, outputs))}"
    return f"{name} of {len(outputs)}" if isinstance(outputs, tuple | list) else name


def _first(outputs: Any) -> str:
    """How to take the first of several outputs."""
    if isinstance(outputs, Mapping):
        return f"[{next(iter(outputs), 'out')!r}]"
    return "[0]" if isinstance(outputs, tuple | list) else ".logits"


def _check_numbers(name: str, outputs: Tensor, target: Tensor) -> None:
    """The classic silent mistake: (n, 1) against (n,) broadcasts to (n, n) and trains on nonsense."""
    if (outputs.dtype, target.dtype) == (torch.float32, torch.float64):
        raise RecipeError(
            f"{name} compares numbers of one kind, and the model gives float32 for a target of float64, as NumPy "
            f"makes it: pass y.float() (an array: y.astype('float32')), or have the dataset give it so."
        )
    if outputs.shape != target.shape:
        has_several = outputs.ndim == target.ndim + 1 and outputs.shape[1] > 1
        instead = "end the model with .squeeze(1), or pass the target as y[:, None]."
        if has_several and not target.is_floating_point():
            instead = "these are class numbers, for which use set_criterion(nn.CrossEntropyLoss)."
        elif has_several:
            instead = "end the model with one output; for class numbers, use nn.CrossEntropyLoss and y.long()."
        raise RecipeError(
            f"{name} compares element by element, and the model gives {tuple(outputs.shape)} "
            f"for targets of shape {tuple(target.shape)}: {instead}"
        )


def _check_class_numbers(outputs: int, labels: Tensor, ignored: int) -> None:
    """Class numbers that the model has no output for, which on a GPU would end the process."""
    labels = labels[labels != ignored]
    if not labels.numel() or labels.max() < outputs:
        return
    lowest, highest = int(labels.min()), int(labels.max())
    given = (
        f"The class numbers go from {lowest} to {highest}, and the model has {outputs} outputs, for 0 to {outputs - 1}"
    )
    if lowest == 1 and highest == outputs:
        raise RecipeError(f"{given}: torch counts classes from 0, so pass y - 1.")
    raise RecipeError(f"{given}: give its last layer one for each class, or number the classes from 0.")


def _check_scale(criterion: nn.CrossEntropyLoss | nn.NLLLoss, outputs: Tensor, tell: Tell) -> None:
    """Probabilities where logits are wanted, and logits where logarithms of probabilities are."""
    if outputs.shape[1] < 2 or not outputs.isfinite().all():
        return
    are_probabilities = bool((outputs >= 0).all()) and _are_one(outputs.sum(1))
    are_logarithms = bool((outputs <= 0).all()) and _are_one(outputs.exp().sum(1))

    if isinstance(criterion, nn.NLLLoss):
        if not are_logarithms:
            tell(
                "NLLLoss without log_softmax",
                "NLLLoss takes logarithms of probabilities, and those of the model do not add up to 1, so its loss "
                "falls without end: use nn.CrossEntropyLoss, or end the model with nn.LogSoftmax(dim=1).",
            )
    elif are_probabilities:
        tell(
            "softmax before CrossEntropyLoss",
            "CrossEntropyLoss applies softmax itself, and the model already gives probabilities, so gradients are "
            "small and the loss cannot come near 0: leave out softmax at the model's end.",
        )
    elif are_logarithms:
        tell(
            "log_softmax before CrossEntropyLoss",
            "CrossEntropyLoss applies log_softmax itself, and the model already did, which changes no number: leave "
            "it out at the model's end, or use nn.NLLLoss.",
        )


def _are_one(sums: Tensor) -> bool:
    return bool(((sums - 1).abs() < ROUNDING).all())
