"""The chainable steps that put a recipe together, by PyTorch's own names; each replaces just its part."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from quik_nb.errors import RecipeError
from quik_nb.recipe.data import SPLITS, as_sources
from quik_nb.recipe.recipe import Optimizer, Recipe, Scheduler, Spec
from quik_nb.recipe.settings import Settings, setting_names
from quik_nb.storage.files import Files, load_into, read, read_weights
from quik_nb.training import rng

OWN_COLUMNS = ("epoch", "train_loss", "valid_loss", "lr", "fraction", "time", "loss", "grad_norm", "skipped_steps")
"""Names that a metric cannot have."""


class Steps:
    """A recipe that grows step by step, in any order.

    Args:
        settings: the session's settings by name.

    Raises:
        RecipeError: a setting does not exist or has a value that cannot be used.
    """

    def __init__(self, **settings: Any) -> None:
        self._recipe = Recipe(Settings().changed(settings))
        self._maker: Callable[[], nn.Module] | None = None

    @property
    def settings(self) -> Settings:
        """The settings of the session."""
        return self._recipe.settings

    @property
    def _files(self) -> Files:
        return Files(Path(self.settings.base_dir), self.settings.date)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in setting_names():
            raise RecipeError(
                f"session.{name} = {value!r} would change nothing: type session.train({name}={value!r}) for one call, "
                f"or QuikSession({name}={value!r}) for all of them."
            )
        super().__setattr__(name, value)

    def _before_change(self, what: str) -> None:
        """Called before a step changes the recipe; raises where that may not be."""

    def _new_model(self) -> None:
        """Called when another model is set: what was trained is past."""

    def add_data(self, train: Any = None, valid: Any = None, test: Any = None, *, target: str | None = None) -> Self:
        """Set the samples to train on, and those to validate and test on.

        Args:
            train: a tuple of tensors or arrays (the last one is the target), a dict of tensors, a `TensorDataset`, a
                `Dataset` or `IterableDataset`, a `DataLoader`, or a DataFrame with `target`. None takes the saved
                tensors of the `data_date`, `data/train_tensor_20210101.pt` and so on.
            valid: the same, or a share such as 0.2 or a number of samples, cut from `train` by the seed.
            test: likewise.
            target: the name of the target column of a DataFrame.

        Raises:
            RecipeError: the data cannot be used; the message says what to type instead.
        """
        self._before_change("add_data")
        given = {"train": train, "valid": valid, "test": test}
        if train is None:
            given = self._saved_tensors() | {split: data for split, data in given.items() if data is not None}
        sources = as_sources(**given, target=target, seed=self.settings.seed)
        return self._with("add_data", **{split: sources.get(split) for split in SPLITS})

    def _saved_tensors(self) -> dict[str, Any]:
        files = self._files
        if not files.tensors("train").exists():
            raise RecipeError(
                f"add_data() without data looks for {files.tensors('train')}, which is not there: "
                f"pass train=(x, y), or set data_date and base_dir to those of your files."
            )
        there = {split: files.tensors(split) for split in SPLITS}
        return {split: _tensor_tuple(read(path)) if path.exists() else None for split, path in there.items()}

    def add_model(
        self, model: nn.Module | Callable[[], nn.Module], state_dict: Mapping[str, Any] | str | Path | None = None
    ) -> Self:
        """Set the model; a training that was under way with another model ends, and a new one begins.

        The same module again, as in a cell that is run again, changes nothing; `reset()` starts anew with it.

        Args:
            model: a module, which is trained in place, or a function or class that makes one (under the seed).
            state_dict: weights to start from, as a mapping or as the path of a file.

        Raises:
            RecipeError: `model` is neither.
            CheckpointError: `state_dict` does not fit.
        """
        self._before_change("add_model")
        if not isinstance(model, nn.Module) and not callable(model):
            raise RecipeError(f"add_model takes a module such as Net(), and got a {type(model).__name__}.")
        if model is self._recipe.model and state_dict is None:
            return self
        self._maker = None if isinstance(model, nn.Module) else model
        module = model if isinstance(model, nn.Module) else self._make(model)
        if state_dict is not None:
            origin = "state_dict" if isinstance(state_dict, Mapping) else str(state_dict)
            state = state_dict if isinstance(state_dict, Mapping) else read_weights(Path(state_dict))
            load_into(module, state, origin)
        self._new_model()
        return self._with("add_model", model=module)

    def _make(self, maker: Callable[[], nn.Module]) -> nn.Module:
        with rng.preserved():
            rng.seed_all(self.settings.seed)
            module = maker()
        if not isinstance(module, nn.Module):
            raise RecipeError(f"add_model: {maker!r} gave a {type(module).__name__}, not a module.")
        return module

    def set_criterion(self, criterion: Any, **keywords: Any) -> Self:
        """Set the loss.

        Args:
            criterion: a class, such as `nn.CrossEntropyLoss`; a function of (outputs, target) that gives the mean over
                the samples; or an instance. With `reduction="sum"` the history shows the mean all the same.
            keywords: of the class or function.
        """
        return self._with("set_criterion", criterion=_spec("set_criterion", criterion, keywords, instance=nn.Module))

    def set_optimizer(
        self,
        optimizer: type[torch.optim.Optimizer],
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        **keywords: Any,
    ) -> Self:
        """Set the optimizer's class; it gets those of the session's lr, weight_decay, betas, eps that it takes.

        Args:
            optimizer: a class such as `torch.optim.AdamW`.
            groups: keywords for some of the parameters, by their names: `{"head": {"lr": 1e-3}, "*.bias": {...}}`.
            keywords: of its own; they win over the session's settings.
        """
        spec = _spec("set_optimizer", optimizer, keywords)
        if not isinstance(groups or {}, Mapping) or not all(
            isinstance(words, Mapping) for words in (groups or {}).values()
        ):
            raise RecipeError(
                f"set_optimizer: groups={groups!r} are not keywords by the names of parameters: "
                f"type groups={{'head': {{'lr': 1e-3}}}}."
            )
        return self._with("set_optimizer", optimizer=Optimizer(spec.target, spec.keywords, dict(groups or {})))

    def set_scheduler(self, scheduler: Callable[..., Any] | None, per: str | None = None, **keywords: Any) -> Self:
        """Set the learning-rate scheduler's class; totals that it needs and was not given are filled in.

        Args:
            scheduler: a class of `torch.optim.lr_scheduler`, or a function of (optimizer, ...); None for none.
            per: "batch" or "epoch"; None for what the scheduler is meant for.
            keywords: of its own.
        """
        if scheduler is None:
            return self._with("set_scheduler", scheduler=None)
        if per not in (None, "batch", "epoch"):
            raise RecipeError(f"set_scheduler: per={per!r} is not known: type per='batch' or per='epoch'.")
        spec = _spec("set_scheduler", scheduler, keywords)
        return self._with("set_scheduler", scheduler=Scheduler(spec.target, spec.keywords, per))

    def set_metrics(self, *, train: bool = False, **named: Any) -> Self:
        """Set the metrics, by the name of their column in the history.

        Args:
            train: measure them on the training batches as well, in columns named `train_...`.
            named: functions of (outputs, targets), which see the whole split at once, or torchmetrics metrics.
        """
        if not isinstance(train, bool):
            raise RecipeError(
                f"set_metrics: train={train!r} is the switch that measures the metrics on the training batches too: "
                f"type train=True, and give a metric another name."
            )
        for name, metric in named.items():
            if name in OWN_COLUMNS:
                raise RecipeError(f"set_metrics: {name!r} is a column of every history: give the metric another name.")
            if not callable(metric) or isinstance(metric, type):
                raise RecipeError(
                    f"set_metrics: {name}={metric!r} is no function of (outputs, targets) and no metric object: "
                    f"pass {name}=lambda outputs, targets: ..., or an instance such as Accuracy(...)."
                )
        return self._with("set_metrics", metrics=dict(named), metrics_on_train=train)

    def set_step(self, step: Callable[..., Any] | None) -> Self:
        """Replace what is done with a batch.

        Args:
            step: `step(model, criterion, batch)` that returns the loss, or (loss, outputs) where there are metrics;
                None for the default: `*inputs, target = batch` for tuples, `model(**batch).loss` for dicts.
        """
        if step is not None and not callable(step):
            raise RecipeError(f"set_step takes a function step(model, criterion, batch), and got {step!r}.")
        return self._with("set_step", step=step)

    def _with(self, call: str, /, **parts: Any) -> Self:
        self._before_change(call)
        self._recipe = replace(self._recipe, **parts)
        return self


def _spec(step: str, target: Any, keywords: dict[str, Any], instance: type | None = None) -> Any:
    """A class or function and its keywords; an instance as it is, where that is allowed."""
    if instance is not None and isinstance(target, instance):
        if keywords:
            raise RecipeError(
                f"{step}: {target!r} is made already, so {', '.join(keywords)} come too late: pass the class."
            )
        return target
    if not callable(target) or isinstance(target, torch.optim.Optimizer | nn.Module):
        kind = type(target).__name__
        made = isinstance(target, torch.optim.Optimizer | nn.Module)
        got, hint = (f"one that is made already, a {kind}", kind) if made else (f"{kind} {target!r:.60}", "Class")
        raise RecipeError(
            f"{step} takes a class and its keywords, and got {got}: type {step}({hint}, ...), "
            f"so that it can be made anew wherever the training runs."
        )
    return Spec(target, keywords)


def _tensor_tuple(value: Any) -> Any:
    return value.tensors if hasattr(value, "tensors") else value
