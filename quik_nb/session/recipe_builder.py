"""The chainable session methods as pure functions: each takes a recipe and returns a changed one.

The arguments are documented at the methods of `QuikSession`. No state is kept between calls.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quik_nb.errors import RecipeError, suggest
from quik_nb.recipe.monitor import METRICS
from quik_nb.recipe.recipe import Optimizer, Recipe, Scheduler, Spec
from quik_nb.recipe.samples import SPLITS
from quik_nb.recipe.settings import OPTIMIZER_DEFAULTS
from quik_nb.recipe.splits import DataOptions, as_sources
from quik_nb.storage.files import Files, load_into, read, read_weights
from quik_nb.training import rng

RESERVED_COLUMNS = ("epoch", "train_loss", "valid_loss", "lr", "fraction", "time", "loss", "grad_norm", "skipped_steps")
"""History columns that a metric cannot be named after."""

ModelFactory = Callable[[], nn.Module]


def files_of(recipe: Recipe) -> Files:
    """The dated file names that the recipe's settings define."""
    return Files(Path(recipe.settings.base_dir), recipe.settings.date)


# ---------------------------------------------------------------------- data


def with_data(recipe: Recipe, splits: Mapping[str, Any], options: DataOptions) -> Recipe:
    """The recipe with new data; without training data, the saved tensors of `data_date` are loaded."""
    given = dict(splits)
    if given["train"] is None:
        given = _saved_tensors(files_of(recipe)) | {split: data for split, data in given.items() if data is not None}
    sources = as_sources(given, options, recipe.settings.seed)
    return replace(recipe, **{split: sources.get(split) for split in SPLITS})  # type: ignore[arg-type]


def _saved_tensors(files: Files) -> dict[str, Any]:
    if not files.tensors("train").exists():
        raise RecipeError(
            f"add_data() without data looks for {files.tensors('train')}, which is not there: "
            f"pass train=(x, y), or set data_date and base_dir to those of your files."
        )
    paths = {split: files.tensors(split) for split in SPLITS}
    return {split: _tensor_tuple(read(path)) if path.exists() else None for split, path in paths.items()}


def _tensor_tuple(value: Any) -> Any:
    return value.tensors if hasattr(value, "tensors") else value


# ---------------------------------------------------------------------- model


def uncompiled(model: Any) -> Any:
    """The original module behind `torch.compile`, with its original parameter names; other values unchanged."""
    return getattr(model, "_orig_mod", model) if isinstance(model, nn.Module) else model


def with_model(recipe: Recipe, model: nn.Module, was_compiled: bool) -> Recipe:
    """The recipe with another model.

    Args:
        recipe: to change.
        model: the module to train.
        was_compiled: whether it came through `torch.compile`, so that it is to be compiled again.
    """
    settings = replace(recipe.settings, compile=True) if was_compiled else recipe.settings
    return replace(recipe, model=model, settings=settings)


def build_model(
    model: nn.Module | ModelFactory, seed: int, state_dict: Mapping[str, Any] | str | Path | None = None
) -> nn.Module:
    """The module, or the one that a factory returns under the seed, with `state_dict` loaded into it if given."""
    if not isinstance(model, nn.Module) and not callable(model):
        raise RecipeError(
            f"add_model: got a {type(model).__name__}, which cannot be trained: pass a module such as Net(), "
            f"or a function that returns one."
        )
    module = model if isinstance(model, nn.Module) else call_factory(model, seed)

    if isinstance(state_dict, Mapping):
        load_into(module, state_dict, "state_dict")
    elif state_dict is not None:
        load_into(module, read_weights(Path(state_dict)), str(state_dict))
    return module


def call_factory(factory: ModelFactory, seed: int) -> nn.Module:
    """The model that a factory returns under the seed; the user's random number generators are not affected."""
    with rng.preserved():
        rng.seed_all(seed)
        module = factory()
    if not isinstance(module, nn.Module):
        raise RecipeError(
            f"add_model: {factory!r} returned a {type(module).__name__}, which cannot be trained: "
            f"return an nn.Module from it."
        )
    return module


# ---------------------------------------------------------------------- criterion, optimizer, scheduler, metrics, step


def with_criterion(recipe: Recipe, criterion: Any, keywords: dict[str, Any]) -> Recipe:
    """The recipe with another criterion."""
    return replace(recipe, criterion=_spec("set_criterion", criterion, keywords, instance=nn.Module))


def with_optimizer(
    recipe: Recipe, optimizer: Any, groups: Any, params: str | None, name: str | None, keywords: dict[str, Any]
) -> Recipe:
    """The recipe with another optimizer: added under a name, or without a name in place of all others."""
    spec = _spec("set_optimizer", optimizer, keywords)
    if not isinstance(params, str | None):
        raise RecipeError(
            f"set_optimizer: params={params!r:.60} is no pattern of names: the session gives an optimizer the model's "
            f"parameters wherever it trains, so pass params='encoder.*, *.bias', or leave it out for all."
        )
    if name is not None and not (isinstance(name, str) and name.isidentifier()):
        raise RecipeError(
            f"set_optimizer: name={name!r} cannot be used in the name of a column: pass a word, name='generator'."
        )
    groups = {} if groups is None else groups
    if not isinstance(groups, Mapping) or not all(isinstance(words, Mapping) for words in groups.values()):
        raise RecipeError(
            f"set_optimizer: groups={groups!r} does not map parameter names to optimizer keywords: "
            f"pass groups={{'head': {{'lr': 1e-3}}}}."
        )
    made = Optimizer(spec.target, spec.keywords, dict(groups), params)
    others = {} if name is None else recipe.optimizers
    return replace(recipe, optimizers={**others, name or "": made})


def with_scheduler(
    recipe: Recipe, scheduler: Any, per: str | None, optimizer: str | None, keywords: dict[str, Any]
) -> Recipe:
    """The recipe with another learning-rate scheduler, or none, of one optimizer or of all."""
    others = {} if optimizer is None else {k: spec for k, spec in recipe.schedulers.items() if k != optimizer}
    if scheduler is None:
        return replace(recipe, schedulers=others)
    if per not in (None, "batch", "epoch"):
        raise RecipeError(f"set_scheduler: per={per!r} is not known: pass per='batch' or per='epoch'.")
    spec = _spec("set_scheduler", scheduler, keywords)
    return replace(recipe, schedulers={**others, optimizer or "": Scheduler(spec.target, spec.keywords, per)})


def with_metrics(recipe: Recipe, bare: tuple[Any, ...], on_train: Any, check: Any, named: dict[str, Any]) -> Recipe:
    """The recipe with other metrics."""
    for switch, value in (("train", on_train), ("check", check)):
        if not isinstance(value, bool):
            raise RecipeError(
                f"set_metrics: {switch}={value!r} is not True or False, and {switch} is a switch of set_metrics: pass "
                f"{switch}=True or {switch}=False, and give a metric another name."
            )

    metrics: dict[str, Any] = {}
    for name, metric in [*((_name_of_metric(metric), metric) for metric in bare), *named.items()]:
        if name in RESERVED_COLUMNS:
            raise RecipeError(f"set_metrics: {name!r} is a column of every history: give the metric another name.")
        if name in metrics:
            raise RecipeError(f"set_metrics: {name!r} was passed twice: give one of the metrics another name.")
        _check_metric(name, metric)
        metrics[name] = metric
    return replace(recipe, metrics=metrics, metrics_on_train=on_train, check_metrics=check)


def _name_of_metric(metric: Any) -> str:
    """The column of a metric passed without a name: the name of its function or class."""
    if isinstance(metric, str):
        return metric
    name = getattr(metric, "__name__", None) or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(metric).__name__).lower()
    if name == "<lambda>" or isinstance(metric, Mapping | nn.ModuleDict):
        raise RecipeError(f"set_metrics: {metric!r:.60} has no name for its column: pass name=..., such as f1={name}.")
    return str(name)


def _check_metric(name: str, metric: Any) -> None:
    if isinstance(metric, str):
        if metric not in METRICS:
            raise RecipeError(
                f"set_metrics: there is no metric {metric!r} by that name: {suggest(metric, METRICS)} "
                f"Known are {', '.join(METRICS)}; any other is a function of (outputs, targets)."
            )
    elif not callable(metric) or isinstance(metric, type):
        raise RecipeError(
            f"set_metrics: {name}={metric!r} is neither a function of (outputs, targets) nor a metric object: "
            f"pass {name}=lambda outputs, targets: ..., or an instance such as Accuracy(...)."
        )


def with_step(recipe: Recipe, step: Any, reduction: str | None = None) -> Recipe:
    """The recipe with a custom training step, or None for the default one."""
    if step is not None and not callable(step):
        raise RecipeError(
            f"set_step: {step!r} is not callable, so it cannot be called with a batch: "
            f"pass a function step(model, criterion, batch)."
        )
    if reduction not in (None, "mean", "sum"):
        raise RecipeError(
            f"set_step: reduction={reduction!r} is not known: use 'sum' for a loss summed over the samples of a "
            f"batch, 'mean' for a loss averaged over them."
        )
    return replace(recipe, step=step, step_reduction=reduction)


def _spec(step: str, target: Any, keywords: dict[str, Any], instance: type | None = None) -> Any:
    """A class or function with its keywords; an instance of `instance` is returned unchanged."""
    if instance is not None and isinstance(target, instance):
        if keywords:
            raise RecipeError(
                f"{step}: {target!r} is an instance already, so {', '.join(keywords)} would have no effect: "
                f"pass the class and its keywords."
            )
        return target

    kind = type(target).__name__
    if isinstance(target, torch.optim.Optimizer | nn.Module):
        raise _no_class(step, f"an instance, a {kind}", kind)
    if not callable(target):
        raise _no_class(step, f"{kind} {target!r:.60}", "Class")
    return Spec(target, keywords)


def _no_class(step: str, got: str, hint: str) -> RecipeError:
    return RecipeError(
        f"{step} takes a class and its keywords, and got {got}; workers must be able to create their own: "
        f"use {step}({hint}, ...)."
    )


# ---------------------------------------------------------------------- one call


def for_call(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    """The recipe of one call of train(), whose keywords override all other settings.

    Args:
        recipe: of the session.
        given: settings by name; None for `epochs` or `processes` means the session's value.

    Raises:
        RecipeError: a setting does not exist, has an invalid value, or is already fixed by the DataLoader or scheduler.
    """
    changes = {name: value for name, value in given.items() if value is not None or name not in ("epochs", "processes")}
    changed = replace(recipe, settings=recipe.settings.changed(changes))
    _check_against_parts(changed, changes)

    # keywords of set_optimizer() otherwise take precedence over the settings
    overridden = {name for name in OPTIMIZER_DEFAULTS if changes.get(name) is not None}
    optimizers = {key: _without_keywords(spec, overridden) for key, spec in recipe.optimizers.items()}
    return replace(changed, optimizers=optimizers)


def _without_keywords(spec: Optimizer, names: set[str]) -> Optimizer:
    return replace(spec, keywords={name: value for name, value in spec.keywords.items() if name not in names})


def _check_against_parts(recipe: Recipe, changes: Mapping[str, Any]) -> None:
    """Reject settings that the DataLoader or the scheduler already determines."""
    size = getattr(recipe.train, "batch_size", None)
    if "batch_size" in changes and size is not None:
        raise RecipeError(
            f"batch_size={changes['batch_size']!r} has no effect, since the DataLoader of train makes batches of "
            f"{size}: pass the dataset itself to add_data, or a loader with that size."
        )
    if "num_workers" in changes and getattr(recipe.train, "own_loader", False):
        raise RecipeError(
            f"num_workers={changes['num_workers']!r} was asked for, and the DataLoader of train has its own setting: "
            f"pass the dataset itself to add_data, or DataLoader(..., num_workers={changes['num_workers']!r})."
        )
    own = [name for name, spec in recipe.optimizers.items() if "lr" in spec.keywords]
    if changes.get("lr") is not None and own and len(recipe.optimizers) > 1:
        raise RecipeError(
            f"lr={changes['lr']!r} was asked for, and {', '.join(map(repr, own))} of {len(recipe.optimizers)} "
            f"optimizers has a rate of its own, so it is unclear which of them to change: use "
            f"set_optimizer(..., name={own[0]!r}, lr=...)."
        )
    if changes.get("lr") is not None and recipe.scheduler is not None and recipe.scheduler.takes("max_lr"):
        name = recipe.scheduler.name
        raise RecipeError(
            f"lr={changes['lr']!r} has no effect, since {name} sets the learning rate itself: use "
            f"set_scheduler({name}, max_lr={changes['lr']!r}), or set_scheduler(None) for no scheduler."
        )
