"""One batch through model and criterion: what is input, what is target, and what is wrong when they do not fit.

Tuples are read as `*inputs, target = batch`; mappings go to the model by keyword, which returns its own loss unless a
criterion was set; a step of the user's own replaces both.

What a loss is a mean over is decided here, and nowhere else:

| the loss comes from                                    | it is a mean over (`StepOutput.count`)         |
|--------------------------------------------------------|------------------------------------------------|
| a criterion of torch, or one of the user's own         | the samples (None)                             |
| CrossEntropyLoss, NLLLoss: weights, or ignored labels  | the weights of the labels that count           |
| a step of the user's own that calls such a one once    | the same, as the criterion is listened to      |
| a model itself, with class numbers as labels           | the labels that count, those that are not -100 |
| any other step of the user's own                       | the samples, unless the step gives a `count`   |
| `reduction="sum"`: criterion, `set_step`, StepOutput   | nothing: it is a sum, and the record divides it |

Of a loss that is the user's own, `reduction.py` asks at the first batch whether it is a sum; and where micro-batches or
ranks have parts of a batch, whether it can be put together from those at all. What cannot is told.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quik_nb.errors import RecipeError, StopTraining
from quik_nb.events import Tell
from quik_nb.recipe.recipe import FLOAT_TARGETS, LABEL_KEYS, Recipe, label_tensor
from quik_nb.recipe.samples import Source, Tensors
from quik_nb.training.data.batch import Batch
from quik_nb.training.data.words import advice, describe
from quik_nb.training.output_checks import check_outputs
from quik_nb.training.reduction import (
    Answer,
    Part,
    ask,
    counted_labels,
    isolated,
    looks_like_a_sum,
    shifts_labels,
    undisturbed,
)
from quik_nb.training.train_mode import on_device
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
    """batches done in this epoch and split, micro-batches counted one by one: 0 where a split begins, and only there"""
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
        if not is_of_torch(criterion):
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

    with on_device(criterion, device):
        yield criterion


class LossFacts:
    """What the steps of training and validation found out about the loss, once."""

    def __init__(self) -> None:
        self.asked = False
        self.reduction: str | None = None
        """"mean" or "sum" where it was asked for; None for what it was taken for"""
        self.shifted: bool | None = None
        """whether the model leaves the first column of its labels out; None where that was not asked yet"""


def say_nothing(cause: str, text: str) -> None:
    """Outside of a training, which has told what there is to tell."""


class ForwardStep:
    """`step(model, batch) -> StepOutput`, by the recipe.

    Args:
        recipe: with the step of the user's own, if there is one.
        criterion: as `criterion_on` gives it.
        source: where all batches come from; None if that is not known.
        facts: what a step of the same recipe has found out; None for nothing.
        tell: tells the user something.
    """

    def __init__(
        self,
        recipe: Recipe,
        criterion: Callable[..., Any] | None,
        source: Source | None = None,
        facts: LossFacts | None = None,
        tell: Tell = say_nothing,
    ) -> None:
        self.recipe = recipe
        self.criterion = criterion
        self.own = recipe.step
        self.reduction = recipe.reduction
        self.weighted = WeightedMean.of(criterion, source)
        self.facts = LossFacts() if facts is None else facts
        self.tell = tell
        self._named = arguments_by_name(recipe.step)
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
        """Forget what the criterion was called with in the batch before, and the casts of the weights of then.

        Autocast keeps casts until its outermost context is left, which a loop may have around all of its steps.
        """
        self._criterion_calls.clear()
        torch.clear_autocast_cache()

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

    def __call__(self, model: Any, batch: Batch, context: StepContext) -> StepOutput:
        __tracebackhide__ = True
        try:
            output, said = self._compute(model, batch, context)
        except StopTraining:
            raise
        except Exception as error:
            error.add_note(f"quik_nb: this was a batch of {describe(batch.data)}.{advice(error, batch.data)}")
            raise

        if not self._checked:
            self._check(output)
        if not self.facts.asked and self._can_ask(context):
            self._ask(model, batch, context, output, said)
        if said or self.facts.reduction is None:
            return output
        return output._replace(reduction=self.facts.reduction)

    def _compute(self, model: Any, batch: Batch, context: StepContext) -> tuple[StepOutput, bool]:
        """What the step gives, and whether it is sure what the loss is a mean over."""
        __tracebackhide__ = True
        if self.own is not None:
            return self._call_own(self.own, model, batch, context)
        if isinstance(batch.data, Mapping) and self.criterion is None:
            return self._model_alone(model, batch, context), False

        inputs, target = split_batch(batch.data)
        if target is None:
            raise RecipeError(
                f"A batch of {describe(batch.data)} has no target that the criterion could compare with: "
                f"pass (inputs, target), or say what to do with set_step(fn)."
            )
        outputs = main_output(model(**inputs) if isinstance(inputs, dict) else model(*inputs))
        compares_numbers = isinstance(self.criterion, FLOAT_TARGETS) and isinstance(outputs, Tensor)
        if not self._checked and (compares_numbers or is_of_torch(self.criterion)):
            check_outputs(self.criterion, outputs, target, self.recipe.train, self.tell)

        assert self.criterion is not None  # `validate.check` and `own_loss` leave no other way here
        # class probabilities, which are floating point, all count
        if self.weighted is not None and not target.is_floating_point():
            loss, count = self.weighted.loss(outputs, target)
            return StepOutput(loss, outputs, target, count), True
        said = is_of_torch(self.criterion) or self.reduction == "sum"
        return StepOutput(self.criterion(outputs, target), outputs, target, reduction=self.reduction), said

    def _model_alone(self, model: Any, batch: Batch, context: StepContext) -> StepOutput:
        """The loss that a model gives by itself, a mean over the labels that count."""
        data = batch.data
        key = label_key(data)
        labels = None if key is None else data[key]
        if self.facts.shifted is None:
            self.facts.shifted = self._shifts(model, data, key, context)

        outputs = model(**data)
        loss, count = own_loss(outputs, key), counted_labels(labels, self.facts.shifted)
        if count is not None:
            loss = zero_if_empty(loss, count)
        return StepOutput(loss, main_output(outputs), labels, count)

    def _shifts(self, model: Any, data: Mapping[str, Any], key: str | None, context: StepContext) -> bool:
        labels: Any = None if key is None else data[key]
        if key is None or counted_labels(labels, shifted=False) is None or labels.ndim < 2:
            return False

        def loss_of(changed: Tensor) -> Tensor:
            return own_loss(model(**{**data, key: changed}))

        with undisturbed(model, context.world.device):
            return shifts_labels(loss_of, labels)

    def _call_own(
        self, step: Callable[..., Any], model: Any, batch: Batch, context: StepContext
    ) -> tuple[StepOutput, bool]:
        __tracebackhide__ = True
        self._criterion_calls.clear()
        named = {name: getattr(context, name) for name in self._named}
        self._in_own_step = True
        try:
            result = step(model, self.criterion, batch.data, **named)
        finally:
            self._in_own_step = False

        output = as_step_output(result, self.recipe.step_reduction or self.reduction)
        said = self.recipe.step_reduction is not None or output.count is not None
        said = said or (isinstance(result, StepOutput) and result.reduction == "sum")
        if output.target is None and output.outputs is not None:
            output = output._replace(target=split_batch(batch.data)[1])
        if output.count is None and output.reduction != "sum" and isinstance(output.loss, Tensor):
            count = self.own_count(batch.samples or 1, output.loss.device)
            if count is not None:
                output = output._replace(loss=zero_if_empty(output.loss, count), count=count)
        return output, said

    # ------------------------------------------------------------------ what a loss of the user's own is

    def _can_ask(self, context: StepContext) -> bool:
        """Whether the loss is of the user's own, and all ranks are here to be asked."""
        if inspect.isgeneratorfunction(self.own):
            return False
        if self.own is None and is_of_torch(self.criterion):
            return False
        return context.world.world_size == 1 or context.split == "train"

    def _ask(self, model: Any, batch: Batch, context: StepContext, output: StepOutput, said: bool) -> None:
        """Find out at the first batch what the loss is (all ranks participate)."""
        self.facts.asked = True
        parts = in_parts(context.world.world_size, self.recipe.settings.accumulate)
        answer = Answer("unknown")
        if not said and batch.samples and (parts or self._is_suspicious(output, model, batch, context)):
            answer = ask(self._loss_of(model, batch, context), batch)

        verdicts = {each.verdict for each in context.world.gather(answer)}
        taken_for = "sum" if output.reduction == "sum" else "mean"
        if verdicts == {"sum"} or verdicts == {"sum", "unknown"}:
            self.facts.reduction = "sum"
        elif "mean" in verdicts:
            self.facts.reduction = "mean"

        if self.facts.reduction == "sum" and taken_for == "mean":
            self.tell("the loss is a sum", self._words_for_a_sum(answer))
            return

        # whole batches of the user's own loader have each the loss that is expected
        is_whole = self._has_whole_batches(context.world.world_size)
        could_not_try = answer.verdict == "unknown" and answer.words and output.count is None and not is_whole
        if parts and (answer.verdict == "neither" or could_not_try):
            self.tell("the loss in parts", self._words_for_parts(answer, parts))

    def _has_whole_batches(self, ranks: int) -> bool:
        """Whether no batch is cut for micro-batches or ranks."""
        train = self.recipe.train
        return getattr(train, "ready", False) or (ranks == 1 and getattr(train, "joins", False))

    def _is_suspicious(self, output: StepOutput, model: Any, batch: Batch, context: StepContext) -> bool:
        """Whether the loss does not look like what it is taken for."""
        loss: Tensor | None = output.loss
        if output.loss.grad_fn is None:
            loss = self._loss_with_graph(model, batch, context)
        return loss is not None and looks_like_a_sum(loss) != (output.reduction == "sum")

    def _loss_with_graph(self, model: Any, batch: Batch, context: StepContext) -> Tensor | None:
        try:
            twin = self._twin()
            with undisturbed(model, context.world.device), torch.enable_grad():
                return twin._compute(model, batch, context)[0].loss
        except Exception:  # of the user's own code, such as a step that cannot be copied: then it is taken as it is
            return None

    def _loss_of(self, model: Any, batch: Batch, context: StepContext) -> Callable[[Any, int], Part]:
        """A function of data and samples that gives the loss of the step, and changes nothing."""

        def loss_of(data: Any, samples: int) -> Part:
            twin = self._twin()
            part = batch._replace(data=data, samples=samples)
            with undisturbed(model, context.world.device), twin.listening():
                output, _ = twin._compute(model, part, context)
            return Part(float(output.loss), samples if output.count is None else float(output.count))

        return loss_of

    def twin(self) -> "ForwardStep":
        """The same step with copies of what the user wrote, or with that itself where it cannot be copied."""
        try:
            twin = self._twin()
        except Exception:  # of whatever a step refers to, such as an open file
            twin = copy(self)
        twin.facts = LossFacts()
        twin.facts.asked = True
        twin.tell = say_nothing  # what is told is told by the step itself
        return twin

    def _twin(self) -> "ForwardStep":
        """The same step with copies of what the user wrote, and of all that this uses."""
        twin = copy(self)
        twin.own = isolated(self.own)
        twin._criterion_calls = []
        if isinstance(self.criterion, nn.Module) and is_of_torch(self.criterion):
            twin.criterion = copy(self.criterion)
            twin.criterion._forward_hooks = OrderedDict()
            twin.criterion._forward_hooks_with_kwargs = OrderedDict()
        else:
            twin.criterion = isolated(self.criterion)
        return twin

    def _words_for_a_sum(self, answer: Answer) -> str:
        whose, instead = self._whose_loss()
        return (
            f"The loss of {whose} is a sum over the samples ({answer.words}), and is treated as one: its gradient is "
            f"that of the sum, and the history shows the mean over the samples. Use {instead} to say so."
        )

    def _words_for_parts(self, answer: Answer, parts: str) -> str:
        whose, _ = self._whose_loss()
        if answer.verdict == "unknown":
            found = f"could not be tried on a part of a batch ({answer.words}), so it is taken for a mean over samples"
        else:
            found = f"is neither a mean nor a sum over the samples of a batch ({answer.words})"
        return (
            f"The loss of {whose} {found}. With {parts} it is taken of parts of a batch, so losses and gradients "
            f"differ from those of the whole batch. Where it is a mean over something else, such as words, return "
            f"StepOutput(loss, count=...); where it compares the samples of a batch with each other, use "
            f"accumulate=1 and processes=1."
        )

    def _whose_loss(self) -> tuple[str, str]:
        """Whose loss it is, and how to say that it is a sum, in words."""
        if self.own is not None:
            return "this step", "set_step(step, reduction='sum')"
        if self.criterion is not None:
            return "this criterion", "a criterion with an attribute reduction = 'sum'"
        return "this model", "set_step(lambda model, criterion, batch: model(**batch).loss, reduction='sum')"

    # ------------------------------------------------------------------ faults

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
        metrics = self.recipe.metrics if self.recipe.valid is not None else {}
        if self.own is not None and metrics and output.outputs is None:
            raise RecipeError(
                f"The metrics {', '.join(metrics)} compare outputs, and the step returns the loss alone: have it "
                f"return (loss, outputs), or use set_metrics() for none."
            )
        self._checked = True


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
        if not isinstance(result.values, Mapping):
            raise RecipeError(
                f"StepOutput(values={result.values!r}) gives no names for columns: use values={{'kl': kl}}."
            )
        # a count says that it is a mean, whatever the steps are
        return result._replace(reduction=reduction) if result.count is None and reduction == "sum" else result
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
        key = label_key(batch)
        return {k: v for k, v in batch.items() if k != key}, None if key is None else batch[key]
    if isinstance(batch, tuple | list) and len(batch) > 1:
        *inputs, target = batch
        return tuple(inputs), target
    if isinstance(batch, tuple | list):
        return (batch[0],), None

    # an object, such as a batch of graphs, names its target as a mapping does
    named = [] if isinstance(batch, Tensor) else [getattr(batch, key, None) for key in LABEL_KEYS]
    return (batch,), next((value for value in named if isinstance(value, Tensor)), None)


def label_key(batch: Mapping[str, Any]) -> str | None:
    """The key of the target in a batch that is a mapping; None where there is none."""
    return next((key for key in LABEL_KEYS if key in batch), None)


def is_of_torch(criterion: object) -> bool:
    """Whether it is one of torch's own criteria, which are known."""
    return type(criterion).__module__ == "torch.nn.modules.loss"


def in_parts(ranks: int, accumulate: int) -> str:
    """Why a loss is taken of parts of a batch, in words; empty where it is not.

    >>> in_parts(2, 4)
    'processes=2 and accumulate=4'
    """
    named = {"processes": ranks, "accumulate": accumulate}
    return " and ".join(f"{name}={value}" for name, value in named.items() if value > 1)


def main_output(outputs: Any) -> Any:
    """The tensor that counts among a model's outputs: `logits` where the model names them."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    return outputs if logits is None else logits


def own_loss(outputs: Any, key: str | None = "labels") -> Tensor:
    """The loss that a model gives beside its outputs.

    Args:
        outputs: of the model.
        key: of the target in the batch; None where there is none.
    """
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if loss is None and key not in (None, "labels"):
        raise RecipeError(
            f"The model gives a {type(outputs).__name__} without a loss for a batch with {key!r}: models of "
            f"transformers compute it from 'labels', dataset.rename_column({key!r}, 'labels'); others need "
            f"set_criterion(...), or set_step(fn)."
        )
    if loss is None:
        raise RecipeError(
            f"The batches are dicts, no criterion was set, and the model's {type(outputs).__name__} has no .loss: "
            f"set_criterion(...), or say what to do with set_step(fn)."
        )
    return loss  # type: ignore[no-any-return]
