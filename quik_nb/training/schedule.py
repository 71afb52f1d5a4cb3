"""All rules of learning rates and schedules: how far a schedule spans, when it is stepped, what a change does to it.

What is not here: whether a changed recipe starts a new schedule at all (`carry_over.py`), and the step of the optimizer
(`updater.py`).
"""

from dataclasses import dataclass
from typing import Any

from torch import optim
from torch.optim.lr_scheduler import LRScheduler

from quik_nb.errors import RecipeError
from quik_nb.recipe.recipe import Recipe, Scheduler
from quik_nb.training.optimizers import make_optimizer
from quik_nb.training.progress import Progress

STEADY = ("weight_decay", "eps")
"""Keywords of optimizers that no schedule moves: they can change while one goes on."""


@dataclass(frozen=True)
class Span:
    """The epochs that a schedule is spread over, and whether it begins with this call.

    | call                                          | end               | fresh                              |
    |-----------------------------------------------|-------------------|------------------------------------|
    | the first one, or the first of a new schedule | `max(last, epochs)` | yes                              |
    | one that ends within the schedule             | as before         | no: the schedule goes on           |
    | one that goes beyond it, schedule with an end | `last`            | yes: over the epochs of this call  |
    | one that goes beyond it, schedule without end | `last`            | no                                 |
    """

    end: int
    """the epoch at which the schedule ends"""
    start: tuple[int, int]
    """epoch and step at which it began"""
    fresh: bool
    """whether a new schedule begins"""

    @classmethod
    def of(cls, progress: Progress, spec: Scheduler | None, last: int, epochs: int) -> "Span":
        """The span for a call of train().

        Args:
            progress: of the training so far.
            spec: the scheduler; None for none.
            last: the epoch that this call stops before.
            epochs: of the session, which a new schedule spans at least.
        """
        fresh = progress.schedule_end == 0
        end = progress.schedule_end or max(last, epochs)

        if last > end:
            has_an_end = spec is not None and bool(spec.totals(1, 1))
            end, fresh = last, fresh or has_an_end

        start = (progress.epoch, progress.step) if fresh else progress.schedule_start
        return cls(end, start, fresh)


class Schedule:
    """The learning rates of one optimizer over a training.

    Args:
        recipe: with optimizer, scheduler and settings.
        optimizer: a new one, whose state of an earlier training is put back here.
        progress: of the training so far.
        last: the epoch that this call stops before.
        steps_per_epoch: optimizer steps; None where unknown.
    """

    def __init__(
        self, recipe: Recipe, optimizer: optim.Optimizer, progress: Progress, last: int, steps_per_epoch: int | None
    ) -> None:
        self.spec = recipe.scheduler
        self.optimizer = optimizer
        self.span = Span.of(progress, self.spec, last, recipe.settings.epochs)
        self.last_lr = progress.last_lr
        """the rate of the first parameter group in the latest step; None where that is not known"""

        self._lrs: list[float] = []
        """of the steps since they were last taken"""

        if progress.optimizer is not None:
            self._restore_optimizer(recipe, progress.optimizer)
        self.scheduler: Any = self._make(recipe, progress, steps_per_epoch)

    def _restore_optimizer(self, recipe: Recipe, state: dict[str, Any]) -> None:
        """Put back moments and rates; a new schedule starts from the rates that the optimizer's class starts with."""
        chosen = [{name: group[name] for name in STEADY if name in group} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state)
        for group, now in zip(self.optimizer.param_groups, chosen, strict=True):
            group.update(now)

        # or torch warns that the scheduler is stepped before the optimizer was
        self.optimizer._opt_called = True  # type: ignore[attr-defined]

        if self.span.fresh:
            assert recipe.model is not None  # `validate.check` refuses a recipe without one
            first = make_optimizer(recipe, recipe.model)
            for group, start in zip(self.optimizer.param_groups, first.param_groups, strict=True):
                parameters = group["params"]
                group.clear()
                group.update({**start, "params": parameters})

    def _make(self, recipe: Recipe, progress: Progress, steps_per_epoch: int | None) -> Any:
        before = [dict(group) for group in self.optimizer.param_groups]
        epoch, step = self.span.start
        scheduler = make_scheduler(recipe, self.optimizer, self.span.end - epoch, steps_per_epoch, done=step)

        if scheduler is not None and progress.scheduler is not None and not self.span.fresh:
            scheduler.load_state_dict(progress.scheduler)
            # a scheduler sets rate and momentum to the start of its plan when it is made
            for group, values in zip(self.optimizer.param_groups, before, strict=True):
                group.update(values)
        return scheduler

    @property
    def lr(self) -> float:
        """The rate of the first parameter group in the latest step, which a schedule may have moved on since."""
        return float(self.optimizer.param_groups[0]["lr"]) if self.last_lr is None else self.last_lr

    def note_lr(self) -> None:
        """Remember the rate with which the step is made that comes now."""
        rate = self.optimizer.param_groups[0]["lr"]
        self.last_lr = rate if isinstance(rate, float) else None  # to read a tensor would wait for the device
        if self.last_lr is not None:
            self._lrs.append(self.last_lr)

    def take_lrs(self) -> tuple[float, ...]:
        """The rates of the steps since they were last taken."""
        lrs, self._lrs = tuple(self._lrs), []
        return lrs

    def set_lr(self, lr: float) -> None:
        """Set the rate of the first group from now on, and scale the others and the schedule alike."""
        set_lr(self.optimizer, self.scheduler, lr)

    def end_step(self) -> None:
        """Step a scheduler that counts optimizer steps."""
        if self.scheduler is None or self.spec is None or not self.spec.per_batch:
            return
        try:
            self.scheduler.step()
        except ValueError as error:  # of a schedule that was given fewer steps than there are
            error.add_note(f"quik_nb: this was {self.spec!r}; without its total it gets that of the whole training.")
            raise

    def end_epoch(self, loss: float) -> None:
        """Step a scheduler that counts epochs.

        Args:
            loss: of the epoch, for a scheduler that watches it.
        """
        if self.scheduler is None or self.spec is None or self.spec.per_batch:
            return
        if self.spec.watches_loss:
            self.scheduler.step(loss)
        else:
            self.scheduler.step()

    def state(self) -> dict[str, Any]:
        """What the next call goes on from, by the names of `Progress`."""
        return {
            "schedule_end": self.span.end,
            "schedule_start": self.span.start,
            "last_lr": self.last_lr,
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
        }


def make_scheduler(
    recipe: Recipe, optimizer: optim.Optimizer, epochs: int, steps_per_epoch: int | None, done: int = 0
) -> LRScheduler | None:
    """The scheduler, with the totals it needs; None where the recipe has none.

    Args:
        recipe: with the scheduler's class and keywords.
        optimizer: whose rates it sets.
        epochs: over which a schedule with an end is spread.
        steps_per_epoch: optimizer steps; None where unknown.
        done: steps of the first of these epochs that are made already.

    Raises:
        RecipeError: the scheduler refuses its keywords; the message shows them.
    """
    spec = recipe.scheduler
    if spec is None:
        return None
    try:
        return spec(optimizer, **spec.totals(epochs, steps_per_epoch, done))  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise RecipeError(f"set_scheduler: {spec!r} was refused: {error}.") from error


def set_lr(optimizer: optim.Optimizer, scheduler: Any, lr: float) -> None:
    """Set the rate of the first group, and scale the other groups and the schedule's own numbers alike.

    A schedule computes the next rate from its base rates, so these are scaled too, or the change would last one step.
    Where it stands at zero, as at the start of a warm-up, `lr` becomes its base rate.
    """
    first = optimizer.param_groups[0]
    factor = lr / (first["lr"] or first.get("initial_lr") or lr)

    for group in optimizer.param_groups:
        for key in ("lr", "initial_lr", "max_lr", "min_lr"):
            if key in group:
                group[key] = group[key] * factor
    _scale(scheduler, factor)

    first["lr"] = lr  # exactly what was asked for, without rounding


def _scale(scheduler: Any, factor: float) -> None:
    """A schedule's own rates, and those of the schedules that it is made of."""
    for name in ("base_lrs", "max_lrs"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, [rate * factor for rate in getattr(scheduler, name)])
    for inner in getattr(scheduler, "_schedulers", ()):
        _scale(inner, factor)
