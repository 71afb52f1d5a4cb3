"""The state of a training as a value, and what of it still holds when the next run comes with a changed recipe.

Nothing here trains, writes files or knows a session: states go in, states come out.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quik_nb.events import Annotation
from quik_nb.history import History
from quik_nb.recipe.data import alike
from quik_nb.recipe.equality import same
from quik_nb.recipe.recipe import Optimizer, Recipe, Spec
from quik_nb.training.optimizers import optimizer_keywords, trained_parameters
from quik_nb.training.progress import OptimizerProgress, Progress
from quik_nb.training.pytree import to_cpu_copy
from quik_nb.training.schedule import STEADY

ANY_FORM = ("fused", "foreach", "maximize", "differentiable", "lr", "weight_decay", "eps")
"""Keywords of optimizers that change no moments."""


@dataclass(frozen=True)
class TrainingState:
    """How far a training is, over all calls of train(), until the model is replaced or the session is reset.

    A value: a run works on a state of its own, and the session takes that over when the run's first row has come home.
    """

    history: History = field(default_factory=History)
    """rows and annotations so far; never changed here, as each run records into a copy"""
    progress: Progress = field(default_factory=Progress)
    """what the next run starts from"""
    trained_by: Recipe | None = None
    """the recipe of the last run; None before the first"""
    initial_weights: dict[str, Any] | None = None
    """the weights before the first epoch"""
    loaded_epoch: int | None = None
    """the epoch whose weights were loaded back, until a run trains on from them"""
    folder: Path | None = None
    """the run folder; None where nothing was saved yet"""
    earlier_folder: tuple[Path, int] | None = None
    """the run folder of the session that this one continues, and up to which epoch the weights there are ours"""


def continue_from(state: TrainingState, recipe: Recipe, lr: float | None = None) -> TrainingState:
    """The state in which a run by this recipe starts. Pure: `state` stays as it is.

    Weights are always carried over. What else starts again, by what changed since the last run:

    | changed                                   | starts again                                | annotation       |
    |-------------------------------------------|---------------------------------------------|------------------|
    | nothing; another view, name, folder       | nothing                                     |                  |
    | criterion or step                         | best loss, patience                         | "another loss"   |
    | optimizer's class, form or groups; freeze | optimizer's moments, schedule               |                  |
    | layers of the model, by hand              | optimizer's moments, schedule               |                  |
    | lr or other keywords of the optimizer     | schedule                                    |                  |
    | scheduler                                 | schedule                                    |                  |
    | lr, after run.set_lr() set another        | schedule                                    |                  |
    | data, batch_size or seed                  | unfinished epoch, and a schedule by batches |                  |
    | accumulate, beside a DataLoader           | unfinished epoch, and a schedule by batches |                  |
    | weights of an earlier epoch were loaded   | unfinished epoch, and a schedule by batches | "from epoch N"   |

    A schedule by batches starts again only where there was an unfinished epoch to discard after `load_epoch`, and after
    any change of data or batches.

    Args:
        state: of the session.
        recipe: what the run trains by.
        lr: the learning rate that this call was given; None where it was not.
    """
    progress, loaded = state.progress, state.loaded_epoch
    if lr is not None and base_rate(progress) not in (None, lr):  # run.set_lr() left another one
        progress = progress.without_schedule()
    if state.trained_by is not None:
        progress = carry_over(progress, state.trained_by, recipe, other_weights=loaded is not None)

    history = state.history.copy()
    if state.trained_by is not None and not same_loss(state.trained_by, recipe):
        history.record(Annotation(progress.epoch, "another loss", breaks_comparison=True))
    if loaded is not None and (state.progress.step > 0 or loaded != progress.epoch - 1):
        history.record(Annotation(progress.epoch, f"from epoch {loaded}"))

    initial = state.initial_weights
    if initial is None and recipe.model is not None:
        initial = to_cpu_copy(recipe.model.state_dict())
    return replace(
        state, history=history, progress=progress, trained_by=recipe, initial_weights=initial, loaded_epoch=None
    )


def carry_over(progress: Progress, old: Recipe, new: Recipe, other_weights: bool = False) -> Progress:
    """What of the progress still holds under a changed recipe; `continue_from` has the table.

    Args:
        progress: of the last run.
        old: the recipe it was trained by.
        new: the recipe to train on by.
        other_weights: whether those of an earlier epoch were loaded.
    """
    if not same_loss(old, new):
        progress = progress.without_best()

    # the moments belong to certain parameters, which may also have been put in or switched off by hand
    trained = {} if new.model is None else trained_parameters(new)
    going_on = {name: each for name, each in progress.optimizers.items() if name in new.optimizers}
    carried = {name: _carried(name, each, trained.get(name), old, new) for name, each in going_on.items()}
    progress = replace(progress, optimizers=carried)

    # with other batches, the steps of an unfinished epoch are no part of the epoch that they would complete
    discarded = other_weights and progress.step > 0
    if discarded or not _same_batches(old, new):
        progress = progress.at_epoch()
        progress = replace(progress, optimizers={n: _on_other_batches(n, e, new) for n, e in carried.items()})
    return progress


def _carried(name: str, each: OptimizerProgress, trained: Any, old: Recipe, new: Recipe) -> OptimizerProgress:
    """What of one optimizer's progress still holds under a changed recipe.

    Args:
        name: of the optimizer.
        each: its progress.
        trained: names and shapes of the parameters that it trains now.
        old: the recipe it was trained by.
        new: the recipe to train on by.
    """
    before, now = old.optimizers.get(name), new.optimizers[name]
    if each.parameters not in (None, trained) or not same(_parameters(before, old), _parameters(now, new)):
        return each.without_moments()
    if not same(_keywords(before, old), _keywords(now, new)) or old.scheduler_of(name) != new.scheduler_of(name):
        return each.without_schedule()
    return each


def _on_other_batches(name: str, each: OptimizerProgress, recipe: Recipe) -> OptimizerProgress:
    """A schedule by batches starts again where the batches are others."""
    scheduler = recipe.scheduler_of(name)
    return each.without_schedule() if scheduler is not None and scheduler.per_batch else each


def _same_batches(old: Recipe, new: Recipe) -> bool:
    if old.train is None or new.train is None:
        return False
    joined = [recipe.settings.accumulate if getattr(recipe.train, "joins", False) else 1 for recipe in (old, new)]
    return old.settings.same_batches(new.settings) and joined[0] == joined[1] and alike(old.train, new.train)


def base_rate(progress: Progress) -> float | None:
    """The learning rate that the first group has, or that its schedule starts from; None before the first step."""
    first = next(iter(progress.optimizers.values()), OptimizerProgress())
    if first.state is None:
        return None
    group = first.state["param_groups"][0]
    return float(group.get("initial_lr", group["lr"]))


def same_loss(old: Recipe, new: Recipe) -> bool:
    """Whether losses before and after can be compared: both are of one criterion and one step."""
    return same(
        (old.criterion, old.step, old.step_reduction),
        (new.criterion, new.step, new.step_reduction),
    )


def _parameters(spec: Optimizer | None, recipe: Recipe) -> object:
    """What the optimizer's moments belong to: its class and form, and which parameters lie in which group."""
    return spec and (spec.target, _form(spec), list(spec.groups), recipe.settings.freeze)


def _form(spec: Spec) -> dict[str, Any]:
    """The keywords that decide which moments there are: switches, and which numbers are zero."""
    defaults = {name: p.default for name, p in spec.parameters.items() if p.default is not p.empty}
    chosen = {name: value for name, value in {**defaults, **spec.keywords}.items() if name not in ANY_FORM}
    return {name: bool(value) if isinstance(value, bool | int | float) else None for name, value in chosen.items()}


def _keywords(spec: Optimizer | None, recipe: Recipe) -> object:
    """Those of the optimizer that a schedule starts from."""
    if spec is None:
        return None
    groups = [optimizer_keywords(spec, recipe), *spec.groups.values()]
    return [{name: value for name, value in group.items() if name not in STEADY} for group in groups]
