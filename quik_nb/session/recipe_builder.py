"""Recipes from recipes: what each chainable step of a session makes of the recipe, as pure functions.

The arguments are those of the session's methods, which explain them. Nothing here is remembered between two calls.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quik_nb.errors import RecipeError
from quik_nb.recipe.data import SPLITS, as_sources
from quik_nb.recipe.recipe import Optimizer, Recipe, Scheduler, Spec
from quik_nb.recipe.settings import OPTIMIZER_DEFAULTS
from quik_nb.storage.files import Files, load_into, read, read_weights
from quik_nb.training import rng

OWN_COLUMNS = ("epoch", "train_loss", "valid_loss", "lr", "fraction", "time", "loss", "grad_norm", "skipped_steps")
"""Names that a metric cannot have."""

ModelFactory = Callable[[], nn.Module]


def files_of(recipe: Recipe) -> Files:
    """The names by date of the files that its settings speak of."""
    return Files(Path(recipe.settings.base_dir), recipe.settings.date)


# ---------------------------------------------------------------------- data


def with_data(
    recipe: Recipe,
    splits: Mapping[str, Any],
    target: str | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> Recipe:
    """The recipe with other samples; those of the files by date where there are none for training."""
    given = dict(splits)
    if given["train"] is None:
        given = _saved_tensors(files_of(recipe)) | {split: data for split, data in given.items() if data is not None}
    sources = as_sources(**given, target=target, seed=recipe.settings.seed, collate_fn=collate_fn)
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
    """The module that `torch.compile` wrapped, whose names and class are the user's own; anything else as it is."""
    return getattr(model, "_orig_mod", model) if isinstance(model, nn.Module) else model


def with_compile(recipe: Recipe) -> Recipe:
    """The recipe of a model that was compiled by hand."""
    return replace(recipe, settings=replace(recipe.settings, compile=True))


def build_model(
    model: nn.Module | ModelFactory, seed: int, state_dict: Mapping[str, Any] | str | Path | None = None
) -> nn.Module:
    """The module itself, or what a function makes under the seed; with weights loaded into it where some are given."""
    if not isinstance(model, nn.Module) and not callable(model):
        raise RecipeError(f"add_model takes a module such as Net(), and got a {type(model).__name__}.")
    module = model if isinstance(model, nn.Module) else call_factory(model, seed)

    if isinstance(state_dict, Mapping):
        load_into(module, state_dict, "state_dict")
    elif state_dict is not None:
        load_into(module, read_weights(Path(state_dict)), str(state_dict))
    return module


def call_factory(factory: ModelFactory, seed: int) -> nn.Module:
    """The model that a function makes under the seed; the user's random numbers are not disturbed."""
    with rng.preserved():
        rng.seed_all(seed)
        module = factory()
    if not isinstance(module, nn.Module):
        raise RecipeError(f"add_model: {factory!r} gave a {type(module).__name__}, not a module.")
    return module


# ---------------------------------------------------------------------- the other parts


def with_criterion(recipe: Recipe, criterion: Any, keywords: dict[str, Any]) -> Recipe:
    """The recipe with another loss."""
    return replace(recipe, criterion=_spec("set_criterion", criterion, keywords, instance=nn.Module))


def with_optimizer(
    recipe: Recipe, optimizer: Any, groups: Any, params: str | None, name: str | None, keywords: dict[str, Any]
) -> Recipe:
    """The recipe with another optimizer: beside those of other names, or in place of all where it has no name."""
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
            f"set_optimizer: groups={groups!r} are not keywords by the names of parameters: "
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


def with_metrics(recipe: Recipe, on_train: Any, named: dict[str, Any]) -> Recipe:
    """The recipe with other metrics."""
    if not isinstance(on_train, bool):
        raise RecipeError(
            f"set_metrics: train={on_train!r} is the switch that measures the metrics on the training batches too: "
            f"pass train=True, and give a metric another name."
        )
    for name, metric in named.items():
        if name in OWN_COLUMNS:
            raise RecipeError(f"set_metrics: {name!r} is a column of every history: give the metric another name.")
        if not callable(metric) or isinstance(metric, type):
            raise RecipeError(
                f"set_metrics: {name}={metric!r} is no function of (outputs, targets) and no metric object: "
                f"pass {name}=lambda outputs, targets: ..., or an instance such as Accuracy(...)."
            )
    return replace(recipe, metrics=dict(named), metrics_on_train=on_train)


def with_step(recipe: Recipe, step: Any, reduction: str | None = None) -> Recipe:
    """The recipe with another function of a batch, or the default one."""
    if step is not None and not callable(step):
        raise RecipeError(f"set_step takes a function step(model, criterion, batch), and got {step!r}.")
    if reduction not in (None, "mean", "sum"):
        raise RecipeError(
            f"set_step: reduction={reduction!r} is not known: use 'sum' for a step that adds up over the samples of a "
            f"batch, 'mean' for one that divides by them."
        )
    return replace(recipe, step=step, step_reduction=reduction)


def _spec(step: str, target: Any, keywords: dict[str, Any], instance: type | None = None) -> Any:
    """A class or function and its keywords; an instance as it is, where that is allowed."""
    if instance is not None and isinstance(target, instance):
        if keywords:
            raise RecipeError(
                f"{step}: {target!r} is made already, so {', '.join(keywords)} come too late: pass the class."
            )
        return target

    kind = type(target).__name__
    if isinstance(target, torch.optim.Optimizer | nn.Module):
        raise _no_class(step, f"one that is made already, a {kind}", kind)
    if not callable(target):
        raise _no_class(step, f"{kind} {target!r:.60}", "Class")
    return Spec(target, keywords)


def _no_class(step: str, got: str, hint: str) -> RecipeError:
    return RecipeError(
        f"{step} takes a class and its keywords, and got {got}: use {step}({hint}, ...), "
        f"so that it can be made again wherever the training runs."
    )


# ---------------------------------------------------------------------- one call


def for_call(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    """The recipe of one call of train(), in which what was given for it wins over all else.

    Args:
        recipe: of the session.
        given: settings by name; `epochs` and `processes` may be None for the session's.
    """
    changes = {name: value for name, value in given.items() if value is not None or name not in ("epochs", "processes")}
    changed = replace(recipe, settings=recipe.settings.changed(changes))
    _check_against_parts(changed, changes)

    # whose own keywords else win over the settings
    overruled = {name for name in OPTIMIZER_DEFAULTS if changes.get(name) is not None}
    optimizers = {key: _without_keywords(spec, overruled) for key, spec in recipe.optimizers.items()}
    return replace(changed, optimizers=optimizers)


def _without_keywords(spec: Optimizer, names: set[str]) -> Optimizer:
    return replace(spec, keywords={name: value for name, value in spec.keywords.items() if name not in names})


def _check_against_parts(recipe: Recipe, changes: Mapping[str, Any]) -> None:
    """Refuse settings that a part of the recipe has decided already."""
    size = getattr(recipe.train, "batch_size", None)
    if "batch_size" in changes and size is not None:
        raise RecipeError(
            f"batch_size={changes['batch_size']!r} was asked for, and the DataLoader of train makes batches of "
            f"{size}: pass the dataset itself to add_data, or a loader with that size."
        )
    if "num_workers" in changes and getattr(recipe.train, "own_loader", False):
        raise RecipeError(
            f"num_workers={changes['num_workers']!r} was asked for, and the DataLoader of train keeps its own number: "
            f"pass the dataset itself to add_data, or DataLoader(..., num_workers={changes['num_workers']!r})."
        )
    if changes.get("lr") is not None and recipe.scheduler is not None and recipe.scheduler.takes("max_lr"):
        name = recipe.scheduler.name
        raise RecipeError(
            f"lr={changes['lr']!r} was asked for, and {name} sets the rate itself: use "
            f"set_scheduler({name}, max_lr={changes['lr']!r}), or set_scheduler(None) for none."
        )
