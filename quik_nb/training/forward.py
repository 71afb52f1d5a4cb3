"""One batch through model and criterion: what is input, what is target, and what is wrong when they do not fit.

Tuples are read as `*inputs, target = batch`; mappings go to the model by keyword, which returns its own loss unless a
criterion was set; a step of the user's own replaces both.

What a loss is a mean over is decided here, and nowhere else:

| the loss comes from                                    | it is a mean over (`StepOutput.count`)         |
|--------------------------------------------------------|------------------------------------------------|
| a criterion of torch, or one of the user's own         | the samples (None)                             |
| CrossEntropyLoss, NLLLoss: weights, or ignored labels  | the weights of the labels that count           |
| a step of the user's own that calls such a one once    | the same, as the criterion is listened to      |
| any other step of the user's own, a model's own loss   | the samples, unless the step gives a `count`   |
| `reduction="sum"`, of the criterion or of a StepOutput | nothing: it is a sum, and the record divides it |
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quik_nb.errors import RecipeError
from quik_nb.recipe.data import Source, Tensors
from quik_nb.recipe.recipe import FLOAT_TARGETS, LABEL_KEYS, Recipe, label_tensor
from quik_nb.training.data.batch import Batch
from quik_nb.training.world import World

EPS = 1e-30
"""Divides where nothing counts, so that nothing comes out rather than NaN."""


class StepOutput(NamedTuple):
    """What a step gives for a batch.

    >>> loss = torch.tensor(6.0)
    >>> StepOutput(loss, count=3, reduction="sum", values={"kl": torch.tensor(0.5)}).count
    3
    """

    loss: Tensor
    """one number, to take gradients of"""
    outputs: Any = None
    """what metrics, reports and `predict` see; None where the step does not give it"""
    target: Any = None
    """what the outputs are compared with; None for the batch's own"""
    count: Any = None
    """what the loss is a mean over, or a sum over, a number or a tensor; None for the samples of the batch"""
    reduction: str = "mean"
    """"mean" or "sum": how the loss was made of those"""
    values: Mapping[str, Any] = {}
    """further numbers of this batch by name, each a mean over its samples: columns of the history"""


class StepContext(NamedTuple):
    """Where a batch stands; a step of the user's own is passed those of these that it has parameters for."""

    split: str
    """"train", "valid", "test" or "data" """
    epoch: int
    step: int
    """optimizer steps done in this epoch and split, 0 where a split begins"""
    world: World


class WeightedMean:
    """A criterion whose mean is not over samples, as a sum and what it is divided by.

    A mean over class weights, or over the labels that are not ignored, is no mean of the means of its parts: those
    must be put together by their counts, over micro-batches, ranks and the batches of an epoch.
    """

    def __init__(self, criterion: nn.CrossEntropyLoss | nn.NLLLoss) -> None:
        self.summed = copy(criterion)
        self.summed.reduction = "sum"
        self.weight = criterion.weight
        self.ignored = criterion.ignore_index

    @classmethod
    def of(cls, criterion: object, source: Source | None) -> "WeightedMean | None":
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
        counts = target != self.ignored
        return counts.sum().float() if self.weight is None else (self.weight[target.where(counts, 0)] * counts).sum()


@contextmanager
def criterion_on(recipe: Recipe, device: torch.device) -> Iterator[Callable[..., Any] | None]:
    """The criterion of a recipe on a device for a while; an instance of the user's goes back where it was."""
    criterion = recipe.make_criterion()
    if not isinstance(criterion, nn.Module):
        yield criterion
        return

    tensors = (*criterion.parameters(), *criterion.buffers())
    home = next((tensor.device for tensor in tensors), device)
    try:
        yield criterion.to(device)
    finally:
        criterion.to(home)


class ForwardStep:
    """`step(model, batch) -> StepOutput`, by the recipe.

    Args:
        recipe: with the step of the user's own, if there is one.
        criterion: as `criterion_on` gives it.
        source: where all batches come from; None if that is not known.
    """

    def __init__(self, recipe: Recipe, criterion: Callable[..., Any] | None, source: Source | None = None) -> None:
        self.criterion = criterion
        self.own = recipe.step
        self.reduction = recipe.reduction
        self.weighted = WeightedMean.of(criterion, source)
        self._named = arguments_by_name(recipe.step)
        self._needs_outputs = ", ".join(recipe.metrics) if recipe.valid is not None else ""
        self._checked = False
        self._in_own_step = False
        self._criterion_calls: list[Tensor] = []
        """what the means were over that the user's own code took by the criterion, in the batch under way"""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, the criterion tells what it takes its means over when the user's own code calls it."""
        if self.weighted is None or not isinstance(self.criterion, nn.Module):
            yield
            return
        handle = self.criterion.register_forward_hook(self._note_call, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _note_call(self, criterion: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], loss: Any) -> None:
        assert self.weighted is not None  # else nobody listens
        target = args[1] if len(args) > 1 else keywords.get("target")
        # a loop of the user's own also validates, without gradients, and those losses are not of the batch
        if isinstance(target, Tensor) and (torch.is_grad_enabled() or self._in_own_step):
            self._criterion_calls.append(self.weighted.count(target))

    def begin_batch(self) -> None:
        """Forget what the criterion was called with in the batch before."""
        self._criterion_calls.clear()

    def own_count(self, samples: int, device: torch.device) -> Tensor | None:
        """What the loss that the user's own code took is a mean over; None where that is the samples.

        Args:
            samples: of the batch: they count where the criterion was called several times, or not at all.
            device: of the batch.
        """
        if self.weighted is None or not isinstance(self.criterion, nn.Module):
            return None
        if len(self._criterion_calls) == 1:
            return self._criterion_calls[0]
        return torch.tensor(float(samples), device=device)

    def __call__(self, model: Callable[..., Any], batch: Batch, context: StepContext) -> StepOutput:
        __tracebackhide__ = True
        try:
            output = self._compute(model, batch, context)
        except Exception as error:
            error.add_note(f"quik_nb: this was a batch of {describe(batch.data)}.{advice(error, batch.data)}")
            raise
        if not self._checked:
            self._check(output)
        return output

    def _compute(self, model: Callable[..., Any], batch: Batch, context: StepContext) -> StepOutput:
        __tracebackhide__ = True
        if self.own is not None:
            return self._call_own(self.own, model, batch, context)
        if isinstance(batch.data, Mapping) and self.criterion is None:
            outputs = model(**batch.data)
            return StepOutput(_own_loss(outputs), main_output(outputs), split_batch(batch.data)[1])

        inputs, target = split_batch(batch.data)
        if target is None:
            raise RecipeError(
                f"A batch of {describe(batch.data)} has no target that the criterion could compare with: "
                f"pass (inputs, target), or say what to do with set_step(fn)."
            )
        outputs = main_output(model(**inputs) if isinstance(inputs, dict) else model(*inputs))
        if not self._checked:
            self._check_shapes(outputs, target)

        assert self.criterion is not None  # `validate.check` and `_own_loss` leave no other way here
        # class probabilities, which are floating point, all count
        if self.weighted is not None and not target.is_floating_point():
            loss, count = self.weighted.loss(outputs, target)
            return StepOutput(loss, outputs, target, count)
        return StepOutput(self.criterion(outputs, target), outputs, target, reduction=self.reduction)

    def _call_own(
        self, step: Callable[..., Any], model: Callable[..., Any], batch: Batch, context: StepContext
    ) -> StepOutput:
        __tracebackhide__ = True
        self._criterion_calls.clear()
        named = {name: getattr(context, name) for name in self._named}
        self._in_own_step = True
        try:
            output = as_step_output(step(model, self.criterion, batch.data, **named), self.reduction)
        finally:
            self._in_own_step = False

        if output.target is None and output.outputs is not None:
            output = output._replace(target=split_batch(batch.data)[1])
        if output.count is None and isinstance(output.loss, Tensor):
            count = self.own_count(batch.samples or 1, output.loss.device)
            if count is not None:
                output = output._replace(loss=zero_if_empty(output.loss, count), count=count)
        return output

    def _check(self, output: StepOutput) -> None:
        loss = output.loss
        if not isinstance(loss, Tensor):
            raise RecipeError(
                f"The loss is a {type(loss).__name__} and no tensor, so no gradient can be taken: "
                f"compute it with torch's functions, from what the model gives, without .item()."
            )
        if loss.ndim != 0:
            raise RecipeError(
                f"The loss is not one number but shape {tuple(loss.shape)}, so no gradient can be taken: "
                f"use a criterion with reduction='mean', or return loss.mean() from the step."
            )
        if self.own is not None and self._needs_outputs and output.outputs is None:
            raise RecipeError(
                f"The metrics {self._needs_outputs} compare outputs, and the step returns the loss alone: have it "
                f"return (loss, outputs), or use set_metrics() for none."
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


def arguments_by_name(step: Callable[..., Any] | None) -> tuple[str, ...]:
    """Those of the fields of `StepContext` that a step of the user's own has parameters for, after the first three.

    >>> arguments_by_name(lambda model, criterion, batch, split, *, epoch=0: None)
    ('split', 'epoch')
    """
    if step is None:
        return ()
    try:
        parameters = list(inspect.signature(step).parameters.values())
    except (TypeError, ValueError):  # of a builtin
        return ()
    by_name = [p.name for p in parameters[3:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return tuple(name for name in by_name if name in StepContext._fields)


def as_step_output(result: Any, reduction: str) -> StepOutput:
    """What a step of the user's own returned, in its one form.

    Raises:
        RecipeError: it is none of `loss`, `(loss, outputs)`, `(loss, outputs, target)` and `StepOutput`.
    """
    if isinstance(result, StepOutput):
        if result.reduction not in ("mean", "sum"):
            raise RecipeError(f"StepOutput(reduction={result.reduction!r}) is not known: use 'mean' or 'sum'.")
        return result
    if not isinstance(result, tuple):
        return StepOutput(result, reduction=reduction)
    if len(result) not in (2, 3):
        raise RecipeError(
            f"The step returned a tuple of {len(result)}: return the loss, (loss, outputs), (loss, outputs, target), "
            f"or StepOutput(loss, outputs=..., count=..., values=...)."
        )
    loss, outputs, target = (*result, None)[:3]
    return StepOutput(loss, outputs, target, reduction=reduction)


def zero_if_empty(loss: Any, count: Tensor) -> Any:
    """A mean over nothing as 0 rather than NaN, which would spoil what it is added to."""
    return torch.where(count > 0, loss, torch.zeros_like(loss)) if isinstance(loss, Tensor) else loss


def split_batch(batch: Any) -> tuple[Any, Any]:
    """A batch as (inputs, target): inputs a tuple or a dict; target None where there is none."""
    if isinstance(batch, Mapping):
        key = next((key for key in LABEL_KEYS if key in batch), None)
        return {k: v for k, v in batch.items() if k != key}, None if key is None else batch[key]
    if isinstance(batch, tuple | list) and len(batch) > 1:
        *inputs, target = batch
        return tuple(inputs), target
    return (batch[0] if isinstance(batch, tuple | list) else batch,), None


def main_output(outputs: Any) -> Any:
    """The tensor that counts among a model's outputs: `logits` where the model names them."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    return outputs if logits is None else logits


def _own_loss(outputs: Any) -> Tensor:
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if loss is None:
        raise RecipeError(
            f"The batches are dicts, no criterion was set, and the model's {type(outputs).__name__} has no .loss: "
            f"set_criterion(...), or say what to do with set_step(fn)."
        )
    return loss  # type: ignore[no-any-return]


def advice(error: Exception, batch: Any) -> str:
    """What to use instead, where torch's own words do not say it."""
    words = str(error).lower()
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    number = isinstance(first, Tensor) and not first.is_floating_point()
    if "more than 1 value per channel" in words:
        return (
            " Batch statistics need two samples, and this batch, the rest of an epoch, has one: use another "
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
        case Mapping():
            return ", ".join(f"{key} {describe(value)}" for key, value in batch.items())
        case tuple() | list():
            return ", ".join(describe(value) for value in batch)
    return type(batch).__name__
