"""From gradients to new weights: their weighting over micro-batches and ranks, clipping, the step, averaged weights.

Each rank has one; all of them make the same update, since gradients are the same on all ranks when they are used.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quik_nb.errors import RecipeError, suggest
from quik_nb.recipe.equality import same
from quik_nb.recipe.recipe import Recipe
from quik_nb.training.clipping import clip_norm, clip_value
from quik_nb.training.data.batch import Batch
from quik_nb.training.ema import AveragedWeights
from quik_nb.training.optimizers import make_optimizers, trained_parameters
from quik_nb.training.progress import Progress
from quik_nb.training.registered import Registered
from quik_nb.training.schedule import Schedule
from quik_nb.training.world import World, exact


class GradientWeights:
    """How much the loss of a micro-batch counts in the gradient of its step.

    Gradients are averaged over ranks, so what a rank adds is multiplied by their number.

    | the loss is                        | weight of a micro-batch                | at the step's end               |
    |------------------------------------|----------------------------------------|---------------------------------|
    | a mean over its samples            | samples * ranks / samples of the step  | nothing: weights add up to one  |
    | a mean over a count                | count * ranks                          | divided by the sum of counts    |
    | a mean over a count, one part only | 1                                      | nothing                         |
    | a sum                              | ranks                                  | nothing: the gradient is a sum  |
    | of a placeholder without samples   | 0                                      | nothing                         |

    Args:
        world: this rank among the others.
        in_parts: whether a step has several micro-batches or ranks.
    """

    def __init__(self, world: World, in_parts: bool) -> None:
        self.world = world
        self.in_parts = in_parts
        self._count: float | Tensor = 0.0
        """of the losses of this step so far, on this rank"""

    def weigh(self, loss: Tensor, batch: Batch, count: Tensor | None, reduction: str) -> Tensor:
        """The loss to take gradients of.

        Args:
            loss: of the micro-batch.
            batch: with its samples and those of the whole step.
            count: what a mean is taken over; None for the samples.
            reduction: "mean" or "sum".
        """
        ranks = self.world.world_size
        if reduction == "sum":
            weight: float | Tensor = float(ranks * (batch.samples > 0))
        elif count is None:
            weight = batch.samples * ranks / batch.total
        elif self.in_parts:
            counted = count * (batch.samples > 0)
            self._count = self._count + counted.to(exact(self.world.device))
            weight = counted * ranks
        else:
            weight = 1.0

        unchanged = isinstance(weight, float) and weight == 1.0
        return loss if unchanged else loss * weight

    def divide(self, parameters: Iterable[nn.Parameter]) -> Tensor | None:
        """Divide the gradients of a whole step by what its losses count, and give that (all ranks participate).

        None where nothing is to be divided.
        """
        if not isinstance(self._count, Tensor):
            return None
        total = self.world.sum(self._count)
        total = total.clamp(min=torch.finfo(total.dtype).tiny)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= total
        self._count = 0.0
        return total


class Updater:
    """The optimizers, their schedules, and all that happens between a backward pass and the next forward.

    Args:
        recipe: with optimizers, schedulers and settings.
        model: the module whose parameters are trained, on the world's device.
        world: this rank among the others.
        scaled: whether losses are scaled, as fp16 on a GPU needs.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, world: World, scaled: bool) -> None:
        self.recipe = recipe
        self.model = model
        self.weights = GradientWeights(world, world.world_size > 1 or recipe.settings.accumulate > 1)
        self.optimizers = make_optimizers(recipe, model)
        self._trained = trained_parameters(recipe)
        self._model_parameters = list(model.parameters())
        self.schedules: dict[str, Schedule] = {}
        self.registered = Registered({})
        self.scaler = torch.amp.GradScaler("cuda") if scaled else None
        ema = recipe.settings.ema
        self.average = AveragedWeights(model, ema) if ema is not None else None
        self.norms = GradientNorms()
        self.gradients = GradientWatch()

    def restore(self, progress: Progress, last: int, steps_per_epoch: int | None) -> None:
        """Make the schedules and put back the state of an earlier training.

        Args:
            progress: of that training; an empty one for a new training.
            last: the epoch to stop before.
            steps_per_epoch: optimizer steps; None where unknown.
        """
        self.schedules = {
            name: Schedule(self.recipe, name, optimizer, progress, last, steps_per_epoch)
            for name, optimizer in self.optimizers.items()
        }
        self.registered = Registered(progress.registered)
        if self.scaler is not None and progress.scaler is not None:
            self.scaler.load_state_dict(progress.scaler)
        self.norms = GradientNorms(progress.norm_sum, progress.norm_count, progress.skipped)
        self._restore_average(progress.average)

    def _restore_average(self, saved: dict[str, Any] | None) -> None:
        """Go on from the trained weights behind an average, unless other weights were loaded in the meantime."""
        if self.average is None or saved is None:
            return
        present, averaged = self.model.state_dict(), saved["averaged"]
        if same(*({name: value.cpu() for name, value in state.items()} for state in (present, averaged))):
            self.average.module.load_state_dict(averaged)
            self.average.count = saved["count"]
            self.model.load_state_dict(saved["trained"])

    # ------------------------------------------------------------------ a step

    def zero_grad(self) -> None:
        """Drop the gradients of all that is trained."""
        for parameter in self._parameters():
            parameter.grad = None

    def _parameters(self) -> Iterator[nn.Parameter]:
        yield from self._model_parameters
        yield from self.registered.parameters()

    def backward(self, loss: Tensor, batch: Batch, count: Tensor | None, reduction: str) -> Tensor:
        """Gradients of the loss by its weight in the step, which is given back without its graph.

        Args:
            loss: of the batch.
            batch: with its samples and those of the whole step.
            count: what a mean is taken over, as in `StepOutput`; None for the samples.
            reduction: "mean" or "sum".
        """
        loss = self.weights.weigh(loss, batch, count, reduction)
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def finish_gradients(self) -> Tensor | None:
        """Complete the gradients of a whole step (all ranks participate); gives what its losses count together.

        None where their weights add up to one.
        """
        return self.weights.divide(self._parameters())

    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        """Clip, and step all optimizers of the session by the gradients of a whole step.

        Args:
            closure: gives the loss of the step and its gradients anew, for an optimizer that asks for it.

        Raises:
            RecipeError: there is no optimizer.
        """
        if not self.optimizers:
            raise RecipeError(
                "session.backward(loss) was called, and the session has no optimizer to step by it: use "
                "set_optimizer(optim.AdamW), or session.register one and call session.backward(loss, 'its name')."
            )
        self._step(self.optimizers, self._model_parameters, closure)
        self.update_average()

    def update_average(self) -> None:
        """Take the new weights into the average, once for each batch, however many optimizers stepped for it."""
        if self.average is not None:
            self.average.update(self.model)

    def step_alone(self, name: str) -> None:
        """Clip and step one optimizer, of the session or registered, by the gradients of its parameters."""
        optimizer = self.optimizer(name)
        self._step({name: optimizer}, [p for group in optimizer.param_groups for p in group["params"]])

    def known_optimizers(self) -> list[Any]:
        """Those of the session, and those that a loop registered."""
        return [*self.optimizers.values(), *self.registered.optimizers.values()]

    def optimizer(self, name: str) -> Any:
        """An optimizer of the session or a registered one.

        Raises:
            RecipeError: none has this name.
        """
        known = {**self.optimizers, **self.registered.optimizers}
        if name not in known:
            raise RecipeError(
                f"There is no optimizer {name!r} to step by this loss: {suggest(str(name), list(known))}. "
                f"set_optimizer(..., name={name!r}) makes one; in a loop, session.register({name!r}, optimizer) does."
            )
        return known[name]

    def _step(
        self,
        optimizers: dict[str, Any],
        parameters: list[nn.Parameter],
        closure: Callable[[], Tensor] | None = None,
    ) -> None:
        self.gradients.look(parameters)
        self._clip(optimizers, parameters)

        stepped = [self.schedules[name] for name in optimizers if name in self.schedules]
        for schedule in stepped:
            schedule.note_lr()
        for optimizer in optimizers.values():
            self._step_one(optimizer, closure)
        if self.scaler is not None:
            before = self.scaler.get_scale()
            self.scaler.update()
            self.norms.skipped += self.scaler.get_scale() < before

        self.zero_grad()
        for schedule in stepped:
            schedule.end_step()

    def _step_one(self, optimizer: Any, closure: Callable[[], Tensor] | None) -> None:
        if closure is not None:
            optimizer.step(closure)
        elif self.scaler is not None:
            self.scaler.step(optimizer)
        else:
            optimizer.step()

    def _clip(self, optimizers: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        settings = self.recipe.settings
        if settings.clip_norm is None and settings.clip_value is None:
            return
        if self.scaler is not None:
            for optimizer in optimizers.values():
                self.scaler.unscale_(optimizer)
        if settings.clip_value is not None:
            clip_value(parameters, settings.clip_value)
        if settings.clip_norm is not None:
            self.norms.add(clip_norm(parameters, settings.clip_norm))

    # ------------------------------------------------------------------ rates

    def lrs(self, stepped: Sequence[Any] = ()) -> dict[str, float]:
        """The rates of the latest step, by column: `lr` is that of the first optimizer, the others are `lr_NAME`.

        Args:
            stepped: the optimizers that a loop of the user's own has stepped, of which the rates are shown; where it
                is empty, those of all.
        """
        named = {**self.optimizers, **self.registered.optimizers}
        unknown = [each for each in stepped if not any(each is known for known in named.values())]
        if unknown:
            named["own"] = unknown[0]
        if stepped:
            named = {name: each for name, each in named.items() if any(each is other for other in stepped)}

        rates = {
            name: self.schedules[name].lr if name in self.schedules else float(each.param_groups[0]["lr"])
            for name, each in named.items()
        }
        return {f"lr_{name}" if i else "lr": rate for i, (name, rate) in enumerate(rates.items())}

    @property
    def lr(self) -> float:
        """The rate of the first optimizer in the latest step; NaN where there is none."""
        return self.lrs().get("lr", float("nan"))

    def set_lr(self, lr: float) -> None:
        """Set the rate of the first optimizer from now on; those of the others are scaled alike."""
        if not self.schedules:  # a loop has registered optimizers of its own
            for optimizer in self.registered.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = lr
            return
        first, *others = self.schedules.values()
        factor = first.set_lr(lr)
        for schedule in others:
            schedule.scale_lr(factor)

    def take_lrs(self) -> tuple[float, ...]:
        """The rates of the first optimizer in the steps since they were last taken."""
        taken = [schedule.take_lrs() for schedule in self.schedules.values()]
        return taken[0] if taken else ()

    def end_epoch(self, epoch: int, loss: float) -> None:
        """Step the schedulers that count epochs.

        Args:
            epoch: that has ended.
            loss: of the epoch, for a scheduler that watches it.
        """
        for schedule in self.schedules.values():
            schedule.end_epoch(epoch, loss)

    def notices(self) -> Iterator[tuple[str, str]]:
        """What the user should know of the steps so far: causes and texts."""
        for schedule in self.schedules.values():
            yield from schedule.notices()
        yield from self.gradients.notices()

    # ------------------------------------------------------------------ state

    @property
    def eval_model(self) -> nn.Module:
        """The module that validation, files and the user see: the averaged one where there is one."""
        return self.model if self.average is None else self.average.module

    def state(self) -> dict[str, Any]:
        """Everything but the weights that are seen, by the names of `Progress`; tensors are shared."""
        return {
            **self.norms.state(),
            "optimizers": {name: each.state(self._trained.get(name)) for name, each in self.schedules.items()},
            "registered": self.registered.state(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "average": self._average_state(),
        }

    def _average_state(self) -> dict[str, Any] | None:
        if self.average is None:
            return None
        return {
            "averaged": self.average.module.state_dict(),
            "trained": self.model.state_dict(),
            "count": self.average.count,
        }


class GradientWatch:
    """Whether any gradient was ever other than zero: looked at in each step until one was."""

    def __init__(self) -> None:
        self.seen = False
        self.steps = 0

    def look(self, parameters: Iterable[nn.Parameter]) -> None:
        """Look at the gradients of a step; once some were not zero, no more."""
        if self.seen:
            return
        self.steps += 1
        gradients = (p.grad for p in parameters if p.grad is not None)
        self.seen = any(bool((g.coalesce().values() if g.is_sparse else g).any()) for g in gradients)

    def notices(self) -> Iterator[tuple[str, str]]:
        """What the user should know: a cause and a text where all gradients were zero."""
        if self.steps and not self.seen:
            yield (
                "gradients are zero",
                "All gradients are zero, so nothing is trained: the loss does not hang on the model's parameters, or "
                "only through what has no slope. Look for .detach(), .data, argmax or a comparison between model and "
                "loss, or for an activation that is saturated.",
            )


class GradientNorms:
    """What the steps of an epoch showed of their gradients: the mean norm before clipping, and steps left out.

    Args:
        total: of the norms of the epoch so far.
        count: how many those are.
        skipped: steps that the scaler left out, as a gradient overflowed.
    """

    def __init__(self, total: float = 0.0, count: int = 0, skipped: int = 0) -> None:
        self.total = total
        self.count = count
        self.skipped = skipped
        self._new: list[Tensor] = []
        """not yet summed up, as reading them waits for the device"""

    def add(self, norm: Tensor) -> None:
        """Take the norm of all gradients of a step."""
        self._new.append(norm)

    def _read(self) -> None:
        if self._new:
            self.total += float(torch.stack(self._new).sum())
            self.count += len(self._new)
            self._new = []

    def columns(self) -> dict[str, float]:
        """The columns of this epoch's row, and begin the next epoch."""
        self._read()
        values = {}
        if self.count:
            values["grad_norm"] = self.total / self.count
        if self.skipped:
            values["skipped_steps"] = float(self.skipped)
        self.total, self.count, self.skipped = 0.0, 0, 0
        return values

    def state(self) -> dict[str, Any]:
        """By the names of `Progress`."""
        self._read()
        return {"norm_sum": self.total, "norm_count": self.count, "skipped": self.skipped}
