"""The chainable face: the steps of a PyTorch training by their own names, and what may be asked of it afterwards.

It holds a `Recipe` that the steps change part by part, and the state of the training so far. It trains nothing itself:
`train()` checks the recipe, decides where, launches, and takes the state home.
"""

import inspect
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quik_nb.arguments import settings_from
from quik_nb.errors import CheckpointError, RecipeError, suggest
from quik_nb.history import History
from quik_nb.launch.base import Launch
from quik_nb.launch.server import warm_up
from quik_nb.launch.start import launch
from quik_nb.placement import Machine, Placement, Request, place
from quik_nb.recipe import Recipe, Scheduler, Spec
from quik_nb.run import Run
from quik_nb.settings import Settings
from quik_nb.sources import Source, as_source, as_sources
from quik_nb.summary import summary_html, summary_text
from quik_nb.training import rng
from quik_nb.training.checkpoint import Files, copied, load_into, read, read_weights, stamp
from quik_nb.training.continuing import carried
from quik_nb.training.evaluate import evaluate, predict
from quik_nb.training.saver import Saver
from quik_nb.training.trainer import Job, Progress
from quik_nb.views.choose import choose

SPLITS = ("train", "valid", "test")


class QuikSession:
    """A training, put together step by step; the steps can come in any order, and a step done again replaces its part.

    Args:
        settings: `epochs`, `batch_size`, `lr`, `seed`, ...: `quik_nb.Settings` lists all with their units.

    Raises:
        RecipeError: a setting does not exist or has a value that cannot be used.

    >>> x, y = torch.randn(100, 3), torch.randn(100, 1)
    >>> session = (
    ...     QuikSession(epochs=2, view=False, save=False)
    ...     .add_data(train=(x, y), valid=0.2)
    ...     .add_model(nn.Linear(3, 1))
    ...     .set_criterion(nn.MSELoss)
    ...     .set_optimizer(torch.optim.SGD)
    ... )
    >>> session.train().state
    'finished'
    >>> list(session.history.columns)
    ['epoch', 'train_loss', 'valid_loss', 'lr', 'time']
    """

    def __init__(self, **settings: Any) -> None:
        self._recipe = Recipe(Settings().changed(settings))
        self._maker: Callable[[], nn.Module] | None = None
        self._original: dict[str, Any] | None = None
        self._listeners: list[tuple[str, Callable[[Any], None]]] = []
        self._run: Run | None = None
        self._forget()
        if Machine.detect().gpus > 1 or self.settings.processes not in ("auto", 1):
            warm_up()  # workers are likely, and a server that is ready saves their first start two seconds

    @classmethod
    def from_args(cls, namespace: Namespace) -> "QuikSession":
        """A session with the settings that were given on a command line, as `arguments.add_arguments` reads them.

        Args:
            namespace: of a parser's `parse_args()`; what is not a setting is left to its owner.
        """
        return cls(**settings_from(namespace))

    def _forget(self) -> None:
        """The state of a session that has not trained."""
        self._history, self._progress = History(), Progress()
        self._trained: Recipe | None = None
        self._folder: Path | None = None
        self._stamps: dict[int, tuple[int, int]] = {}

    # ------------------------------------------------------------------ the steps

    def add_data(
        self, train: Any = None, valid: Any = None, test: Any = None, *, target: str | None = None
    ) -> "QuikSession":
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
        self._refuse_while_running("add_data")
        if train is None:
            sources = self._saved_tensors()
        else:
            sources = as_sources(train, valid, test, target, self._recipe.settings.seed)
        return self._with(**{split: sources.get(split) for split in SPLITS})

    def _saved_tensors(self) -> dict[str, Source]:
        files = self._files
        there = {split: files.tensors(split) for split in SPLITS if files.tensors(split).exists()}
        if "train" not in there:
            raise RecipeError(
                f"add_data() without data looks for {files.tensors('train')}, which is not there: "
                f"pass train=(x, y), or set data_date and base_dir to those of your files."
            )
        return {split: as_source(_tensor_tuple(read(path)), split) for split, path in there.items()}

    def add_model(
        self, model: nn.Module | Callable[[], nn.Module], state_dict: Mapping[str, Any] | str | Path | None = None
    ) -> "QuikSession":
        """Set the model; a training that was under way with another model ends, and a new one begins.

        Args:
            model: a module, which is trained in place, or a function or class that makes one (under the seed).
            state_dict: weights to start from, as a mapping or as the path of a file.

        Raises:
            RecipeError: `model` is neither.
            CheckpointError: `state_dict` does not fit.
        """
        self._refuse_while_running("add_model")
        if not isinstance(model, nn.Module) and not callable(model):
            raise RecipeError(f"add_model takes a module such as Net(), and got a {type(model).__name__}.")
        self._maker = None if isinstance(model, nn.Module) else model
        module = model if isinstance(model, nn.Module) else self._make(model)
        if state_dict is not None:
            origin = "state_dict" if isinstance(state_dict, Mapping) else str(state_dict)
            state = state_dict if isinstance(state_dict, Mapping) else read_weights(Path(state_dict))
            load_into(module, state, origin)
        self._forget()
        self._original = None
        return self._with(model=module)

    def _make(self, maker: Callable[[], nn.Module]) -> nn.Module:
        with rng.preserved():
            rng.seed_all(self._recipe.settings.seed)
            module = maker()
        if not isinstance(module, nn.Module):
            raise RecipeError(f"add_model: {maker!r} gave a {type(module).__name__}, not a module.")
        return module

    def set_criterion(self, criterion: Any, **keywords: Any) -> "QuikSession":
        """Set the loss: a class with its keywords, a function of (outputs, target), or an instance."""
        return self._with(criterion=_spec("set_criterion", criterion, keywords, instance=nn.Module))

    def set_optimizer(self, optimizer: type[torch.optim.Optimizer], **keywords: Any) -> "QuikSession":
        """Set the optimizer's class; it gets those of the session's lr, weight_decay, betas, eps that it takes.

        Args:
            optimizer: a class such as `torch.optim.AdamW`.
            keywords: of its own; they win over the session's settings.
        """
        return self._with(optimizer=_spec("set_optimizer", optimizer, keywords))

    def set_scheduler(
        self, scheduler: Callable[..., Any] | None, per: str | None = None, **keywords: Any
    ) -> "QuikSession":
        """Set the learning-rate scheduler's class; totals that it needs and was not given are filled in.

        Args:
            scheduler: a class of `torch.optim.lr_scheduler`, or a function of (optimizer, ...); None for none.
            per: "batch" or "epoch"; None for what the scheduler is meant for.
            keywords: of its own.
        """
        if scheduler is None:
            return self._with(scheduler=None)
        if per not in (None, "batch", "epoch"):
            raise RecipeError(f"set_scheduler: per={per!r} is not known: type per='batch' or per='epoch'.")
        spec = _spec("set_scheduler", scheduler, keywords)
        return self._with(scheduler=Scheduler(spec.target, spec.keywords, per))

    def set_metrics(self, *, train: bool = False, **named: Any) -> "QuikSession":
        """Set the metrics, by the name of their column in the history.

        Args:
            train: measure them on the training batches as well, in columns named `train_...`.
            named: functions of (outputs, targets), which see the whole split at once, or torchmetrics metrics.
        """
        for name, metric in named.items():
            if not callable(metric) or isinstance(metric, type):
                raise RecipeError(
                    f"set_metrics: {name}={metric!r} is no function of (outputs, targets) and no metric object: "
                    f"pass {name}=lambda outputs, targets: ..., or an instance such as Accuracy(...)."
                )
        return self._with(metrics=dict(named), metrics_on_train=train)

    def set_step(self, step: Callable[..., Any] | None) -> "QuikSession":
        """Replace what is done with a batch.

        Args:
            step: `step(model, criterion, batch)` that returns the loss, or (loss, outputs) where there are metrics;
                None for the default: `*inputs, target = batch` for tuples, `model(**batch).loss` for dicts.
        """
        if step is not None and not callable(step):
            raise RecipeError(f"set_step takes a function step(model, criterion, batch), and got {step!r}.")
        return self._with(step=step)

    def _with(self, **parts: Any) -> "QuikSession":
        self._refuse_while_running("this step")
        self._recipe = replace(self._recipe, **parts)
        return self

    # ------------------------------------------------------------------ training

    def train(
        self,
        epochs: int | None = None,
        processes: int | str | None = None,
        **changes: Any,
    ) -> Run:
        """Train; a second call goes on where the last one ended.

        Args:
            epochs: passes over the training split; None for the session's.
            processes: ranks of DistributedDataParallel; None for the session's.
            changes: settings for this call only, such as `lr=3e-4`.

        Raises:
            RecipeError: something is missing or does not fit; all of it is in the message.
            PlacementError: the machine does not have what was asked for.
            DivergenceError: the loss became NaN or infinite.
            KeyboardInterrupt: the kernel was interrupted; rows, weights and state are kept.
        """
        __tracebackhide__ = True
        self._refuse_while_running("train")
        given = {"epochs": epochs, "processes": processes}
        settings = self._recipe.settings.changed({**{k: v for k, v in given.items() if v is not None}, **changes})
        recipe = replace(self._recipe, settings=settings)
        recipe.check()
        placement = place(Request(settings.processes, settings.device, settings.start_method), Machine.detect())
        run = self._start(recipe, placement)
        run.foreground()
        return run

    def _start(self, recipe: Recipe, placement: Placement) -> Run:
        assert recipe.model is not None  # Recipe.check has seen to it
        if self._original is None:
            self._original = copied(recipe.model.state_dict())
        progress = carried(self._progress, self._trained, recipe)
        # the schedule spans the session's own epochs, also where this call trains fewer of them
        plan = replace(recipe, settings=replace(recipe.settings, epochs=self._recipe.settings.epochs))
        job = Job(plan, progress.epoch + recipe.settings.epochs, str(placement), progress)
        started = launch(job, placement, self._saver(recipe.settings))
        self._trained = recipe
        self._run = Run(started, self._history, lambda run: self._settle(started), self._listen)
        view, _ = choose(recipe.settings.view, self._history, title=recipe.settings.name)
        self._run.attach(view)
        return self._run

    def _saver(self, settings: Settings) -> Saver | None:
        if not settings.save:
            return None
        if self._folder is None:
            parts = ["run", self._files.date, time.strftime("%H%M%S"), settings.name]
            self._folder = _unused(self._files.folder / "_".join(filter(None, parts)))
        return Saver(self._folder, self._files, keep=settings.keep)

    def _settle(self, started: Launch) -> None:
        """Take the state of the last row home, however the run ended."""
        outcome = started.outcome()
        if outcome is None:
            return
        assert self._recipe.model is not None
        self._recipe.model.load_state_dict(outcome.weights)
        self._progress = outcome.progress
        if outcome.row is not None and (not self._history.rows or self._history.rows[-1].epoch < outcome.row.epoch):
            self._history.add(outcome.row)
        for row in self._history:
            path = self._files.weights(row.epoch)
            if self._folder is not None and row.epoch not in self._stamps and path.exists():
                self._stamps[row.epoch] = stamp(path)

    def _listen(self, event: Any) -> None:
        names = {"EpochEnd": "epoch_end", "StepEnd": "step_end", "RunStart": "run_start", "RunEnd": "run_end"}
        for name, function in self._listeners:
            if names.get(type(event).__name__) == name:
                function(event)

    def _refuse_while_running(self, what: str) -> None:
        if self._run is not None and self._run.state in ("running", "paused"):
            raise RecipeError(
                f"{what}: a run of this session is {self._run.state}, and this would mix two trainings: "
                f"wait for it with session.run.wait(), or end it with session.run.stop()."
            )

    def reset(self) -> "QuikSession":
        """Start anew: the weights of before the first epoch, an empty history, a new run folder. Files stay."""
        self._refuse_while_running("reset")
        if self._maker is not None:
            self._recipe = replace(self._recipe, model=self._make(self._maker))
        elif self._original is not None and self._recipe.model is not None:
            self._recipe.model.load_state_dict(self._original)
        self._forget()
        self._original = None
        return self

    # ------------------------------------------------------------------ what came of it

    @property
    def model(self) -> nn.Module:
        """The model with the weights of the history's last row: a plain module."""
        if self._recipe.model is None:
            raise RecipeError("There is no model yet: .add_model(Net()).")
        return self._recipe.model

    @property
    def history(self) -> Any:
        """A pandas DataFrame: epoch (from 0), train_loss, valid_loss, the metrics, lr, time (seconds)."""
        return self._history.frame()

    @property
    def run(self) -> Run | None:
        """The latest run, or None."""
        return self._run

    @property
    def folder(self) -> Path | None:
        """The run folder with history and checkpoint; None where nothing was saved yet."""
        return self._folder

    @property
    def settings(self) -> Settings:
        """The settings of the session."""
        return self._recipe.settings

    def plot(self, log: bool = False) -> Any:
        """The loss curve as a matplotlib Figure.

        Args:
            log: draw the loss on a logarithmic scale.
        """
        from quik_nb.views.figure import figure

        return figure(self._history, log=log)

    def predict(self, data: Any) -> Any:
        """The model's outputs for all samples, in order, on the CPU.

        Args:
            data: anything that `add_data` takes, with or without a target, or the name of a split: "test".
        """
        self._refuse_while_running("predict")
        return predict(self._checked("predict", "model"), self._source(data), self._device)

    def evaluate(self, split: Any = "valid") -> dict[str, float]:
        """The loss and the metrics of a split: `{"loss": ..., "accuracy": ...}`.

        Args:
            split: "train", "valid" or "test", or data of its own.
        """
        self._refuse_while_running("evaluate")
        return evaluate(self._checked("evaluate", "model", "criterion"), self._source(split), self._device)

    def _checked(self, what: str, *parts: str) -> Recipe:
        calls = [call for part, call in self._recipe.missing().items() if part in parts]
        if calls:
            raise RecipeError(f"{what} needs more; still to type: " + ", ".join(f".{call}" for call in calls))
        return self._recipe

    @property
    def _device(self) -> torch.device:
        settings = self._recipe.settings
        return torch.device(place(Request(1, settings.device), Machine.detect()).devices[0])

    def _source(self, data: Any) -> Source:
        """A split by its name, or data of its own."""
        if isinstance(data, str):
            source = getattr(self._recipe, data, None) if data in SPLITS else None
            if source is None:
                have = [split for split in SPLITS if getattr(self._recipe, split) is not None]
                raise RecipeError(f"There is no split {data!r}: {suggest(data, have)}; add_data({data}=...) sets one.")
            return source  # type: ignore[no-any-return]
        return as_source(data, "data", like=self._recipe.train, labelled=False)

    # ------------------------------------------------------------------ files

    @property
    def _files(self) -> Files:
        return Files(Path(self._recipe.settings.base_dir), self._recipe.settings.date)

    def load_epoch(self, epoch: int) -> "QuikSession":
        """Load the weights that were saved after an epoch of this session's training.

        Raises:
            CheckpointError: they were not saved, were overwritten by another training, or do not fit the model, which
                is then left as it was.
        """
        self._refuse_while_running("load_epoch")
        path = self._files.weights(epoch)
        if epoch not in self._stamps:
            saved = ", ".join(map(str, sorted(self._stamps))) or "none"
            raise CheckpointError(
                f"The weights of epoch {epoch!r} were not saved by this session (saved are: {saved}): "
                f"train with save=True, or load a file with add_model(model, state_dict={str(path)!r})."
            )
        if path.exists() and stamp(path) != self._stamps[epoch]:
            raise CheckpointError(
                f"{path} has been overwritten since this session saved it, so it holds another training's weights: "
                f"give each session a base_dir of its own, or load it by add_model(model, state_dict={str(path)!r})."
            )
        load_into(self.model, read_weights(path), path.name)
        return self

    def load_best(self) -> "QuikSession":
        """Load the weights of the epoch with the lowest valid_loss (train_loss where there is no validation split).

        Raises:
            CheckpointError: as `load_epoch`, or nothing was trained yet.
        """
        best = self._history.best
        if best is None:
            raise CheckpointError("There is no best epoch yet, as nothing was trained: session.train() first.")
        return self.load_epoch(best.epoch)

    # ------------------------------------------------------------------ how it shows

    def __repr__(self) -> str:
        return summary_text(self._recipe, self._history)

    def _repr_html_(self) -> str:
        return summary_html(self._recipe, self._history)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_") or name.startswith("__")]


def _spec(step: str, target: Any, keywords: dict[str, Any], instance: type | None = None) -> Any:
    """A class or function and its keywords; an instance as it is, where that is allowed."""
    if instance is not None and isinstance(target, instance):
        if keywords:
            raise RecipeError(
                f"{step}: {target!r} is made already, so {', '.join(keywords)} come too late: pass the class."
            )
        return target
    if not callable(target) or isinstance(target, torch.optim.Optimizer | nn.Module):
        hint = (
            f"{step}({type(target).__name__}, ...)"
            if isinstance(target, torch.optim.Optimizer)
            else f"{step}(Class, ...)"
        )
        raise RecipeError(
            f"{step} takes a class and its keywords, and got {type(target).__name__} {target!r:.60}: type {hint}, "
            f"so that it can be made anew wherever the training runs."
        )
    return Spec(target, keywords)


def _tensor_tuple(value: Any) -> Any:
    return value.tensors if hasattr(value, "tensors") else value


def _unused(folder: Path) -> Path:
    """The folder, with a number behind it where it exists already."""
    candidate, number = folder, 1
    while candidate.exists():
        candidate, number = folder.with_name(f"{folder.name}_{number}"), number + 1
    return candidate


QuikSession.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what Shift-Tab shows in a notebook
    list(inspect.signature(Settings).parameters.values())
)
