"""A step of the user's own that yields its losses, each with the name of the optimizer that steps by it: a GAN.

    def step(model, criterion, batch):
        fake = model.generator(noise)
        yield "generator", criterion(model.critic(fake), real)
        yield "critic", criterion(model.critic(fake.detach()), made_up) + criterion(model.critic(batch[0]), real)

Where it yields: all gradients are zeroed, those of this loss taken and clipped, and that optimizer is stepped. Each
loss is a column `NAME_loss`; the loss of the epoch is their sum, unless the step ends with `return loss, outputs`.

What is not here: backward and the update (`engine.py`), and any other step (`forward.py`).
"""

from collections.abc import Generator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quik_nb.errors import RecipeError
from quik_nb.recipe.recipe import Recipe
from quik_nb.training.data.batch import Batch
from quik_nb.training.data.words import advice, describe
from quik_nb.training.forward import (
    ForwardStep,
    StepContext,
    StepOutput,
    as_step_output,
    split_batch,
    zero_if_empty,
)


class YieldedLoss(NamedTuple):
    """A loss that a step yields."""

    name: str
    """of the optimizer that steps by it"""
    loss: Tensor
    """one number"""
    counted: Tensor | None
    """what it is a mean over; None for the samples of the batch"""


class YieldingStep(ForwardStep):
    """`step(model, batch) -> StepOutput` of a step that yields; arguments are those of `ForwardStep`."""

    def __init__(self, recipe: Recipe, *args: Any, **keywords: Any) -> None:
        super().__init__(recipe, *args, **keywords)
        self.reduction = recipe.step_reduction or recipe.reduction

    def __call__(self, model: Any, batch: Batch, context: StepContext) -> StepOutput:
        """Take all losses without any update, as validation does."""
        __tracebackhide__ = True
        losses = self.losses(model, batch, context)
        while True:
            try:
                next(losses)
            except StopIteration as end:
                output: StepOutput = end.value
                return output

    def losses(self, model: Any, batch: Batch, context: StepContext) -> Generator[YieldedLoss, None, StepOutput]:
        """The losses in turn, each to be stepped by before the next is asked for; at the end, what the step gives."""
        __tracebackhide__ = True
        assert self.own is not None  # `make_step` takes another class else
        named = {name: getattr(context, name) for name in self._named}
        taken: dict[str, list[Tensor]] = {}
        generator = self.own(model, self.criterion, batch.data, **named)
        while True:
            self.begin_batch()
            self._in_own_step = True
            try:
                yielded = next(generator)
            except StopIteration as end:
                return self._whole(end.value, taken, batch)
            except Exception as error:
                error.add_note(f"quik_nb: this was a batch of {describe(batch.data)}.{advice(error, batch.data)}")
                raise
            finally:
                self._in_own_step = False

            name, loss = named_loss(yielded)
            count = self.own_count(batch.samples or 1, loss.device)
            if count is not None:
                loss = zero_if_empty(loss, count)
            taken.setdefault(name, []).append(loss.detach())
            yield YieldedLoss(name, loss, count)

    def _whole(self, result: Any, taken: dict[str, list[Tensor]], batch: Batch) -> StepOutput:
        """What the step gives as a whole.

        Args:
            result: what it returned at its end.
            taken: its losses by name.
            batch: that it was called with.
        """
        if not taken and result is None:
            raise RecipeError(
                "The step yielded no loss for a batch, so nothing is trained by it: yield ('name of the optimizer', "
                "loss) in each call."
            )
        means = {name: torch.stack(losses).mean() for name, losses in taken.items()}
        divisor = max(batch.samples, 1) if self.reduction == "sum" else 1
        values = {f"{name}_loss": mean / divisor for name, mean in means.items()}

        if result is None:
            return StepOutput(torch.stack(list(means.values())).sum(), values=values, reduction=self.reduction)
        output = as_step_output(result, self.reduction)
        target = split_batch(batch.data)[1] if output.target is None else output.target
        return output._replace(target=target, values={**values, **output.values})


def named_loss(yielded: Any) -> tuple[str, Tensor]:
    """What a step yielded, as the name of an optimizer and a loss.

    Raises:
        RecipeError: it is something else.
    """
    match yielded:
        case (str() as name, Tensor() as loss) if loss.ndim == 0:
            return name, loss
        case (str() as name, Tensor() as loss):
            got = f"{name!r} with a loss of shape {tuple(loss.shape)}"
        case _:
            got = f"a {type(yielded).__name__}"
    raise RecipeError(
        f"The step yielded {got}, and an optimizer steps by one number: yield ('name of the optimizer', loss.mean())."
    )


def make_step(recipe: Recipe, *args: Any, **keywords: Any) -> ForwardStep:
    """The forward step of a recipe; further arguments are those of `ForwardStep`."""
    return YieldingStep(recipe, *args, **keywords) if recipe.yields else ForwardStep(recipe, *args, **keywords)
