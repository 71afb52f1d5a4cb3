"""A batch in words, and what to use instead where a model cannot take it and torch's own words do not say why."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quik_nb.recipe.recipe import LABEL_KEYS
from quik_nb.training.pytree import tree_leaves

OTHER_DTYPE = ("dtype", "expected scalar type", "input type", "not implemented")
"""What torch says where a layer is called with numbers of another kind than its own."""


def describe(batch: Any) -> str:
    """The shapes and dtypes of a batch in words.

    >>> describe((torch.zeros(2, 3), torch.zeros(2)))
    '(2, 3) float32, (2,) float32'
    """
    match batch:
        case Tensor():
            return f"{tuple(batch.shape)} {str(batch.dtype).removeprefix('torch.')}"
        case Mapping():
            return ", ".join(f"{key} {describe(value)}" for key, value in batch.items())
        case tuple() | list():
            return ", ".join(describe(value) for value in batch)
    return type(batch).__name__


def advice(error: Exception, batch: Any) -> str:
    """What to use instead, as a sentence after a space; empty where nothing is known.

    Args:
        error: of a forward pass.
        batch: that it was made with.
    """
    words = str(error).lower()
    if "more than 1 value per channel" in words:
        return (
            " Batch statistics need two samples, and this batch, the rest of an epoch, has one: use another "
            "batch_size, or a DataLoader(dataset, batch_size=..., drop_last=True)."
        )
    if any(phrase in words for phrase in OTHER_DTYPE):
        return _of_dtypes(batch, words)
    if "does not require grad" in words and not torch.is_grad_enabled():
        return (
            " Validation and predictions run without gradients: where the model or step takes some itself, do it "
            "within `with torch.enable_grad():`."
        )
    if "elements of input should be between 0 and 1" in words:
        return " BCELoss takes probabilities: use nn.BCEWithLogitsLoss for a model that ends without a sigmoid."
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return " The GPU has no memory left for it: use a smaller batch_size, or accumulate=4 for the same numbers."
    if "out of bounds" in words and "target" in words:
        return _of_classes(batch)
    if isinstance(error, TypeError) and "positional argument" in words:
        return _of_a_tuple(batch)
    if isinstance(error, TypeError) and "unexpected keyword argument" in words:
        return _of_a_mapping(batch, str(error).split("'")[1::2])
    return ""


def _of_dtypes(batch: Any, words: str) -> str:
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(first, Tensor) and not first.is_floating_point():
        return f" The inputs are {str(first.dtype).removeprefix('torch.')}: if they are no indices, pass x.float()."
    doubles = any(isinstance(leaf, Tensor) and leaf.dtype is torch.float64 for leaf in tree_leaves(batch))
    if doubles and "double" in words:
        return (
            " The data is float64, as NumPy makes it, and the model's weights are not: have the dataset give x.float() "
            "(an array: x.astype('float32')), also for a target of numbers."
        )
    return ""


def _of_classes(batch: Any) -> str:
    if isinstance(batch, Mapping):
        target = next((batch[key] for key in LABEL_KEYS if key in batch), None)
    else:
        target = batch[-1] if isinstance(batch, tuple | list) and batch else None
    if isinstance(target, Tensor) and target.device.type == "cpu" and target.numel() and int(target.min()) > 0:
        return (
            f" The class numbers of this batch go from {int(target.min())} to {int(target.max())}, and torch counts "
            f"classes from 0: where yours begin at 1, pass y - 1."
        )
    return " The target holds a class number that the model has no output for: give its last layer one for each."


def _of_a_tuple(batch: Any) -> str:
    if not isinstance(batch, tuple | list) or len(batch) < 3:
        return ""
    return (
        f" A batch is read as (*inputs, target), so the model was called with {len(batch) - 1} inputs: where several "
        f"of them are targets, as in (x, y1, y2), say what to do with them by set_step(fn)."
    )


def _of_a_mapping(batch: Any, quoted: list[str]) -> str:
    name = next((word for word in quoted if isinstance(batch, Mapping) and word in batch), None)
    if name is None:
        return ""
    if name in LABEL_KEYS:
        return (
            f" A dict goes to the model by keyword, and it takes no {name!r}: models of transformers call it 'labels', "
            f"dataset.rename_column({name!r}, 'labels'); where the criterion compares it, use set_criterion(...)."
        )
    return (
        f" A dict goes to the model by keyword, and it takes no {name!r}: leave it out of the samples, as "
        f"dataset.remove_columns({name!r}) does, or use set_step(fn)."
    )
