"""Which column makes an epoch the best, and whether it is to fall or to rise.

The direction comes from the metric where it knows it, from the name where that is known, else from `monitor_mode`.
"""

from collections.abc import Iterator, Mapping

from quik_nb.errors import suggest
from quik_nb.history import LOSS, NO_RANKING, Ranking
from quik_nb.recipe.recipe import Recipe, Scheduler

METRICS: Mapping[str, str] = {
    "accuracy": "max",
    "top5_accuracy": "max",
    "precision": "max",
    "recall": "max",
    "f1": "max",
    "auroc": "max",
    "average_precision": "max",
    "mae": "min",
    "mse": "min",
    "rmse": "min",
    "r2": "max",
}
"""Metrics that `set_metrics` knows by name, and whether they are to fall ("min") or to rise ("max")."""

WORDS: Mapping[str, str] = {
    **METRICS,
    "acc": "max",
    "auc": "max",
    "map": "max",
    "iou": "max",
    "miou": "max",
    "dice": "max",
    "bleu": "max",
    "rouge": "max",
    "kappa": "max",
    "psnr": "max",
    "ssim": "max",
    "specificity": "max",
    "sensitivity": "max",
    "score": "max",
    "loss": "min",
    "error": "min",
    "perplexity": "min",
    "wer": "min",
    "cer": "min",
    "nll": "min",
}
"""Words in the name of a column that tell its direction."""


def ranking(recipe: Recipe) -> Ranking:
    """What makes an epoch the best by this recipe; nothing where a step yields several losses and nothing is named.

    Where no direction is known, which `monitor_faults` tells, it is taken to fall.
    """
    column = recipe.settings.monitor
    mode = recipe.settings.monitor_mode
    if column is None:
        return NO_RANKING if recipe.yields else LOSS
    return Ranking(column, mode or direction(recipe, column) or "min")


def direction(recipe: Recipe, column: str) -> str | None:
    """Whether a column is to fall ("min") or to rise ("max"); None where that is not known.

    >>> direction(Recipe(), "valid_f1"), direction(Recipe(), "train_loss"), direction(Recipe(), "fairness")
    ('max', 'min', None)
    """
    bare = column.removeprefix("train_").removeprefix("valid_")
    metric = recipe.metrics.get(bare)
    if isinstance(metric, str):
        return METRICS[metric]
    rises = getattr(metric, "higher_is_better", None)
    if isinstance(rises, bool):
        return "max" if rises else "min"

    words = [bare, *reversed(bare.split("_"))]
    return next((WORDS[word] for word in words if word in WORDS), None)


def known_columns(recipe: Recipe) -> list[str]:
    """The columns that rows will have, as far as the recipe tells."""
    valid = ["valid_loss", *recipe.metrics] if recipe.valid is not None else []
    train = [f"train_{name}" for name in recipe.metrics] if recipe.metrics_on_train else []
    return ["train_loss", *valid, *train]


def monitor_faults(recipe: Recipe, own_loop: bool) -> Iterator[str]:
    """One sentence for each thing that does not fit about what is monitored.

    Args:
        recipe: what is to be trained.
        own_loop: whether a loop of the user's own trains it, which may make any column.
    """
    column, mode = recipe.settings.monitor, recipe.settings.monitor_mode
    if column is not None and mode is None and direction(recipe, column) is None:
        yield (
            f"monitor={column!r} may be better when it falls or when it rises, which its name does not tell: "
            f"pass monitor_mode='min' or 'max'"
        )
    if column is not None and not own_loop and not _may_come(recipe, column):
        yield f"monitor={column!r} is no column of this training: {suggest(column, known_columns(recipe))}"

    for spec in recipe.schedulers.values():
        if spec.watches_loss:
            yield from _plateau(recipe, spec)
    if column is None and recipe.yields and recipe.settings.patience is not None and not own_loop:
        yield (
            f"patience={recipe.settings.patience} needs a column to watch, as the step yields several losses, of which "
            f"none tells which epoch is the best: pass monitor='...'"
        )


def _plateau(recipe: Recipe, spec: Scheduler) -> Iterator[str]:
    """What does not fit about a scheduler that watches what is monitored."""
    watched, wanted = ranking(recipe), spec.keywords.get("mode")
    if watched == NO_RANKING:
        yield f"set_scheduler: {spec.name} needs a column to watch, as the step yields several losses: pass monitor=..."
    elif wanted not in (None, watched.mode):
        moves = "falls" if watched.mode == "min" else "rises"
        yield (
            f"set_scheduler: {spec.name}(mode={wanted!r}) would take each epoch that is better for a worse one, since "
            f"{watched.column or 'the loss'} {moves} where it gets better: leave mode= out, or pass monitor='accuracy' "
            f"for another column"
        )


def _may_come(recipe: Recipe, column: str) -> bool:
    """Whether rows may have a column: one that is known, one of a metric of several, or one that a step may give."""
    known = known_columns(recipe)
    of_several = any(column.startswith(f"{name}_") for name in known if name in recipe.metrics or "train_" in name)
    return column in known or of_several or recipe.step is not None or column == "grad_norm"
