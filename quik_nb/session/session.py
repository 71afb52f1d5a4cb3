"""The chainable face: a session is put together by steps, trained, and asked for what came of it.

Each method is a line or two: `recipe_builder` makes recipes from recipes, `training_runs` runs them, `storage` reads
and writes, `analysis` and `export` answer what is asked afterwards.
"""

import inspect
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from quik_nb.analysis.lr_finder import RateTest
from quik_nb.analysis.range_test import range_test
from quik_nb.analysis.report import Report, report
from quik_nb.errors import CheckpointError, RecipeError, suggest
from quik_nb.events import Annotation
from quik_nb.export.script import as_code, write_script
from quik_nb.launch.forkserver import warm_up
from quik_nb.launch.placement import Machine, Request, place
from quik_nb.recipe.cli_options import settings_from
from quik_nb.recipe.data import SPLITS, Source, as_source
from quik_nb.recipe.equality import same
from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.settings import Settings, setting_names, settings_doc
from quik_nb.recipe.validate import check
from quik_nb.session.recipe_builder import (
    ModelFactory,
    build_model,
    call_factory,
    files_of,
    uncompiled,
    with_compile,
    with_criterion,
    with_data,
    with_metrics,
    with_optimizer,
    with_scheduler,
    with_step,
)
from quik_nb.session.run import Run
from quik_nb.session.script_errors import show_errors_briefly
from quik_nb.session.summary import summary_html, summary_text
from quik_nb.session.training_runs import Call, TrainingRuns, checked_loop
from quik_nb.storage.files import load_into, read_weights
from quik_nb.storage.run_folder import latest_folder, read_run, saved_weights, weights_file
from quik_nb.storage.session_file import export, read_session, write_session
from quik_nb.training.carry_over import TrainingState
from quik_nb.training.evaluate import evaluate, predict
from quik_nb.training.progress import Snapshot
from quik_nb.training.world import World


class QuikSession:
    """A training, put together step by step; the steps can come in any order, and a step done again replaces its part.

    Args:
        settings: by name, such as `epochs=5`; all of them are listed below.

    Raises:
        RecipeError: a setting does not exist or has a value that cannot be used.

    >>> from torch import nn
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
        self._model_factory: ModelFactory | None = None
        self._runs = TrainingRuns()
        if Machine.detect().gpus > 1 or self.settings.processes not in ("auto", 1):
            warm_up()  # workers are likely, and a server that is ready saves their first start two seconds

    @classmethod
    def from_args(cls, args: Namespace, ignore: Iterable[str] = ()) -> Self:
        """A session with the settings of a command line, as `quik_nb.add_learn_args(parser)` reads them.

        In a script, an error that nobody catches is shown without the frames of quik_nb and torch from here on.

        Args:
            args: of `parser.parse_args()`; names of older scripts (`gpus`, `bs`, `learning_rate`, ...) are understood,
                and what is not a setting is left to its owner.
            ignore: names of the script's own that look like a setting.

        Raises:
            RecipeError: a value cannot be used, or a name is almost one of a setting.
        """
        show_errors_briefly()
        return cls(**settings_from(args, ignore))

    @property
    def settings(self) -> Settings:
        """The settings of the session."""
        return self._recipe.settings

    # ------------------------------------------------------------------ what to train

    def add_data(
        self,
        train: Any = None,
        valid: Any = None,
        test: Any = None,
        *,
        target: str | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> Self:
        """Set the samples to train on, and those to validate and test on.

        Args:
            train: a tuple of tensors or arrays (the last one is the target), a dict of tensors, a `TensorDataset`, a
                `Dataset` or `IterableDataset`, a `DataLoader`, or a DataFrame with `target`. None takes the saved
                tensors of the `data_date`, `data/train_tensor_20210101.pt` and so on.
            valid: the same, or a share such as 0.2 or a number of samples, cut from `train` by the seed.
            test: likewise.
            target: the name of the target column of a DataFrame.
            collate_fn: makes a batch of a list of samples, for datasets; a `DataLoader` has its own.

        Raises:
            RecipeError: the data cannot be used; the message says what to pass instead.
        """
        splits = {"train": train, "valid": valid, "test": test}
        return self._changed("add_data", lambda recipe: with_data(recipe, splits, target, collate_fn))

    def add_model(
        self, model: nn.Module | Callable[[], nn.Module], state_dict: Mapping[str, Any] | str | Path | None = None
    ) -> Self:
        """Set the model; a training that was under way with another model ends, and a new one starts.

        The same module again, as in a cell that is run again, changes nothing; `reset()` starts again with it.

        Args:
            model: a module, which is trained in place, or a function or class that makes one (under the seed). One that
                went through `torch.compile` is trained and saved under its own names, with `compile=True`.
            state_dict: weights to start from, as a mapping or as the path of a file.

        Raises:
            RecipeError: `model` is neither.
            CheckpointError: `state_dict` does not fit.
        """
        self._before_change("add_model")
        if (original := uncompiled(model)) is not model:
            model, self._recipe = original, with_compile(self._recipe)
        if model is self._recipe.model and state_dict is None:
            return self
        module = build_model(model, self.settings.seed, state_dict)
        self._model_factory = None if isinstance(model, nn.Module) else model
        self._runs.state = TrainingState()
        return self._changed("add_model", lambda recipe: replace(recipe, model=module))

    def set_criterion(self, criterion: Any, **keywords: Any) -> Self:
        """Set the loss.

        Args:
            criterion: a class, such as `nn.CrossEntropyLoss`; a function of (outputs, target) that gives the mean over
                the samples; or an instance. With `reduction="sum"` the history shows the mean all the same.
            keywords: of the class or function.
        """
        return self._changed("set_criterion", lambda recipe: with_criterion(recipe, criterion, keywords))

    def set_optimizer(
        self,
        optimizer: type[torch.optim.Optimizer],
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        params: str | None = None,
        name: str | None = None,
        **keywords: Any,
    ) -> Self:
        """Set the optimizer's class; it gets those of the session's lr, weight_decay, betas, eps that it takes.

        Calls with different names stand side by side, each for its own parameters: the first has the column `lr`, the
        others `lr_NAME`. The same name replaces; a call without a name replaces all.

        Args:
            optimizer: a class such as `torch.optim.AdamW`; or a function of the parameters, or of the model where its
                first parameter is named `model`, that makes one.
            groups: keywords for some of the parameters, by their names: `{"head": {"lr": 1e-3}, "*.bias": {...}}`.
            params: which parameters it trains, by patterns as in `freeze`; None for those that no other takes.
            name: of this optimizer beside others.
            keywords: of its own; they win over the session's settings.
        """
        return self._changed(
            "set_optimizer", lambda recipe: with_optimizer(recipe, optimizer, groups, params, name, keywords)
        )

    def set_scheduler(
        self,
        scheduler: Callable[..., Any] | None,
        per: str | None = None,
        *,
        optimizer: str | None = None,
        **keywords: Any,
    ) -> Self:
        """Set the learning-rate scheduler's class; totals that it needs and was not given are filled in.

        Args:
            scheduler: a class of `torch.optim.lr_scheduler`, or a function of (optimizer, ...); None for none.
            per: "batch" or "epoch"; None for what the scheduler is meant for.
            optimizer: the name of the optimizer whose rate it sets; None for one of each optimizer.
            keywords: of its own.
        """
        return self._changed(
            "set_scheduler", lambda recipe: with_scheduler(recipe, scheduler, per, optimizer, keywords)
        )

    def set_metrics(self, *, train: bool = False, **named: Any) -> Self:
        """Set the metrics, by the name of their column in the history.

        Args:
            train: measure them on the training batches as well, in columns named `train_...`.
            named: functions of (outputs, targets), which see the whole split at once, or torchmetrics metrics.
        """
        return self._changed("set_metrics", lambda recipe: with_metrics(recipe, train, named))

    def set_step(self, step: Callable[..., Any] | None, reduction: str | None = None) -> Self:
        """Replace what is done with a batch.

        Args:
            step: `step(model, criterion, batch)` that returns the loss, (loss, outputs) where there are metrics, (loss,
                outputs, target), or a `quik_nb.StepOutput`; None for the default: `*inputs, target = batch` for tuples,
                `model(**batch).loss` for dicts. It may have parameters `split` ("train", "valid", "test", "data"),
                `epoch`, `step` (0 where a split begins) and `world`.
            reduction: "sum" where the loss adds up over the samples, "mean" where it is divided by them; None to find
                out at the first batch.
        """
        return self._changed("set_step", lambda recipe: with_step(recipe, step, reduction))

    def _changed(self, what: str, change: Callable[[Recipe], Recipe]) -> Self:
        """The session after a step, unless a run is under way."""
        self._before_change(what)
        self._recipe = change(self._recipe)
        return self

    def _before_change(self, what: str) -> None:
        self._runs.refuse_while_active(what)
        self._runs.report_failure()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in setting_names():
            raise RecipeError(
                f"session.{name} = {value!r} would change nothing: use session.train({name}={value!r}) for one call, "
                f"or QuikSession({name}={value!r}) for all of them."
            )
        super().__setattr__(name, value)

    # ------------------------------------------------------------------ training

    def train(
        self,
        epochs: int | None = None,
        processes: int | str | None = None,
        background: bool = False,
        **changes: Any,
    ) -> Run:
        """Train; a second call goes on where the last one ended.

        Args:
            epochs: passes over the training split; None for the session's.
            processes: ranks of DistributedDataParallel; None for the session's.
            background: return at once and train on in workers, with buttons in the view. Where cells are run without a
                front end (nbclient, papermill) the cell waits, so that no run is lost.
            changes: settings for this call only, such as `lr=3e-4`.

        Raises:
            RecipeError: something is missing or does not fit; all of it is in the message.
            PlacementError: the machine does not have what was asked for.
            DivergenceError: the loss became NaN or infinite.
            KeyboardInterrupt: the kernel was interrupted; rows, weights and state are kept.
        """
        __tracebackhide__ = True
        self._before_change("train")
        return self._runs.start(self._recipe, Call({"epochs": epochs, "processes": processes, **changes}, background))

    def traverse(
        self,
        loop: Callable[[Any], Any],
        epochs: int | None = None,
        processes: int | str | None = None,
        background: bool = False,
        **changes: Any,
    ) -> Run:
        """Run a loop of your own on every rank, with the pieces of this session and its view, files and stops.

        Args:
            loop: `loop(session)`, called with a `quik_nb.Loop`: `iter_epochs()`, `loader("train")`, `autocast()`,
                `backward(loss)`, `metrics.add_loss(loss)`, `validate()`, `end_epoch()`, `model`, `criterion`, `world`.
            epochs: that `iter_epochs()` goes through; None for the session's.
            processes: ranks of DistributedDataParallel; None for the session's.
            background: as in `train`.
            changes: settings for this call only.

        Raises:
            RecipeError: something is missing or does not fit; all of it is in the message.
        """
        __tracebackhide__ = True
        self._before_change("traverse")
        given = {"epochs": epochs, "processes": processes, **changes}
        return self._runs.start(self._recipe, Call(given, background, checked_loop(loop)))

    def on(self, event: str, function: Callable[[Any], None]) -> Self:
        """Have a function called with each event of a kind; raising `StopTraining` in it ends the run.

        A cell that is run again replaces its function; `off` removes some or all of them.

        Args:
            event: "run_start", "step_end" (some a second, not each step), "epoch_end" or "run_end".
            function: gets the plain record, such as `EpochEnd(row=Row(epoch=3, train_loss=...), best=True)`.
        """
        self._runs.listeners.add(event, function)
        return self

    def off(self, event: str | None = None) -> Self:
        """Have no function called any more.

        Args:
            event: with events of this kind; None for all kinds.
        """
        self._runs.listeners.remove(event)
        return self

    def reset(self) -> Self:
        """Start again: the weights before the first epoch, an empty history, a new run folder. Files stay."""
        self._before_change("reset")
        initial = self._runs.state.initial_weights
        if initial is not None and self._model_factory is not None:
            model = call_factory(self._model_factory, self.settings.seed)
            self._recipe = replace(self._recipe, model=model)
        if initial is not None:
            # a factory alone does not give them where weights were loaded; layers may have been changed by hand since
            load_into(self.model, initial, "What the model was before its first epoch")
        self._runs.state = TrainingState()
        return self

    # ------------------------------------------------------------------ how it stands

    @property
    def world(self) -> World:
        """This process among the ranks, outside of loops too: rank 0 of 1, as a session starts its own workers."""
        return World(device=self._device)

    @property
    def model(self) -> nn.Module:
        """The model with the weights of the history's last row: a plain module, also while workers train on."""
        if self._recipe.model is None:
            raise RecipeError("There is no model yet: .add_model(Net()).")
        self._runs.load_latest(self._recipe.model)
        return self._recipe.model

    @property
    def history(self) -> Any:
        """A pandas DataFrame: epoch (from 0), train_loss, valid_loss, the metrics, lr, time (seconds)."""
        return self._runs.history.frame()

    @property
    def annotations(self) -> list[Annotation]:
        """What was done to the training on its way, such as `lr 0.0003`: the marks of the curve, by epoch."""
        return list(self._runs.history.annotations)

    @property
    def saved_epochs(self) -> list[int]:
        """The epochs whose weights `load_epoch` can load."""
        return list(saved_weights(self._runs.state))

    @property
    def run(self) -> Run | None:
        """The latest run, or None."""
        return self._runs.latest

    @property
    def runs(self) -> Any:
        """A DataFrame of what was tried: a line for each call of train(), with the settings changed since the last."""
        return self._runs.log.table()

    @property
    def folder(self) -> Path | None:
        """The folder of the training's history and checkpoint, or None where nothing was saved yet."""
        return self._runs.folder

    def show(self) -> None:
        """Draw the live view again, with the whole history; it follows a run that is under way."""
        self._runs.show(self.settings.view, self.settings.name)

    # ------------------------------------------------------------------ what came of it

    def plot(self, log: bool = False) -> Any:
        """The loss curve as a matplotlib Figure.

        Args:
            log: draw the loss on a logarithmic scale.
        """
        from quik_nb.views.matplotlib_figure import figure

        return figure(self._runs.history, log=log)

    def compare(self, log: bool = False) -> Any:
        """The curves of all runs in one matplotlib Figure, named by what was changed.

        Args:
            log: draw the loss on a logarithmic scale.
        """
        from quik_nb.views.compare import overlay

        return overlay(self._runs.log.histories(), log=log)

    def predict(self, data: Any) -> Any:
        """The model's outputs for all samples, in order, on the CPU.

        Args:
            data: anything that `add_data` takes, with or without a target, or the name of a split: "test". The order
                is that of the data; for a `DataLoader` with a sampler, that of the sampler.
        """
        return predict(self._checked("predict", "model"), self._source(data), self._device)

    def evaluate(self, split: Any = "valid") -> dict[str, float]:
        """The loss and the metrics of a split: `{"loss": ..., "accuracy": ...}`.

        Args:
            split: "train", "valid" or "test", or data of its own.
        """
        recipe, name = self._checked("evaluate", "model", "criterion"), name_of(split)
        return evaluate(recipe, self._source(split), self._device, name)

    def report(self, label_names: Iterable[Any] | None = None, split: Any = "valid") -> Report:
        """How good the model is on a split, in detail: `.table`, `.confusion`, `.figure()`.

        For classes: precision, recall, F1 and a confusion matrix; for a criterion that compares numbers: MAE, RMSE and
        R2 of each output. Counted by scikit-learn.

        Args:
            label_names: of the classes or outputs, in order; None for their numbers.
            split: "train", "valid" or "test", or data of its own, with targets.

        Raises:
            QuikError: scikit-learn is not installed.
            RecipeError: outputs and targets cannot be compared.
        """
        names = None if label_names is None or isinstance(label_names, str) else list(label_names)
        if isinstance(label_names, str) or any(isinstance(name, torch.Tensor) for name in names or ()):
            raise RecipeError(
                f"report: label_names are names of classes, in order, and not {label_names!r}: "
                f"use report(split=...) for a split or for data, report(['cat', 'dog']) for names."
            )
        recipe = self._checked("report", "model", "criterion")
        return report(recipe, self._source(split), self._device, names, name_of(split))

    def lr_find(self, start: float = 1e-7, end: float = 10.0, steps: int = 100) -> RateTest:
        """Look for a learning rate: train a few steps with rates that grow until the loss blows up.

        Model, optimizer, history and random numbers are afterwards as they were. The test is Leslie Smith's
        (arXiv:1506.01186); it starts from the model's present weights, with a fresh optimizer, in this process.

        Args:
            start: the first learning rate.
            end: the last one.
            steps: optimizer steps from the one to the other, over as many epochs as that takes.

        Returns:
            `.suggestion`, `.frame` (lr, loss, smoothed) and `.figure()`.

        Raises:
            RecipeError: something is missing or does not fit.
        """
        self._before_change("lr_find")
        recipe = self._checked("lr_find", "train", "model", "criterion", "optimizer")
        check(recipe)
        if not 0 < start < end or steps < 1:
            raise RecipeError(
                f"lr_find(start={start!r}, end={end!r}, steps={steps!r}): the rate grows from start to end in steps, "
                f"so pass numbers such as lr_find(start=1e-6, end=1.0, steps=100)."
            )
        return RateTest(range_test(recipe, self._device, start, end, steps))

    def _checked(self, what: str, *parts: str) -> Recipe:
        """The recipe, with the weights of the last row, if these parts are set."""
        calls = [call for part, call in self._recipe.missing_steps().items() if part in parts]
        if calls:
            raise RecipeError(f"{what} needs more; missing: " + ", ".join(f".{call}" for call in calls))
        self._runs.report_failure()
        return replace(self._recipe, model=self.model)

    @property
    def _device(self) -> torch.device:
        return torch.device(place(Request(1, self.settings.device), Machine.detect()).devices[0])

    def _source(self, data: Any) -> Source:
        """A split by its name, or data of its own."""
        if isinstance(data, str):
            if data not in SPLITS:
                raise RecipeError(f"There is no split {data!r}: {suggest(data, SPLITS)}")
            source: Source | None = getattr(self._recipe, data)
            if source is None:
                given = ", ".join(f"{split}=..." for split in dict.fromkeys(("train", data)))
                raise RecipeError(f"There is no split {data!r} yet: add_data({given}) sets one.")
            return source
        return as_source(data, "data", like=self._recipe.train, labelled=False)

    def as_code(self, folder: str | Path | None = None) -> str:
        """The equal plain PyTorch script: what `train()` does from the first epoch on, without quik_nb.

        Classes and functions from cells are quoted. What has no text, such as a dataset, is marked with `...`, and the
        script says at its top what to fill in.

        Args:
            folder: an empty or new folder in which to write the script, `train.py`, and what it loads; None for none.

        Raises:
            RecipeError: something is missing or does not fit; all of it is in the message.
            CheckpointError: the folder has such files already.
        """
        recipe = self._checked("as_code", "train", "model", "criterion", "optimizer")
        check(recipe)
        factory, initial = self._model_factory, self._runs.state.initial_weights
        if initial is None:
            initial = self.model.state_dict()
        fresh = None if factory is None else call_factory(factory, self.settings.seed).state_dict()
        seeded = fresh is not None and all(torch.equal(fresh[key].cpu(), initial[key].cpu()) for key in initial)
        file = files_of(self._recipe).weights("orig")
        at_hand = folder is not None or not file.exists() or same(read_weights(file), initial)
        text = as_code(recipe, factory, seeded, beside=folder is not None, at_hand=at_hand)
        if folder is not None:
            write_script(text, recipe, initial, Path(folder))
        return text

    # ------------------------------------------------------------------ files

    def load_epoch(self, epoch: int) -> Self:
        """Load the weights that were saved after an epoch of this session's training.

        Raises:
            CheckpointError: they were not saved, were overwritten by another training, or do not fit the model, which
                is then left as it was.
        """
        self._before_change("load_epoch")
        path = weights_file(self._runs.state, epoch, files_of(self._recipe))
        load_into(self.model, read_weights(path), path.name)
        self._runs.state = replace(self._runs.state, loaded_epoch=epoch)
        return self

    def load_best(self) -> Self:
        """Load the weights of the epoch with the lowest valid_loss (train_loss where there is no validation split).

        Raises:
            CheckpointError: as `load_epoch`, or nothing was trained yet.
        """
        history = self._runs.history
        best = history.best
        if best is None:
            why = "no epoch has a loss that can be compared" if history.rows else "nothing was trained"
            raise CheckpointError(f"There is no best epoch yet, as {why}: session.train() first.")
        return self.load_epoch(best.epoch)

    @classmethod
    def resume(cls, folder: str | Path | None = None, base_dir: str | Path = ".") -> Self:
        """Pick up a run folder, also in a new kernel: recipe, weights, optimizer, random numbers and history.

        A run folder holds the model's code, so read only folders that you trust.

        Args:
            folder: such as `data/run_20210101_120000`; None for the latest in `base_dir`.
            base_dir: where data/ lies.

        Raises:
            CheckpointError: the folder has no checkpoint that can be gone on from.
        """
        where = latest_folder(Path(base_dir)) if folder is None else Path(folder)
        saved = read_run(where)
        session = cls()
        session._recipe = saved.state.trained_by or session._recipe
        session._runs.state = saved.state
        load_into(session.model, saved.weights, str(where))
        Snapshot(saved.weights, saved.state.progress).load_into(session.model)
        return session

    def save(self, path: str | Path) -> Path:
        """Write the whole session into one file: model, data, settings, history and how far it has come.

        `QuikSession.load(path)` reads it, and `python -m quik_nb train path` trains it. Reading runs the code in it.

        Args:
            path: such as "session.pt"; a file that is there is replaced in one go.

        Raises:
            CheckpointError: a part cannot be written, such as an open file in a dataset; the message names it.
        """
        self._before_change("save")
        write_session(self._recipe, self._runs.state, self._model_factory, Path(path))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A session as `save` wrote it, which goes on where that one stood, into a new run folder.

        The file holds code, such as the model's class, and reading runs it: read only files that you trust.

        Raises:
            CheckpointError: there is no such file, it is damaged, or it holds something else.
        """
        session = cls()
        session._recipe, session._runs.state, session._model_factory = read_session(Path(path))
        return session

    def export(self, path: str | Path) -> Path:
        """Write the model's weights as safetensors: tensors by name and no code, for other tools.

        Args:
            path: such as "model.safetensors"; `add_model(model, state_dict=path)` takes it, too.

        Raises:
            QuikError: the package safetensors is not installed.
        """
        export(self.model, Path(path))
        return Path(path)

    # ------------------------------------------------------------------ how it shows

    def __repr__(self) -> str:
        return summary_text(self._recipe, self._runs.history, self._runs.state.loaded_epoch)

    def _repr_html_(self) -> str:
        return summary_html(self._recipe, self._runs.history, self._runs.state.loaded_epoch)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_") or name.startswith("__")]


def name_of(data: Any) -> str:
    """The name of a split, or "data" for data of its own."""
    return data if isinstance(data, str) else "data"


QuikSession.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what Shift-Tab shows in a notebook
    list(inspect.signature(Settings).parameters.values())
)
QuikSession.__doc__ = f"{QuikSession.__doc__}\n{settings_doc()}"
