"""One batch through model and criterion: what is input, what is target, and what is wrong when they do not fit.

Tuples are read as `*inputs, target = batch`; dicts go to the model by keyword, which returns its own loss unless a
criterion was set; a step of the user's own replaces both.
"""

from collections.abc import Callable
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from quik_nb.errors import RecipeError
from quik_nb.recipe.data import Source, Tensors
from quik_nb.recipe.recipe import FLOAT_TARGETS, LABEL_KEYS, Recipe, label_tensor
from quik_nb.training.data.batch import batch_length

EPS = 1e-30
"""Divides where nothing counts, so that nothing comes out rather than NaN."""


class StepOutput(NamedTuple):
    """What a step gives; outputs and target are None where a step of the user's own does not give them."""

    loss: Tensor
    outputs: Any = None
    target: Any = None
    counted: Tensor | None = None
    """what the loss is a mean over, where that is not the samples: class weights, or labels that are not ignored"""


class Labels:
    """A criterion whose mean is not over samples, as a sum and what it is divided by.

    A mean over class weights, or over the labels that are not ignored, is no mean of the means of its parts: those
    must be put together by their counts, over micro-batches, ranks and the batches of an epoch.
    """

    def __init__(self, criterion: nn.CrossEntropyLoss | nn.NLLLoss) -> None:
        self.summed = copy(criterion)
        self.summed.reduction = "sum"
        self.weight, self.ignored = criterion.weight, criterion.ignore_index

    @classmethod
    def of(cls, criterion: object, source: Source | None) -> "Labels | None":
        """For a criterion that needs it; None where each sample counts the same, which in memory is looked up once."""
        if not isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss) or criterion.reduction != "mean":
            return None
        if type(criterion).__module__ != "torch.nn.modules.loss":
            return None  # a class of the user's own may mean something else
        if criterion.weight is None and isinstance(source, Tensors):
            target = label_tensor(source)
            if not (target == criterion.ignore_index).any():
                return None
        return cls(criterion)

    def loss(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and what it is a mean over."""
        count = self.count(target)
        return self.summed(outputs, target) / count.clamp(min=EPS), count

    def count(self, target: Tensor) -> Tensor:
        """What the mean is a mean over."""
        if target.is_floating_point():  # class probabilities, which all count
            return torch.tensor(float(len(target)), device=target.device)
        kept = target != self.ignored
        return kept.sum().float() if self.weight is None else (self.weight[target.where(kept, 0)] * kept).sum()


class Step:
    """`step(model, batch) -> StepOutput`, by the recipe.

    Args:
        recipe: with criterion and step.
        device: of the batches.
        source: where all batches come from; None if that is not known.
        loop: whether a loop of the user's own calls the criterion, rather than this.
    """

    def __init__(self, recipe: Recipe, device: torch.device, source: Source | None = None, loop: bool = False) -> None:
        self.device = device
        self.criterion: Callable[..., Any] | None = recipe.make_criterion()
        self.home: torch.device | None = None
        """where the criterion's own tensors lay before"""
        if isinstance(self.criterion, nn.Module):
            tensors = (*self.criterion.parameters(), *self.criterion.buffers())
            self.home = next((t.device for t in tensors), None)
            self.criterion.to(device)
        self.own = recipe.step
        self.judged = ", ".join(recipe.metrics) if recipe.valid is not None else ""
        self.sums = recipe.reduction == "sum"
        self.labels = Labels.of(self.criterion, source)
        self.calls: list[Tensor] = []
        """what the means were over that the user's own code took by the criterion, in the batch under way"""
        self._loop, self._hook = loop, self._listen() if loop or self.own is not None else None
        self._checked = False

    def _listen(self) -> RemovableHandle | None:
        """Have the criterion tell what it takes its means over, where that is not the samples."""
        if self.labels is None or not isinstance(self.criterion, nn.Module):
            return None
        return self.criterion.register_forward_hook(self._called, with_kwargs=True)

    def _called(self, criterion: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], loss: Any) -> None:
        assert self.labels is not None  # else nobody listens
        target = args[1] if len(args) > 1 else keywords.get("target")
        if isinstance(target, Tensor) and (torch.is_grad_enabled() or not self._loop):  # else a loop validates
            self.calls.append(self.labels.count(target))

    def counted(self, samples: int) -> Tensor | None:
        """What the loss that the user's own code took is a mean over; None where that is the samples.

        Args:
            samples: of the batch: they count where the criterion was called several times, or not at all.
        """
        if self._hook is None:
            return None
        return self.calls[0] if len(self.calls) == 1 else torch.tensor(float(samples), device=self.device)

    def close(self) -> None:
        """Give the criterion back as it was, its tensors where they lay: it may be an instance of the user's."""
        if self._hook is not None:
            self._hook.remove()
        if self.home is not None and isinstance(self.criterion, nn.Module):
            self.criterion.to(self.home)

    def __call__(self, model: Callable[..., Any], batch: Any) -> StepOutput:
        __tracebackhide__ = True
        try:
            result = self._compute(model, batch)
        except Exception as error:
            error.add_note(f"quik_nb: this was a batch of {describe(batch)}.{advice(error, batch)}")
            raise
        if not self._checked:
            self._check(result)
        return result

    def _compute(self, model: Callable[..., Any], batch: Any) -> StepOutput:
        __tracebackhide__ = True
        if self.own is not None:
            self.calls.clear()
            result = self.own(model, self.criterion, batch)
            loss, outputs = result if isinstance(result, tuple) else (result, None)
            target = None if outputs is None else split_batch(batch)[1]
            count = self.counted(batch_length(batch))
            return StepOutput(loss if count is None else zero_if_empty(loss, count), outputs, target, count)
        if isinstance(batch, dict) and self.criterion is None:
            outputs = model(**batch)
            return StepOutput(_own_loss(outputs), main_output(outputs), split_batch(batch)[1])
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
        if self.labels is not None and not target.is_floating_point():  # else class probabilities, which all count
            loss, count = self.labels.loss(outputs, target)
            return StepOutput(loss, outputs, target, count)
        return StepOutput(self.criterion(outputs, target), outputs, target)

    def _check(self, result: StepOutput) -> None:
        loss = result.loss
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            if not isinstance(loss, Tensor):
                raise RecipeError(
                    f"The loss is a {type(loss).__name__} and no tensor, so no gradient can be taken: "
                    f"compute it with torch's functions, from what the model gives, without .item()."
                )
            raise RecipeError(
                f"The loss is not one number but shape {tuple(loss.shape)}, so no gradient can be taken: "
                f"use a criterion with reduction='mean', or return loss.mean() from the step."
            )
        if self.own is not None and self.judged and result.outputs is None:
            raise RecipeError(
                f"The metrics {self.judged} judge outputs, and the step returns the loss alone: have it return "
                f"(loss, outputs), or type set_metrics() for none."
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


def zero_if_empty(loss: Any, count: Tensor) -> Any:
    """A mean over nothing as 0 rather than NaN, which would spoil what it is added to."""
    return torch.where(count > 0, loss, torch.zeros_like(loss)) if isinstance(loss, Tensor) else loss


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


def advice(error: Exception, batch: Any) -> str:
    """What to type instead, where torch's own words do not say it."""
    words = str(error).lower()
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    number = isinstance(first, Tensor) and not first.is_floating_point()
    if "more than 1 value per channel" in words:
        return (
            " Batch statistics need two samples, and this batch, the rest of an epoch, has one: take another "
            "batch_size, or a DataLoader(dataset, batch_size=..., drop_last=True)."
        )
    if number and any(phrase in words for phrase in ("dtype", "expected scalar type", "input type", "not implemented")):
        return f" The inputs are {str(first.dtype).removeprefix('torch.')}: if they are no indices, pass x.float()."
    if "out of bounds" in words and "target" in words:
        return " The target holds a class number that the model has no output for: give its last layer one for each."
    return ""


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
