"""From a loss to new weights: gradients over micro-batches and ranks, clipping, optimizer, schedule, averaged weights.

Each rank has one; all of them make the same update, since gradients are the same on all ranks when they are used.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from quik_nb.recipe.equality import same
from quik_nb.recipe.recipe import Recipe, Scheduler, fits
from quik_nb.training.data.batch import Batch
from quik_nb.training.forward import EPS
from quik_nb.training.metrics import exact
from quik_nb.training.optimizers import make_optimizer, make_scheduler, set_lr, step_scheduler
from quik_nb.training.progress import Progress
from quik_nb.training.world import World

STEADY = ("weight_decay", "eps")
"""Keywords of optimizers that no schedule moves: they can change while one goes on."""


class Updater:
    """Optimizer, scheduler and all that happens between a backward pass and the next forward.

    Args:
        recipe: with optimizer, scheduler and settings.
        model: the module whose parameters are trained, on the world's device.
        world: this rank among the others.
        scaled: whether losses are scaled, as fp16 on a GPU needs.
        sums: whether the criterion sums over samples rather than averaging.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, world: World, scaled: bool, sums: bool) -> None:
        self.recipe, self.settings, self.model, self.world, self.sums = recipe, recipe.settings, model, world, sums
        self.optimizer = make_optimizer(recipe, model)
        self.scheduler: Any = None
        self.schedule_end, self.schedule_start = 0, (0, 0)
        self.last_lr: float | None = None
        """the rate of the first parameter group in the latest step; None where that was not made here"""
        # scaling keeps small fp16 gradients from vanishing; bf16 has the range of fp32 and needs none
        self.scaler = torch.amp.GradScaler("cuda") if scaled else None
        self.average = self._make_average(model)
        self.in_parts = world.is_ddp or self.settings.accumulate > 1
        self.counted: float | Tensor = 0.0
        self.norms: list[Tensor] = []
        """of the gradients before clipping, of the steps since they were last summed"""
        self.norm_sum, self.norm_count = 0.0, 0
        """of those before in this epoch"""
        self.skipped = 0
        """steps of this epoch that the scaler left out because a gradient overflowed"""

    def _make_average(self, model: nn.Module) -> AveragedModel | None:
        if self.settings.ema is None:
            return None
        average = get_ema_multi_avg_fn(self.settings.ema)  # type: ignore[no-untyped-call]
        return AveragedModel(model, multi_avg_fn=average, use_buffers=True)

    # ------------------------------------------------------------------ the schedule

    def plan(self, progress: Progress, last: int, steps_per_epoch: int | None) -> None:
        """Make the schedule and take up the state of an earlier training.

        A plan spans the session's epochs; a call that goes beyond it starts a new one over its own epochs, and a new
        schedule has a plan for what is left.

        Args:
            progress: of the earlier training.
            last: the epoch to stop before.
            steps_per_epoch: optimizer steps; None where unknown.
        """
        self.schedule_end = progress.schedule_end or max(last, self.settings.epochs)
        fresh = progress.schedule_end == 0
        if last > self.schedule_end:
            ends = self.recipe.scheduler is not None and bool(self.recipe.scheduler.totals(1, 1))
            self.schedule_end, fresh = last, fresh or ends
        self.schedule_start = (progress.epoch, progress.step) if fresh else progress.schedule_start
        self.last_lr = progress.last_lr
        if progress.optimizer is not None:
            chosen = [{name: group[name] for name in STEADY if name in group} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(progress.optimizer)
            for group, now in zip(self.optimizer.param_groups, chosen, strict=True):
                group.update(now)
            self.optimizer._opt_called = True  # type: ignore[attr-defined]  # or torch warns that no step was made
            if fresh:
                self._forget_schedule()
        groups = [dict(group) for group in self.optimizer.param_groups]
        epoch, step = self.schedule_start
        self.scheduler = make_scheduler(
            self.recipe, self.optimizer, self.schedule_end - epoch, steps_per_epoch, done=step
        )
        if self.scheduler is not None and progress.scheduler is not None and not fresh:
            self.scheduler.load_state_dict(progress.scheduler)
            for group, before in zip(self.optimizer.param_groups, groups, strict=True):
                group.update(before)  # a scheduler sets rate and momentum to the start of its plan when it is made
        if self.scaler is not None and progress.scaler is not None:
            self.scaler.load_state_dict(progress.scaler)
        self.norm_sum, self.norm_count, self.skipped = progress.norm_sum, progress.norm_count, progress.skipped
        self._take_up_average(progress.average)

    def _forget_schedule(self) -> None:
        """Take the rates back to where the optimizer's class would start them, for a new plan."""
        fresh = make_optimizer(self.recipe, self.model)
        for group, start in zip(self.optimizer.param_groups, fresh.param_groups, strict=True):
            kept = {"params": group["params"]}
            group.clear()
            group.update({**start, **kept})

    def _take_up_average(self, saved: dict[str, Any] | None) -> None:
        """Go on from the trained weights behind an average, unless other weights were loaded in the meantime."""
        if self.average is None or saved is None:
            return
        held, averaged = self.model.state_dict(), saved["averaged"]
        if same(*({name: value.cpu() for name, value in state.items()} for state in (held, averaged))):
            self.average.module.load_state_dict(averaged)
            self.average.n_averaged.fill_(saved["count"])
            self.model.load_state_dict(saved["trained"])

    @property
    def lr(self) -> float:
        """The rate of the first parameter group in the latest step, which a schedule may have moved on since."""
        return float(self.optimizer.param_groups[0]["lr"]) if self.last_lr is None else self.last_lr

    def set_lr(self, lr: float) -> None:
        """Set the rate of the first group from now on, and scale the others and the schedule alike."""
        set_lr(self.optimizer, self.scheduler, lr)

    # ------------------------------------------------------------------ a step

    def backward(self, loss: Tensor, batch: Batch, count: Tensor | None = None) -> None:
        """Gradients of the loss, weighted by the batch's share of the step; after the last micro-batch, the step.

        DDP averages gradients over ranks, so a rank's mean loss counts samples * ranks / samples of the whole step.

        Args:
            loss: of the batch.
            batch: with its samples and those of the whole step.
            count: what the loss is a mean over, as in `StepOutput`; None for the samples.
        """
        weight = self._weight(batch) if count is None else self._count(batch, count)
        if isinstance(weight, Tensor) or weight != 1.0:
            loss = loss * weight
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        if batch.last:
            self._divide()
            self._clip()
            self._step()

    def _weight(self, batch: Batch) -> float:
        if self.sums:
            return float(self.world.world_size * (batch.samples > 0))
        return batch.samples * self.world.world_size / batch.total

    def _count(self, batch: Batch, count: Tensor) -> float | Tensor:
        """The weight of a loss whose share is not known before the whole step is computed: divided out afterwards."""
        if not self.in_parts:
            return 1.0
        count = count * (batch.samples > 0)
        self.counted = self.counted + count.to(exact(self.world.device))
        return count * self.world.world_size

    def _divide(self) -> None:
        """Divide the gradients by what the losses of all micro-batches and ranks count (all ranks participate)."""
        if isinstance(self.counted, Tensor):
            total = self.world.sum(self.counted)
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= total.clamp(min=EPS)
            self.counted = 0.0

    def _clip(self) -> None:
        settings = self.settings
        if settings.clip_norm is None and settings.clip_value is None:
            return
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if settings.clip_value is not None:
            nn.utils.clip_grad_value_(self.model.parameters(), settings.clip_value)
        if settings.clip_norm is not None:
            self.norms.append(nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm))

    def _step(self) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        self.last_lr = rate if isinstance(rate, float) else None  # to read a tensor would wait for the device
        if self.scaler is None:
            self.optimizer.step()
        else:
            before = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.skipped += self.scaler.get_scale() < before
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.model)
        if self.scheduler is not None and self.recipe.scheduler is not None and self.recipe.scheduler.per_batch:
            self._next_rate(self.recipe.scheduler)

    def _next_rate(self, spec: Scheduler) -> None:
        try:
            self.scheduler.step()
        except ValueError as error:  # of a schedule that was given fewer steps than there are
            error.add_note(f"quik_nb: this was {spec!r}; without its total it gets that of the whole training.")
            raise

    # ------------------------------------------------------------------ the end of an epoch

    def measured(self) -> dict[str, float]:
        """What the steps of this epoch showed: the mean norm of the gradients before clipping, skipped steps."""
        self._sum_norms()
        values = {}
        if self.norm_count:
            values["grad_norm"] = self.norm_sum / self.norm_count
        if self.skipped:
            values["skipped_steps"] = float(self.skipped)
        self.norm_sum, self.norm_count, self.skipped = 0.0, 0, 0
        return values

    def _sum_norms(self) -> None:
        if self.norms:
            self.norm_sum += float(torch.stack(self.norms).sum())
            self.norm_count += len(self.norms)
            self.norms = []

    def end_epoch(self, loss: float) -> None:
        """Step a scheduler that counts epochs.

        Args:
            loss: of the epoch, for a scheduler that watches it.
        """
        spec = self.recipe.scheduler
        if self.scheduler is not None and spec is not None and not spec.per_batch:
            step_scheduler(self.scheduler, loss if spec.watches_loss else None)

    # ------------------------------------------------------------------ state

    @property
    def judged(self) -> nn.Module:
        """The module that validation, files and the user see: the averaged one where there is one."""
        return self.model if self.average is None else self.average.module

    def state(self) -> dict[str, Any]:
        """Everything but the weights that are seen, by the names of `Progress`; tensors are shared."""
        average = self.average
        self._sum_norms()
        return {
            "schedule_end": self.schedule_end,
            "schedule_start": self.schedule_start,
            "last_lr": self.last_lr,
            "norm_sum": self.norm_sum,
            "norm_count": self.norm_count,
            "skipped": self.skipped,
            "optimizer": self.optimizer.state_dict(),
            "parameters": trained_parameters(self.model),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "average": None
            if average is None
            else {
                "averaged": average.module.state_dict(),
                "trained": self.model.state_dict(),
                "count": int(average.n_averaged),
            },
        }


def trained_parameters(model: nn.Module, frozen: str | None = None) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the parameters that are trained.

    >>> trained_parameters(nn.Linear(2, 1), frozen="bias")
    [('weight', (1, 2))]
    """
    named = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return [(name, tuple(p.shape)) for name, p in named if frozen is None or not fits(name, frozen)]


def freeze(model: nn.Module, pattern: str | None) -> Iterable[nn.Parameter]:
    """Switch off the gradients of the parameters whose names fit; returns those that were switched off."""
    frozen = [] if pattern is None else [p for name, p in matching(model, pattern) if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def matching(model: nn.Module, pattern: str) -> list[tuple[str, nn.Parameter]]:
    """The parameters whose names fit a pattern such as "encoder", "encoder.*" or "*.bias"; commas join patterns.

    >>> [name for name, _ in matching(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), "0, *.bias")]
    ['0.weight', '0.bias', '1.bias']
    """
    return [(name, p) for name, p in model.named_parameters() if fits(name, pattern)]
