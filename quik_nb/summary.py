"""A session in words: what is set, what is missing, how large it is. Text for a terminal, a table for a notebook."""

from collections.abc import Iterator
from dataclasses import replace
from html import escape
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from quik_nb.errors import QuikError
from quik_nb.history import History
from quik_nb.recipe import Recipe
from quik_nb.sources import Samples, Source, Stream, Tensors
from quik_nb.training.build import optimizer_keywords
from quik_nb.training.loaders import SampleBatches, StreamBatches
from quik_nb.training.world import World


def summary_text(recipe: Recipe, history: History) -> str:
    """The session as aligned lines."""
    lines = list(_lines(recipe, history))
    width = max(len(name) for name, _ in lines)
    return "\n".join(["QuikSession", *(f"  {name:<{width}}  {value}" for name, value in lines)])


def summary_html(recipe: Recipe, history: History) -> str:
    """The session as a table; everything of the user's is escaped."""
    left = 'align="left" style="text-align:left"'  # the one for GitHub, the other for JupyterLab
    rows = "".join(
        f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(value)}</td></tr>"
        for name, value in _lines(recipe, history)
    )
    return f"<table><caption align='top'><b>QuikSession</b></caption><tbody>{rows}</tbody></table>"


def _lines(recipe: Recipe, history: History) -> Iterator[tuple[str, str]]:
    settings, missing = recipe.settings, recipe.missing()
    for split in ("train", "valid", "test"):
        source = getattr(recipe, split)
        if source is not None:
            yield split, describe_source(source)
    if recipe.train is not None:
        batch_size = getattr(recipe.train, "batch_size", None) or settings.batch_size
        count = steps_per_epoch(recipe.train, settings.batch_size)
        yield "steps", f"{'unknown' if count is None else f'{count:,}'} per epoch of {batch_size:,} samples"
    if recipe.model is not None:
        yield "model", _model(recipe.model)
    if recipe.criterion is not None:
        yield "criterion", repr(recipe.criterion)
    if recipe.step is not None:
        yield "step", getattr(recipe.step, "__name__", repr(recipe.step))
    if recipe.optimizer is not None:
        yield "optimizer", repr(replace(recipe.optimizer, keywords=optimizer_keywords(recipe.optimizer, recipe)))
    if recipe.scheduler is not None:
        yield "scheduler", _scheduler(recipe)
    if recipe.metrics:
        yield "metrics", ", ".join(recipe.metrics)
    yield "settings", f"epochs={settings.epochs}, seed={settings.seed}, precision={settings.precision!r}"
    yield "history", repr(history)
    for call in missing.values():
        yield "missing", f".{call}"


def describe_source(source: Source) -> str:
    """A split in words: how many samples of what."""
    match source:
        case Tensors():
            names = source.names or ("",) * len(source.tensors)
            shapes = ", ".join(
                f"{name} {tuple(t.shape[1:])} {str(t.dtype).removeprefix('torch.')}".strip()
                for name, t in zip(names, source.tensors, strict=True)
            )
            return f"{len(source):,} samples of {shapes}"
        case Samples():
            return f"{len(source):,} samples, {type(source.dataset).__name__}"
        case Stream():
            return f"a stream, {type(source.dataset).__name__}"


def steps_per_epoch(source: Source, batch_size: int) -> int | None:
    """Optimizer steps in an epoch; None where the length is not known."""
    match source:
        case Tensors():
            return -(-len(source) // batch_size)
        case Samples():
            return SampleBatches(source, batch_size, World(), shuffle=True).steps
        case Stream():
            return StreamBatches(source, batch_size, World()).steps


def _model(model: nn.Module) -> str:
    if any(map(is_lazy, model.parameters())):
        return f"{type(model).__name__}, with sizes not known yet"
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = f", {total - trained:,} of them frozen" if trained != total else ""
    return f"{type(model).__name__}, {total:,} parameters{frozen}"


def _scheduler(recipe: Recipe) -> str:
    spec: Any = recipe.scheduler
    steps = None if recipe.train is None else steps_per_epoch(recipe.train, recipe.settings.batch_size)
    try:
        filled = spec.totals(recipe.settings.epochs, steps)
    except QuikError:  # the stream's length is not known; train() says what to do
        filled = {}
    note = f", {', '.join(f'{k}={v}' for k, v in filled.items())} filled in" if filled else ""
    return f"{spec!r}, stepped per {'batch' if spec.per_batch else 'epoch'}{note}"
