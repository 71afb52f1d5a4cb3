"""From gradients to new weights: their weighting over micro-batches and ranks, clipping, the step, averaged weights.

Each rank has one; all of them make the same update, since gradients are the same on all ranks when they are used.
"""

from typing import Any

import torch
from torch import Tensor, nn

from quik_nb.recipe.equality import same
from quik_nb.recipe.recipe import Recipe
from quik_nb.training.data.batch import Batch
from quik_nb.training.ema import AveragedWeights
from quik_nb.training.forward import EPS
from quik_nb.training.metrics import exact
from quik_nb.training.optimizers import make_optimizer, trained_parameters
from quik_nb.training.progress import Progress
from quik_nb.training.schedule import Schedule
from quik_nb.training.world import World


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

    def divide(self, model: nn.Module) -> None:
        """Divide the gradients of a whole step by what its losses count (all ranks participate)."""
        if not isinstance(self._count, Tensor):
            return
        total = self.world.sum(self._count)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= total.clamp(min=EPS)
        self._count = 0.0


class Updater:
    """The optimizer, its schedule, and all that happens between a backward pass and the next forward.

    Args:
        recipe: with optimizer, scheduler and settings.
        model: the module whose parameters are trained, on the world's device.
        world: this rank among the others.
        scaled: whether losses are scaled, as fp16 on a GPU needs.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, world: World, scaled: bool) -> None:
        self.recipe = recipe
        self.model = model
        self.weights = GradientWeights(world, world.world_size > 1 or recipe.settings.accumulate > 1)
        self.optimizer = make_optimizer(recipe, model)
        self.schedule: Schedule
        self.scaler = torch.amp.GradScaler("cuda") if scaled else None
        ema = recipe.settings.ema
        self.average = AveragedWeights(model, ema) if ema is not None else None
        self.norms = GradientNorms()

    def restore(self, progress: Progress, last: int, steps_per_epoch: int | None) -> None:
        """Make the schedule and put back the state of an earlier training.

        Args:
            progress: of that training; an empty one for a new training.
            last: the epoch to stop before.
            steps_per_epoch: optimizer steps; None where unknown.
        """
        self.schedule = Schedule(self.recipe, self.optimizer, progress, last, steps_per_epoch)
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

    def backward(self, loss: Tensor, batch: Batch, count: Tensor | None, reduction: str) -> None:
        """Gradients of the loss, by its weight in the step; after the last micro-batch, the step.

        Args:
            loss: of the batch.
            batch: with its samples and those of the whole step.
            count: what a mean is taken over, as in `StepOutput`; None for the samples.
            reduction: "mean" or "sum".
        """
        loss = self.weights.weigh(loss, batch, count, reduction)
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

        if batch.last:
            self.weights.divide(self.model)
            self._clip()
            self._step()

    def _clip(self) -> None:
        settings = self.recipe.settings
        if settings.clip_norm is None and settings.clip_value is None:
            return
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if settings.clip_value is not None:
            nn.utils.clip_grad_value_(self.model.parameters(), settings.clip_value)
        if settings.clip_norm is not None:
            self.norms.add(nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm))

    def _step(self) -> None:
        self.schedule.note_lr()
        if self.scaler is None:
            self.optimizer.step()
        else:
            before = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.norms.skipped += self.scaler.get_scale() < before

        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model)
        self.schedule.end_step()

    # ------------------------------------------------------------------ state

    @property
    def eval_model(self) -> nn.Module:
        """The module that validation, files and the user see: the averaged one where there is one."""
        return self.model if self.average is None else self.average.module

    def state(self) -> dict[str, Any]:
        """Everything but the weights that are seen, by the names of `Progress`; tensors are shared."""
        return {
            **self.schedule.state(),
            **self.norms.state(),
            "optimizer": self.optimizer.state_dict(),
            "parameters": trained_parameters(self.model),
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
