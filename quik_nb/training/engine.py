"""Forward, backward and the update of one rank: what `train_step` is made of."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from quik_nb.errors import RecipeError
from quik_nb.recipe.recipe import Recipe
from quik_nb.training.data.batch import Batch
from quik_nb.training.forward import ForwardStep, StepContext, StepOutput, zero_if_empty
from quik_nb.training.parallel import parallel
from quik_nb.training.precision import Autocast
from quik_nb.training.updater import Updater
from quik_nb.training.world import World


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

    def begin_batch(self, batch: Batch) -> None:
        """Say before the forward pass of a batch whether its gradients complete those of a step."""
        self.forward_step.begin_batch()
        self.parallel.sync_gradients(batch.last)

    def train_step(self, batch: Batch, context: StepContext) -> StepOutput:
        """One micro-batch: forward, backward, and after the last one of a step, the update."""
        __tracebackhide__ = True
        with self.autocast:
            output: StepOutput = self.parallel(batch, context)
        self.updater.backward(output.loss, batch, output.count, output.reduction)
        return output

    def backward(self, loss: Tensor, batch: Batch) -> None:
        """The backward pass of a loss that a loop of the user's own took, and after the last one of a step, the update.

        Raises:
            RecipeError: the loss is not one number in a tensor.
        """
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise RecipeError(f"backward takes a loss that is one number in a tensor, and got {got}: pass loss.mean().")
        count = self.forward_step.own_count(batch.samples, self.world.device)
        if count is not None:
            loss = zero_if_empty(loss, count)
        self.updater.backward(loss, batch, count, self.forward_step.reduction)

    @property
    def eval_model(self) -> nn.Module:
        """The module that validation, files and the user see."""
        return self.updater.eval_model


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
