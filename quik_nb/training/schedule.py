"""All rules of learning rates and schedules: how far a schedule spans, when it is stepped, what a change does to it.

| a scheduler whose `step`                    | is called by the kit as                                          |
|---------------------------------------------|------------------------------------------------------------------|
| needs nothing, as those of torch            | `step()` after each epoch, or each step of the optimizer         |
| needs a value, as `ReduceLROnPlateau`       | `step(loss)` after each epoch                                    |
| needs the epoch, as those of timm           | `step(epochs done, metric=loss)` after each epoch, the loss      |
|                                             | where it takes one, and `step_update(steps done)` after each step|

What is not here: whether a changed recipe starts a new schedule at all (`carry_over.py`), and the step of the optimizer
(`updater.py`).
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import optim
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR

from quik_nb.errors import RecipeError
from quik_nb.recipe.monitor import ranking
from quik_nb.recipe.recipe import Recipe, Scheduler
from quik_nb.training.progress import OptimizerProgress, Progress

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
    def of(
        cls, saved: OptimizerProgress, position: tuple[int, int], spec: Scheduler | None, last: int, epochs: int
    ) -> "Span":
        """The span for a call of train().

        Args:
            saved: what the schedule goes on from.
            position: epoch and step at which the call begins.
            spec: the scheduler; None for none.
            last: the epoch that this call stops before.
            epochs: of the session, which a new schedule spans at least.
        """
        fresh = saved.schedule_end == 0
        end = saved.schedule_end or max(last, epochs)

        if last > end:
            has_an_end = spec is not None and bool(spec.totals(1, 1))
            end, fresh = last, fresh or has_an_end

        start = position if fresh else saved.schedule_start
        return cls(end, start, fresh)


class Schedule:
    """The learning rates of one optimizer over a training.

    Args:
        recipe: with optimizers, schedulers and settings.
        name: of the optimizer.
        optimizer: a new one, whose state of an earlier training is put back here.
        progress: of the training so far.
        last: the epoch that this call stops before.
        steps_per_epoch: optimizer steps; None where unknown.
    """

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        optimizer: optim.Optimizer,
        progress: Progress,
        last: int,
        steps_per_epoch: int | None,
    ) -> None:
        saved = progress.optimizers.get(name, OptimizerProgress())
        self.name = name
        self.spec = with_mode(recipe.scheduler_of(name), ranking(recipe).mode)
        self.optimizer = optimizer
        self.span = Span.of(saved, (progress.epoch, progress.step), self.spec, last, recipe.settings.epochs)
        self.steps = 0 if self.span.fresh else saved.steps
        """made since the schedule began"""
        self.last_lr = saved.last_lr
        """the rate of the first parameter group in the latest step; None where that is not known"""

        self._lrs: list[float] = []
        """of the steps since they were last taken"""

        if saved.state is not None:
            self._restore_optimizer(saved.state)
        self._levelled = self._levels_groups()
        self.scheduler: Any = self._make(saved, steps_per_epoch)
        self._takes = StepArguments.of(self.scheduler)
        self._position = self._own_position()
        self._stepped_by_hand = False

    def _restore_optimizer(self, state: dict[str, Any]) -> None:
        """Put back moments and rates; a new schedule starts from the rates that the optimizer was made with."""
        made_with = [{key: v for key, v in group.items() if key != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state)
        for group, now in zip(self.optimizer.param_groups, made_with, strict=True):
            group.update({name: now[name] for name in STEADY if name in now})

        # or torch warns that the scheduler is stepped before the optimizer was
        self.optimizer._opt_called = True  # type: ignore[attr-defined]

        if self.span.fresh:
            for group, start in zip(self.optimizer.param_groups, made_with, strict=True):
                parameters = group["params"]
                group.clear()
                group.update({**start, "params": parameters})

    def _make(self, saved: OptimizerProgress, steps_per_epoch: int | None) -> Any:
        before = [dict(group) for group in self.optimizer.param_groups]
        epoch, step = self.span.start
        scheduler = make_scheduler(self.spec, self.optimizer, self.span.end - epoch, steps_per_epoch, done=step)

        if scheduler is not None and saved.scheduler is not None and not self.span.fresh:
            scheduler.load_state_dict(saved.scheduler)
            # a scheduler sets rate and momentum to the start of its plan when it is made
            for group, values in zip(self.optimizer.param_groups, before, strict=True):
                group.update(values)
        return scheduler

    def _levels_groups(self) -> bool:
        """Whether the scheduler will give all groups one rate, where they were given several."""
        if self.spec is None or self.spec.target not in (OneCycleLR, CyclicLR):
            return False
        rates = {float(group["lr"]) for group in self.optimizer.param_groups}
        return self.span.fresh and len(rates) > 1 and not isinstance(self.spec.keywords.get("max_lr"), list | tuple)

    # ------------------------------------------------------------------ rates

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

    def scale_lr(self, factor: float) -> None:
        """Multiply the rates of all groups, and the schedule's own numbers alike, from now on.

        A schedule computes the next rate from its base rates, so these are scaled too, or the change would last one
        step.
        """
        for group in self.optimizer.param_groups:
            for key in ("lr", "initial_lr", "max_lr", "min_lr"):
                if key in group:
                    group[key] = group[key] * factor
        _scale(self.scheduler, factor)

    def set_lr(self, lr: float) -> float:
        """Set the rate of the first group from now on, and scale the others and the schedule alike; gives the factor.

        Where it stands at zero, as at the start of a warm-up, `lr` becomes its base rate.
        """
        first = self.optimizer.param_groups[0]
        factor = float(lr / (first["lr"] or first.get("initial_lr") or lr))
        self.scale_lr(factor)
        first["lr"] = lr  # exactly what was asked for, without rounding
        return factor

    # ------------------------------------------------------------------ steps

    def end_step(self) -> None:
        """Count a step of the optimizer, and step a scheduler that counts them."""
        self.steps += 1
        if self.scheduler is None or self.spec is None:
            return
        if self._takes.steps:
            self.scheduler.step_update(self.steps)
        if not self.spec.per_batch or self._takes.epoch:
            return

        self._look_for_steps_by_hand()
        try:
            self.scheduler.step()
        except ValueError as error:  # of a schedule that was given fewer steps than there are
            if self.spec.totals(1, 1) and "step" in str(error):  # its total came from the data
                raise RecipeError(
                    f"{self.spec.name} was planned for the steps that the data said it has, and the data gives more "
                    f"({error}): correct the __len__ of the stream or sampler, which says too few, or use "
                    f"set_scheduler({self.spec.name}, total_steps=...)."
                ) from error
            error.add_note(f"quik_nb: this was {self.spec!r}; without its total it gets that of the whole training.")
            raise
        self._position = self._own_position()

    def end_epoch(self, epoch: int, loss: float) -> None:
        """Step a scheduler that counts epochs.

        Args:
            epoch: that has ended.
            loss: of the epoch, for a scheduler that watches it.
        """
        if self.scheduler is None or self.spec is None or (self.spec.per_batch and not self._takes.epoch):
            return
        self._look_for_steps_by_hand()
        if self._takes.epoch:
            metric = {self._takes.metric: loss} if self._takes.metric else {}
            self.scheduler.step(epoch + 1 - self.span.start[0], **metric)
        elif self._takes.value or self.spec.watches_loss:
            self.scheduler.step(loss)
        else:
            self.scheduler.step()
        self._position = self._own_position()

    def _own_position(self) -> Any:
        """How often the scheduler says that it was stepped; None where it does not say."""
        return getattr(self.scheduler, "last_epoch", None)

    def _look_for_steps_by_hand(self) -> None:
        self._stepped_by_hand = self._stepped_by_hand or self._position != self._own_position()

    def notices(self) -> Iterator[tuple[str, str]]:
        """What the user should know of this schedule: causes and texts."""
        name = "" if self.spec is None else self.spec.name
        if self._levelled:
            rates = ", ".join(f"{group['lr']:g}" for group in self.optimizer.param_groups)
            yield (
                f"one rate for all groups {self.name}",
                f"set_scheduler: {name} has one max_lr for all parameter groups, which had rates of their own, and now "
                f"begin with {rates}: to keep their ratio pass max_lr=[...], one for each group.",
            )
        if self._stepped_by_hand:
            yield (
                f"scheduler stepped twice {self.name}",
                f"{name} was stepped by hand, and the session steps it as well, so that its rates run ahead: leave "
                f"scheduler.step() out, or leave set_scheduler out and register one of your own with session.register.",
            )

    def state(self, parameters: list[tuple[str, tuple[int, ...]]] | None) -> OptimizerProgress:
        """What the next call goes on from.

        Args:
            parameters: names and shapes of those that the optimizer trains.
        """
        return OptimizerProgress(
            state=self.optimizer.state_dict(),
            scheduler=None if self.scheduler is None else self.scheduler.state_dict(),
            schedule_end=self.span.end,
            schedule_start=self.span.start,
            last_lr=self.last_lr,
            parameters=parameters,
            steps=self.steps,
        )


@dataclass(frozen=True)
class StepArguments:
    """What the `step` of a scheduler needs; the table of this module says how it is called then."""

    epoch: bool = False
    """whether it needs the epoch, as those of timm"""
    value: bool = False
    """whether it needs the value that it watches"""
    metric: str = ""
    """the name by which one that needs the epoch takes that value; empty where it does not"""
    steps: bool = False
    """whether it is also told of each step, by `step_update`"""

    @classmethod
    def of(cls, scheduler: Any) -> "StepArguments":
        """Those of a scheduler, or of its class; of what has no `step`, such as a function that makes one, none.

        >>> StepArguments.of(None)
        StepArguments(epoch=False, value=False, metric='', steps=False)
        """
        if not hasattr(scheduler, "step"):
            return cls()
        parameters = dict(inspect.signature(scheduler.step).parameters)
        parameters.pop("self", None)
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        needed = [n for n, p in parameters.items() if p.kind in kinds and p.default is p.empty]
        epoch = bool(needed) and needed[0].startswith("epoch")
        return cls(
            epoch=epoch,
            value=bool(needed) and not epoch,
            metric=next((name for name in ("metric", "metrics") if name in parameters), ""),
            steps=hasattr(scheduler, "step_update"),
        )


def with_mode(spec: Scheduler | None, mode: str) -> Scheduler | None:
    """A scheduler that watches a column, in the direction in which that gets better."""
    if spec is None or not spec.watches_loss or mode == "min" or "mode" in spec.keywords:
        return spec
    return replace(spec, keywords={**spec.keywords, "mode": mode})


def make_scheduler(
    spec: Scheduler | None, optimizer: optim.Optimizer, epochs: int, steps_per_epoch: int | None, done: int = 0
) -> LRScheduler | None:
    """The scheduler, with the totals it needs; None where there is none.

    Args:
        spec: the scheduler's class and keywords.
        optimizer: whose rates it sets.
        epochs: over which a schedule with an end is spread.
        steps_per_epoch: optimizer steps; None where unknown.
        done: steps of the first of these epochs that are made already.

    Raises:
        RecipeError: the scheduler refuses its keywords; the message shows them.
    """
    if spec is None:
        return None
    try:
        return spec(optimizer, **spec.totals(epochs, steps_per_epoch, done))  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise RecipeError(f"set_scheduler: {spec!r} was refused: {error}.") from error


def _scale(scheduler: Any, factor: float) -> None:
    """A schedule's own rates, and those of the schedules that it is made of."""
    for name in ("base_lrs", "max_lrs", "base_values"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, [rate * factor for rate in getattr(scheduler, name)])
    for inner in getattr(scheduler, "_schedulers", ()):
        _scale(inner, factor)
