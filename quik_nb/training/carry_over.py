"""The state of a training between runs, and which parts of it a run with a changed recipe carries over.

Pure functions from states to states. What is not here: training, writing files (`storage/`), and the session.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quik_nb.events import Annotation
from quik_nb.history import History
from quik_nb.recipe.equality import same
from quik_nb.recipe.monitor import ranking
from quik_nb.recipe.recipe import Optimizer, Recipe, Spec
from quik_nb.recipe.samples import alike
from quik_nb.training.optimizers import optimizer_keywords, trained_parameters
from quik_nb.training.progress import OptimizerProgress, Progress
from quik_nb.training.pytree import to_cpu_copy
from quik_nb.training.schedule import STEADY

WITHOUT_MOMENTS = ("fused", "foreach", "maximize", "differentiable", "lr", "weight_decay", "eps")
"""Keywords of optimizers that do not affect which moments they have."""


@dataclass(frozen=True)
class TrainingState:
    """The state of a training over all calls of train(), until the model is replaced or the session is reset.

    Immutable: a run starts from a new state, which replaces that of the session with the first row.
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
    """the epoch whose weights `load_epoch` loaded; None again once a run has continued from them"""
    folder: Path | None = None
    """the run folder; None if nothing was saved yet"""
    earlier_folder: tuple[Path, int] | None = None
    """the run folder of the session that this one continues, and the epoch before which its weights are valid here"""


def continue_from(state: TrainingState, recipe: Recipe, lr: float | None = None) -> TrainingState:
    """The initial state of a run with this recipe; `state` is not changed.

    Weights are always carried over. What else starts again depends on what has changed since the last run:

    | changed                                   | starts again                                | annotation       |
    |-------------------------------------------|---------------------------------------------|------------------|
    | nothing; another view, name, folder       | nothing                                     |                  |
    | criterion or step                         | best loss, patience                         | "another loss"   |
    | monitor                                   | patience; the best is that of all rows by it |                  |
    | optimizer's class, form or groups; freeze | optimizer's moments, schedule               |                  |
    | layers of the model, by hand              | optimizer's moments, schedule               |                  |
    | lr or other keywords of the optimizer     | schedule                                    |                  |
    | scheduler                                 | schedule                                    |                  |
    | lr, after run.set_lr() set another        | schedule                                    |                  |
    | data, batch_size or seed                  | unfinished epoch, and a schedule by batches |                  |
    | accumulate, beside a DataLoader           | unfinished epoch, and a schedule by batches |                  |
    | weights of an earlier epoch were loaded   | unfinished epoch, and a schedule by batches | "from epoch N"   |

    A schedule by batches starts again after any change of data or batches, and after `load_epoch` if there was an
    unfinished epoch to discard.

    Args:
        state: of the session.
        recipe: of the run.
        lr: the learning rate passed to this call; None if it was not passed.
    """
    progress, loaded = state.progress, state.loaded_epoch
    if lr is not None and base_rate(progress) not in (None, lr):  # changed by run.set_lr()
        progress = progress.without_schedule()
    if state.trained_by is not None:
        progress = carry_over(progress, state.trained_by, recipe, other_weights=loaded is not None)

    history = state.history.copy()
    history.ranking = ranking(recipe)
    if state.trained_by is not None and ranking(state.trained_by) != history.ranking:
        progress = with_best(progress, history)
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


def with_best(progress: Progress, history: History) -> Progress:
    """The progress with the best of the rows so far, which another monitor ranks in another order."""
    best = history.best
    if best is None:
        return progress.without_best()
    score = history.ranking.score(best)
    return replace(progress.without_best(), best=score, best_for_patience=score, best_epoch=best.epoch)


def carry_over(progress: Progress, old: Recipe, new: Recipe, other_weights: bool = False) -> Progress:
    """The progress that a run with a changed recipe starts from; see the table in `continue_from`.

    Args:
        progress: of the last run.
        old: the recipe of the last run.
        new: the recipe of the next run.
        other_weights: whether weights of an earlier epoch were loaded.
    """
    if not same_loss(old, new):
        progress = progress.without_best()

    # the moments belong to certain parameters; the user may have replaced layers or changed requires_grad
    trained = {} if new.model is None else trained_parameters(new)
    remaining = {name: each for name, each in progress.optimizers.items() if name in new.optimizers}
    carried = {name: _carried(name, each, trained.get(name), old, new) for name, each in remaining.items()}
    progress = replace(progress, optimizers=carried)

    # an unfinished epoch cannot be completed with other batches
    discarded = other_weights and progress.step > 0
    if discarded or not _same_batches(old, new):
        progress = progress.at_epoch()
        progress = replace(progress, optimizers={n: _on_other_batches(n, e, new) for n, e in carried.items()})
    return progress


def _carried(name: str, each: OptimizerProgress, trained: Any, old: Recipe, new: Recipe) -> OptimizerProgress:
    """The progress of one optimizer that a run with a changed recipe starts from.

    Args:
        name: of the optimizer.
        each: its progress.
        trained: names and shapes of the parameters that it trains now.
        old: the recipe of the last run.
        new: the recipe of the next run.
    """
    before, now = old.optimizers.get(name), new.optimizers[name]
    if each.parameters not in (None, trained) or not same(_parameters(before, old), _parameters(now, new)):
        return each.without_moments()
    if not same(_keywords(before, old), _keywords(now, new)) or old.scheduler_of(name) != new.scheduler_of(name):
        return each.without_schedule()
    return each


def _on_other_batches(name: str, each: OptimizerProgress, recipe: Recipe) -> OptimizerProgress:
    """The progress of one optimizer after a change of batches: a schedule by batches starts again."""
    scheduler = recipe.scheduler_of(name)
    return each.without_schedule() if scheduler is not None and scheduler.per_batch else each


def _same_batches(old: Recipe, new: Recipe) -> bool:
    if old.train is None or new.train is None:
        return False
    joined = [recipe.settings.accumulate if getattr(recipe.train, "joins", False) else 1 for recipe in (old, new)]
    return old.settings.same_batches(new.settings) and joined[0] == joined[1] and alike(old.train, new.train)


def base_rate(progress: Progress) -> float | None:
    """The learning rate of the first parameter group, without its schedule; None before the first step."""
    first = next(iter(progress.optimizers.values()), OptimizerProgress())
    if first.state is None:
        return None
    group = first.state["param_groups"][0]
    return float(group.get("initial_lr", group["lr"]))


def same_loss(old: Recipe, new: Recipe) -> bool:
    """Whether losses before and after can be compared: criterion and step are the same."""
    return same(
        (old.criterion, old.step, old.step_reduction),
        (new.criterion, new.step, new.step_reduction),
    )


def _parameters(spec: Optimizer | None, recipe: Recipe) -> object:
    """What the optimizer's moments depend on: its class and switches, parameter groups and frozen parameters."""
    return spec and (spec.target, _form(spec), list(spec.groups), recipe.settings.freeze)


def _form(spec: Spec) -> dict[str, Any]:
    """The keywords that determine which moments an optimizer has: its switches, and which numbers are zero."""
    defaults = {name: p.default for name, p in spec.parameters.items() if p.default is not p.empty}
    chosen = {name: value for name, value in {**defaults, **spec.keywords}.items() if name not in WITHOUT_MOMENTS}
    return {name: bool(value) if isinstance(value, bool | int | float) else None for name, value in chosen.items()}


def _keywords(spec: Optimizer | None, recipe: Recipe) -> object:
    """The optimizer keywords that a schedule starts from."""
    if spec is None:
        return None
    groups = [optimizer_keywords(spec, recipe), *spec.groups.values()]
    return [{name: value for name, value in group.items() if name not in STEADY} for group in groups]
