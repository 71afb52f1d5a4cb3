"""The repr of a session: what is set, what is missing, its sizes. Text for a terminal, a table for a notebook."""

from collections.abc import Iterator
from dataclasses import replace
from html import escape

from torch import nn
from torch.nn.parameter import is_lazy

from quik_nb.errors import QuikError
from quik_nb.history import History
from quik_nb.recipe.patterns import fits
from quik_nb.recipe.recipe import Recipe, Scheduler
from quik_nb.recipe.samples import Source, describe_source
from quik_nb.recipe.settings import SETTINGS, Settings
from quik_nb.training.optimizers import optimizer_keywords


def summary_text(recipe: Recipe, history: History, loaded_epoch: int | None = None) -> str:
    """The session as aligned lines.

    Args:
        recipe: what is set.
        history: of its training.
        loaded_epoch: the epoch whose weights `load_epoch` loaded; None for those of the last row.
    """
    lines = list(_lines(recipe, history, loaded_epoch))
    width = max(len(name) for name, _ in lines)
    return "\n".join(["QuikSession", *(f"  {name:<{width}}  {value}" for name, value in lines)])


def summary_html(recipe: Recipe, history: History, loaded_epoch: int | None = None) -> str:
    """The content of `summary_text` as an HTML table, with all values escaped."""
    left = 'align="left" style="text-align:left"'  # GitHub needs the attribute, JupyterLab the style
    rows = "".join(
        f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(value)}</td></tr>"
        for name, value in _lines(recipe, history, loaded_epoch)
    )
    return f"<table><caption align='top'><b>QuikSession</b></caption><tbody>{rows}</tbody></table>"


def _lines(recipe: Recipe, history: History, loaded_epoch: int | None) -> Iterator[tuple[str, str]]:
    settings = recipe.settings

    for split in ("train", "valid", "test"):
        source = getattr(recipe, split)
        if source is not None:
            yield split, describe_source(source)

    if recipe.train is not None:
        yield "steps", _steps(recipe, recipe.train)

    if recipe.model is not None:
        yield "model", _model(recipe.model, settings.freeze)
    if recipe.criterion is not None:
        yield "criterion", repr(recipe.criterion)
    if recipe.step is not None:
        yield "step", getattr(recipe.step, "__name__", repr(recipe.step))
    for name, optimizer in recipe.optimizers.items():
        shown = repr(replace(optimizer, keywords=optimizer_keywords(optimizer, recipe)))
        yield f"optimizer {name}".strip(), shown
    for name, scheduler in recipe.schedulers.items():
        yield f"scheduler {name}".strip(), _scheduler(recipe, scheduler)
    if recipe.metrics:
        yield "metrics", ", ".join(recipe.metrics)

    yield "settings", _settings(settings)
    loaded = "" if loaded_epoch is None else f"; weights of epoch {loaded_epoch}"
    yield "history", f"{history!r}{loaded}"
    for call in recipe.missing_steps().values():
        yield "missing", f".{call}"


def _steps(recipe: Recipe, train: Source) -> str:
    count, parts = recipe.steps_per_epoch(), recipe.settings.accumulate
    shown = "unknown" if count is None else f"{count:,}"
    if getattr(train, "ready", False):
        return f"{shown} per epoch of {parts:,} batches that come ready" if parts > 1 else f"{shown} per epoch"
    in_parts = f", each in {parts:,} parts" if parts > 1 else ""
    if getattr(train, "batch_sampler", None):
        return f"{shown} per epoch, from the batch sampler{in_parts}"

    size = getattr(train, "batch_size", None)
    samples = recipe.settings.batch_size if size is None else size * parts
    return f"{shown} per epoch of {samples:,} samples{in_parts}"


def _settings(settings: Settings) -> str:
    """The settings of general interest, and all that were changed; those that other lines show are left out."""

    def is_shown(name: str) -> bool:
        setting = SETTINGS[name]
        was_set = getattr(settings, name) != setting.default
        return setting.in_summary == "always" or (was_set and setting.in_summary == "if changed")

    return ", ".join(f"{name}={getattr(settings, name)!r}" for name in SETTINGS if is_shown(name))


def _model(model: nn.Module, freeze: str | None) -> str:
    if any(map(is_lazy, model.parameters())):
        return f"{type(model).__name__}, with lazy parameters of unknown size"

    total = sum(p.numel() for p in model.parameters())
    named = model.named_parameters()
    trained = sum(p.numel() for name, p in named if p.requires_grad and not (freeze and fits(name, freeze)))
    frozen = f", {total - trained:,} of them frozen" if trained != total else ""
    return f"{type(model).__name__}, {total:,} parameters{frozen}"


def _scheduler(recipe: Recipe, spec: Scheduler) -> str:
    steps = recipe.steps_per_epoch()
    try:
        filled = spec.totals(recipe.settings.epochs, steps)
    except QuikError:  # the length of the stream is unknown; train() raises with a fix
        filled = {}

    text = f"{spec!r}, stepped per {'batch' if spec.per_batch else 'epoch'}"
    if filled:
        text += f", {', '.join(f'{k}={v}' for k, v in filled.items())} filled in"
    return text
