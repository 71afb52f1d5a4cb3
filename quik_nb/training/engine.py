"""Forward, backward and the update of one rank: what `train_step` is made of."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quik_nb.errors import RecipeError
from quik_nb.recipe.recipe import Recipe, needs_closure
from quik_nb.training.data.batch import Batch
from quik_nb.training.forward import ForwardStep, StepContext, StepOutput, zero_if_empty
from quik_nb.training.parallel import parallel
from quik_nb.training.precision import Autocast
from quik_nb.training.updater import Updater
from quik_nb.training.world import World
from quik_nb.training.yielding import YieldingStep


class Engine:
    """Trains a model batch by batch.

    Args:
        recipe: what to train.
        model: on the world's device.
        forward: batch to loss and outputs.
        world: this rank among the others.
        by_hooks: why gradients cannot be made equal around the step; empty where they can.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, forward: ForwardStep, world: World, by_hooks: str) -> None:
        self.model = model
        self.world = world
        self.forward_step = forward
        self.autocast = Autocast(world.device, recipe.settings.precision)
        self.updater = Updater(recipe, model, world, self.autocast.needs_scaling)
        self.parallel = parallel(model, forward, world, recipe.settings, by_hooks)
        self.closure = StepClosure(self) if any(map(needs_closure, self.updater.optimizers.values())) else None

    def begin_batch(self, batch: Batch) -> None:
        """Say before the forward pass of a batch whether its gradients complete those of a step."""
        self.forward_step.begin_batch()
        self.parallel.sync_gradients(batch.last)

    def train_step(self, batch: Batch, context: StepContext) -> StepOutput:
        """One micro-batch: forward, backward, and after the last one of a step, the update."""
        __tracebackhide__ = True
        if isinstance(self.forward_step, YieldingStep):
            return self._yielding_step(self.forward_step, batch, context)

        output, weighted = self.gradients(batch, context)
        if self.closure is not None:
            self.closure.add(batch, context, weighted)
        if batch.last:
            self._update()
        return output

    def _update(self) -> None:
        count = self.updater.finish_gradients()
        if self.closure is None:
            self.updater.step()
            return
        self.closure.complete(count)
        self.updater.step(self.closure.__call__)
        self.closure.clear()

    def gradients(self, batch: Batch, context: StepContext) -> tuple[StepOutput, Tensor]:
        """Forward and backward of a micro-batch; what it gave, and its loss by its weight in the step."""
        __tracebackhide__ = True
        with self.autocast:
            output: StepOutput = self.parallel(batch, context)
        return output, self.updater.backward(output.loss, batch, output.count, output.reduction)

    def _yielding_step(self, step: YieldingStep, batch: Batch, context: StepContext) -> StepOutput:
        """A step that yields its losses: where it does, one optimizer steps by that loss alone."""
        __tracebackhide__ = True
        self.parallel.sync_buffers()
        losses = step.losses(self.model, batch, context)
        while True:
            try:
                with self.autocast:
                    name, loss, count = next(losses)
            except StopIteration as end:
                output: StepOutput = end.value
                self.updater.update_average()
                return output
            self.step_alone(loss, batch, name, count)

    def step_alone(self, loss: Tensor, batch: Batch, name: str, count: Tensor | None) -> None:
        """All gradients zeroed, those of this loss taken, and one optimizer stepped by them."""
        self.updater.optimizer(name)  # an unknown name is said before anything is computed
        self.updater.zero_grad()
        self.updater.backward(loss, batch, count, self.forward_step.reduction)
        self.updater.finish_gradients()
        self.updater.step_alone(name)

    def backward(self, loss: Tensor, batch: Batch, name: str | None = None) -> None:
        """The backward pass of a loss that a loop of the user's own took, and after the last one of a step, the update.

        Args:
            loss: of the batch.
            batch: with its samples and those of the whole step.
            name: of the optimizer that steps by this loss alone; None for all of the session's.

        Raises:
            RecipeError: the loss is not one number in a tensor; or an optimizer is to step alone within a step of
                several micro-batches, or by a closure.
        """
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise RecipeError(f"backward takes a loss that is one number in a tensor, and got {got}: pass loss.mean().")
        count = self.forward_step.own_count(batch.samples, self.world.device)
        if count is not None:
            loss = zero_if_empty(loss, count)
        if name is not None:
            self._check_alone(name)
            self.step_alone(loss, batch, name, count)
            self.updater.update_average()
            return
        if self.closure is not None:
            raise RecipeError(
                "session.backward(loss) steps the optimizer, and this one computes the loss again and again by a "
                "closure, which the loop has: call session.optimizer.step(closure) instead, or use train()."
            )

        self.updater.backward(loss, batch, count, self.forward_step.reduction)
        if batch.last:
            self._update()

    def _check_alone(self, name: str) -> None:
        accumulate = self.updater.recipe.settings.accumulate
        if accumulate > 1:
            raise RecipeError(
                f"session.backward(loss, {name!r}) with accumulate={accumulate}: the optimizer steps at each such "
                f"call, so gradients cannot add up over micro-batches: leave accumulate out, or use a smaller "
                f"batch_size."
            )

    def register(self, name: str, thing: Any) -> None:
        """Keep an object of a loop of the user's own, as `Registered.add`; ranks train what it trains alike."""
        self.updater.registered.add(name, thing)
        self.parallel.include(self.updater.registered.parameters())

    @property
    def eval_model(self) -> nn.Module:
        """The module that validation, files and the user see."""
        return self.updater.eval_model


class StepClosure:
    """The loss of a whole step and its gradients, computed anew whenever an optimizer such as LBFGS asks for them.

    The loss is that of all micro-batches and ranks, so that a line search takes the same way on each of them. The first
    answer is what the step has computed already.

    Args:
        engine: whose step it is.
    """

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self._parts: list[tuple[Batch, StepContext]] = []
        self._weighted: list[Tensor] = []
        self._known: Tensor | None = None
        """the loss of the weights as they are, until it was asked for"""

    def add(self, batch: Batch, context: StepContext, weighted: Tensor) -> None:
        """Take a micro-batch whose gradients are there already, with its loss by its weight in the step."""
        self._parts.append((batch, context))
        self._weighted.append(weighted)

    def complete(self, count: Tensor | None) -> None:
        """All micro-batches are there: the loss of the whole step (all ranks participate).

        Args:
            count: what the losses count together; None where their weights add up to one.
        """
        world = self.engine.world
        total = torch.stack(self._weighted).sum() / world.world_size
        if count is not None:
            total = total / count.to(total.dtype)
        self._known = world.sum(total)

    @torch.enable_grad()
    def __call__(self) -> Tensor:
        """Loss and gradients by the weights as they are now (all ranks participate)."""
        if self._known is None:
            self._compute()
        loss, self._known = self._known, None
        assert loss is not None  # just computed
        return loss

    def _compute(self) -> None:
        engine = self.engine
        engine.updater.zero_grad()
        self._weighted = []
        for batch, context in self._parts:
            engine.begin_batch(batch)
            self._weighted.append(engine.gradients(batch, context)[1])
        self.complete(engine.updater.finish_gradients())

    def clear(self) -> None:
        """Forget the step, which is done."""
        self._parts = []
        self._weighted = []
        self._known = None


def compile_in_place(model: nn.Module, tell: Callable[[str, str], None]) -> Callable[[], None]:
    """Have calls of a module go through `torch.compile`; gives a function that undoes it.

    The module stays the user's own, with its methods and the names of its weights. A compiler that fails at the first
    call is told of once, and the module runs as it is from then on.

    Args:
        model: to be compiled at its first call.
        tell: is called with a cause and a text where the compiler fails.
    """
    model.compile()
    compiled: Callable[..., Any] = model._compiled_call_impl  # type: ignore[assignment]

    def undo() -> None:
        model._compiled_call_impl = None

    def call(*args: Any, **keywords: Any) -> Any:
        try:
            return compiled(*args, **keywords)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            first = (str(error).splitlines() or [""])[0]
            tell("compile failed", f"torch.compile failed ({first}); training goes on without it.")
            undo()
            return model(*args, **keywords)

    model._compiled_call_impl = call
    return undo
