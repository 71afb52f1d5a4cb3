"""One batch through model and criterion: what is input, what is target, and what is wrong when they do not fit.

Tuples are read as `*inputs, target = batch`; dicts go to the model by keyword, which returns its own loss unless a
criterion was set; a step of the user's own replaces both.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quik_nb.errors import RecipeError
from quik_nb.recipe import FLOAT_TARGETS, LABEL_KEYS, Recipe


class StepResult(NamedTuple):
    """What a step gives; outputs and target are None where a step of the user's own does not give them."""

    loss: Tensor
    outputs: Any = None
    target: Any = None


class Step:
    """`step(model, batch) -> StepResult`, by the recipe."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.criterion: Callable[..., Any] | None = recipe.make_criterion()
        if isinstance(self.criterion, nn.Module):
            self.criterion.to(device)
        self.own = recipe.step
        self.sums = getattr(self.criterion, "reduction", "mean") == "sum"
        self._checked = False

    def __call__(self, model: Callable[..., Any], batch: Any) -> StepResult:
        try:
            result = self._compute(model, batch)
        except Exception as error:
            error.add_note(f"quik_nb: this was a batch of {describe(batch)}.")
            raise
        if not self._checked:
            self._check(result)
        return result

    def _compute(self, model: Callable[..., Any], batch: Any) -> StepResult:
        if self.own is not None:
            result = self.own(model, self.criterion, batch)
            loss, outputs = result if isinstance(result, tuple) else (result, None)
            return StepResult(loss, outputs, None if outputs is None else split_batch(batch)[1])
        if isinstance(batch, dict) and self.criterion is None:
            outputs = model(**batch)
            return StepResult(_own_loss(outputs), main_output(outputs), split_batch(batch)[1])
        inputs, target = split_batch(batch)
        if target is None:
            raise RecipeError(
                f"A batch of {describe(batch)} has no target that the criterion could compare with: "
                f"pass (inputs, target), or say what to do with set_step(fn)."
            )
        outputs = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
        outputs = main_output(outputs)
        if not self._checked:
            self._check_shapes(outputs, target)
        assert self.criterion is not None  # Recipe.check and _own_loss leave no other way here
        return StepResult(self.criterion(outputs, target), outputs, target)

    def _check(self, result: StepResult) -> None:
        loss = result.loss
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise RecipeError(
                f"The loss is not one number but {got}, so no gradient can be taken: "
                f"use a criterion with reduction='mean', or return loss.mean() from the step."
            )
        self._checked = True

    def _check_shapes(self, outputs: Any, target: Any) -> None:
        """The classic silent mistake: (n, 1) against (n,) broadcasts to (n, n) and trains on nonsense."""
        if not isinstance(self.criterion, FLOAT_TARGETS) or not isinstance(outputs, Tensor):
            return
        if outputs.shape != target.shape:
            name = type(self.criterion).__name__
            raise RecipeError(
                f"{name} compares element by element, and the model gives {tuple(outputs.shape)} "
                f"for targets of shape {tuple(target.shape)}: "
                f"end the model with .squeeze(1), or pass the target as y[:, None]."
            )


def split_batch(batch: Any) -> tuple[Any, Any]:
    """A batch as (inputs, target): inputs a tuple or a dict; target None where there is none."""
    if isinstance(batch, dict):
        key = next((key for key in LABEL_KEYS if key in batch), None)
        return {k: v for k, v in batch.items() if k != key}, None if key is None else batch[key]
    if isinstance(batch, tuple | list) and len(batch) > 1:
        *inputs, target = batch
        return tuple(inputs), target
    return (batch[0] if isinstance(batch, tuple | list) else batch,), None


def main_output(outputs: Any) -> Any:
    """The tensor that counts among a model's outputs: `logits` where the model names them."""
    logits = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    return outputs if logits is None else logits


def _own_loss(outputs: Any) -> Tensor:
    loss = outputs.get("loss") if isinstance(outputs, dict) else getattr(outputs, "loss", None)
    if loss is None:
        raise RecipeError(
            f"The batches are dicts, no criterion was set, and the model's {type(outputs).__name__} has no .loss: "
            f"set_criterion(...), or say what to do with set_step(fn)."
        )
    return loss  # type: ignore[no-any-return]


def describe(batch: Any) -> str:
    """The shapes and dtypes of a batch in words.

    >>> describe((torch.zeros(2, 3), torch.zeros(2)))
    '(2, 3) float32, (2,) float32'
    """
    match batch:
        case Tensor():
            return f"{tuple(batch.shape)} {str(batch.dtype).removeprefix('torch.')}"
        case dict():
            return ", ".join(f"{key} {describe(value)}" for key, value in batch.items())
        case tuple() | list():
            return ", ".join(describe(value) for value in batch)
    return type(batch).__name__
