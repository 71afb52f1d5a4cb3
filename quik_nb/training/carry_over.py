"""What of a training's state still holds when the next call of train() comes with a changed recipe."""

import math
from dataclasses import replace
from typing import Any

from quik_nb.recipe.data import alike
from quik_nb.recipe.equality import same
from quik_nb.recipe.recipe import Recipe, Spec
from quik_nb.training.optimizers import optimizer_keywords, trained_parameters
from quik_nb.training.progress import Progress
from quik_nb.training.schedule import STEADY

ANY_FORM = ("fused", "foreach", "maximize", "differentiable", "lr", "weight_decay", "eps")
"""Keywords of optimizers that change no moments."""


def carried(progress: Progress, old: Recipe | None, new: Recipe, other_weights: bool = False) -> Progress:
    """The progress to go on from.

    Another optimizer class, or other parameters, start without the old moments; changed rates or another scheduler
    start a new schedule and keep the moments; other data, batches or weights give up the unfinished epoch, as its steps
    are others now.

    Args:
        progress: of the last training.
        old: the recipe it was trained by; None where nothing was trained.
        new: the recipe to go on by.
        other_weights: whether those of an earlier epoch were loaded.
    """
    if old is None:
        return progress
    if not same_loss(old, new):
        progress = replace(progress, best=math.inf, best_for_patience=math.inf, epochs_without_improvement=0)
    names = None if new.model is None else trained_parameters(new.model, new.settings.freeze)
    by_hand = progress.parameters not in (None, names)  # layers were put in, or switched off
    if by_hand or not same(_parameters(old), _parameters(new)):
        progress = replace(progress, optimizer=None, scheduler=None, schedule_end=0)
    elif not same(_keywords(old), _keywords(new)) or old.scheduler != new.scheduler:
        progress = replace(progress, scheduler=None, schedule_end=0)
    batches = old.settings.same_batches(new.settings)
    given_up = other_weights and progress.step > 0
    if given_up or not batches or old.train is None or new.train is None or not alike(old.train, new.train):
        progress = progress.at_epoch()
        if new.scheduler is not None and new.scheduler.per_batch:
            progress = replace(progress, scheduler=None, schedule_end=0)
    return progress


def base_rate(progress: Progress) -> float | None:
    """The learning rate that the first group has, or that its schedule starts from; None before the first step."""
    if progress.optimizer is None:
        return None
    group = progress.optimizer["param_groups"][0]
    return float(group.get("initial_lr", group["lr"]))


def same_loss(old: Recipe, new: Recipe) -> bool:
    """Whether losses before and after can be compared: both are of one criterion and one step."""
    return same((old.criterion, old.step), (new.criterion, new.step))


def _parameters(recipe: Recipe) -> object:
    """What the optimizer's moments belong to: its class and form, and which parameters lie in which group."""
    spec = recipe.optimizer
    return spec and (spec.target, _form(spec), list(spec.groups), recipe.settings.freeze)


def _form(spec: Spec) -> dict[str, Any]:
    """The keywords that decide which moments there are: switches, and which numbers are zero."""
    defaults = {name: p.default for name, p in spec.parameters.items() if p.default is not p.empty}
    chosen = {name: value for name, value in {**defaults, **spec.keywords}.items() if name not in ANY_FORM}
    return {name: bool(value) if isinstance(value, bool | int | float) else None for name, value in chosen.items()}


def _keywords(recipe: Recipe) -> object:
    """Those of the optimizer that a schedule starts from."""
    if recipe.optimizer is None:
        return None
    groups = [optimizer_keywords(recipe.optimizer, recipe), *recipe.optimizer.groups.values()]
    return [{name: value for name, value in group.items() if name not in STEADY} for group in groups]
