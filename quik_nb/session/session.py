"""`QuikSession`: chainable methods that set up a training, run it, and give access to its results.

This is a facade; the work is done elsewhere: `recipe_builder` changes recipes, `training_runs` runs them, `storage`
reads and writes files, `analysis` and `export` work on the trained model.
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
from quik_nb.events import Annotation, Row
from quik_nb.export.script import Origin, as_code, write_script
from quik_nb.history import History
from quik_nb.launch.forkserver import warm_up
from quik_nb.launch.placement import Machine, Request, place
from quik_nb.recipe.cli_options import settings_from
from quik_nb.recipe.data import as_source
from quik_nb.recipe.equality import same
from quik_nb.recipe.monitor import direction, ranking
from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.samples import SPLITS, Source
from quik_nb.recipe.settings import Settings, setting_names, settings_doc
from quik_nb.recipe.splits import DataOptions
from quik_nb.recipe.validate import check
from quik_nb.session.recipe_builder import (
    ModelFactory,
    build_model,
    call_factory,
    files_of,
    uncompiled,
    with_criterion,
    with_data,
    with_metrics,
    with_model,
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
from quik_nb.training.progress import load_buffers
from quik_nb.training.world import World


class QuikSession:
    """A training, set up by chained methods in any order; calling a method again replaces what it set before.

    Args:
        settings: by name, such as `epochs=5`; all of them are listed below.

    Raises:
        RecipeError: a setting does not exist or has an invalid value.

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
            warm_up()  # workers are likely, and a running fork server makes their first start two seconds faster

    @classmethod
    def from_args(cls, args: Namespace, ignore: Iterable[str] = ()) -> Self:
        """A session with the settings of a command line, whose options `quik_nb.add_learn_args(parser)` defines.

        From here on, uncaught exceptions of a script are printed without the frames of quik_nb and torch.

        Args:
            args: the result of `parser.parse_args()`. Option names of older scripts (`gpus`, `bs`, `learning_rate`,
                ...) work too; options that are not settings are ignored.
            ignore: the script's own options whose names resemble a setting.

        Raises:
            RecipeError: a value is invalid, or a name looks like a misspelt setting.
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
        inputs: Any = None,
        stratify: bool = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        sharded: bool | None = None,
    ) -> Self:
        """Set the data for training, and optionally for validation and testing.

        Args:
            train: a tuple of tensors or arrays (the last one is the target), a dict of tensors, a `TensorDataset`, a
                `Dataset` or `IterableDataset`, a list of dicts or other objects, a `DataLoader`, or a DataFrame with
                `target`. None loads the saved tensors of `data_date`: `data/train_tensor_20210101.pt` and so on.
            valid: the same, or a fraction such as 0.2 or a number of samples to split off `train`, chosen by the seed.
            test: likewise.
            target: name of the target column of a DataFrame.
            inputs: columns of a DataFrame that are separate inputs of the model, one tensor each:
                `["user", "item", ["age", "income"]]`, where a list of columns is one input, or a dict of these, whose
                keys are the model's keywords. Columns of whole numbers become int64. None for all columns as one input.
            stratify: whether fractions such as `valid=0.2` preserve the proportions of the classes.
            collate_fn: makes a batch from a list of samples, for datasets; a `DataLoader` has its own.
            sharded: whether a stream already yields different samples on each process; None to find out from its first
                batches.

        Raises:
            RecipeError: the data cannot be used; the message says what to pass instead.

        >>> x, y = torch.randn(100, 3), torch.randn(100, 1)
        >>> session = QuikSession().add_data(train=(x, y), valid=0.2)
        """
        splits = {"train": train, "valid": valid, "test": test}
        options = DataOptions(target, inputs, collate_fn, sharded, stratify)
        return self._changed("add_data", lambda recipe: with_data(recipe, splits, options))

    def add_model(
        self, model: nn.Module | Callable[[], nn.Module], state_dict: Mapping[str, Any] | str | Path | None = None
    ) -> Self:
        """Set the model; with another model, history and progress start from scratch.

        Passing the same module again, as when its cell is re-run, changes nothing; `reset()` restarts its training.

        Args:
            model: a module, which is trained in place, or a function or class that creates one (under the seed). A
                module from `torch.compile` is trained with `compile=True`, and saved with its original names.
            state_dict: initial weights, as a mapping or the path of a file.

        Raises:
            RecipeError: `model` is neither a module nor callable.
            CheckpointError: `state_dict` does not match the model.
        """
        self._before_change("add_model")
        original = uncompiled(model)
        if original is self._recipe.model and state_dict is None:
            return self
        module = build_model(original, self.settings.seed, state_dict)
        self._model_factory = None if isinstance(original, nn.Module) else original
        self._runs.state = TrainingState()
        was_compiled = original is not model
        return self._changed("add_model", lambda recipe: with_model(recipe, module, was_compiled))

    def set_criterion(self, criterion: Any, **keywords: Any) -> Self:
        """Set the loss function.

        Args:
            criterion: a class such as `nn.CrossEntropyLoss`, an instance of one, or a function of (outputs, target)
                that returns the mean over the samples. The history shows means, also with `reduction="sum"`.
            keywords: of the class or function.

        Raises:
            RecipeError: `criterion` is not callable, or keywords were passed with an instance.
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
        """Set the optimizer class; the settings lr, weight_decay, betas and eps are passed to it if it accepts them.

        Calls with different names add further optimizers, each for its own parameters; the history has the column `lr`
        for the first and `lr_NAME` for the others. The same name replaces an optimizer; no name replaces all of them.

        Args:
            optimizer: a class such as `torch.optim.AdamW`; or a function that returns an optimizer, called with the
                parameters, or with the model if its first parameter is named `model`.
            groups: parameter groups, as keywords by parameter name: `{"head": {"lr": 1e-3}, "*.bias": {...}}`.
            params: names of the parameters to train, as patterns like those of `freeze`; None for all that no other
                optimizer trains.
            name: of this optimizer, if there are several.
            keywords: of the class; they take precedence over the settings.

        Raises:
            RecipeError: `optimizer` is not a class or function, or `groups` is not a mapping of mappings.
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
        """Set the learning-rate scheduler class; missing totals, such as `total_steps`, are filled in.

        Args:
            scheduler: a class of `torch.optim.lr_scheduler`, or a function of (optimizer, ...); None for no scheduler.
            per: step it per "batch" or per "epoch"; None for the usual choice for this class.
            optimizer: the name of the optimizer whose learning rate it sets; None for one scheduler per optimizer.
            keywords: of the class or function.

        Raises:
            RecipeError: `scheduler` is not a class or function, or `per` is not known.
        """
        return self._changed(
            "set_scheduler", lambda recipe: with_scheduler(recipe, scheduler, per, optimizer, keywords)
        )

    def set_metrics(self, *metrics: Any, train: bool = False, check: bool = True, **named: Any) -> Self:
        """Set the metrics: `set_metrics("accuracy", top="f1", spread=lambda outputs, targets: outputs.std())`.

        Known by name:

        ==========================  =================================================================
        accuracy, top5_accuracy     fraction of correct classes, or of correct labels (BCE losses)
        precision, recall, f1       mean over the classes or labels (macro)
        auroc, average_precision    mean over the classes or labels, computed by torchmetrics
        mae, mse, rmse, r2          for regression, mean over the outputs
        ==========================  =================================================================

        Criterion, outputs and targets determine the variant; labels that the criterion ignores are left out.

        Args:
            metrics: by name, or functions and torchmetrics that are called by their own names.
            train: measure them on the training batches as well, in columns named `train_...`.
            check: try the metrics before a training, on up to 256 validation samples.
            named: by the name of their column: one of the names above, a function of (outputs, targets), called once
                with the whole split, or a torchmetrics metric. A dict of numbers makes columns NAME_key.

        Raises:
            RecipeError: a metric is not callable, is not known by name, or its name is that of another column.
        """
        return self._changed("set_metrics", lambda recipe: with_metrics(recipe, metrics, train, check, named))

    def set_step(self, step: Callable[..., Any] | None, reduction: str | None = None) -> Self:
        """Set a custom forward step, which computes the loss of a batch.

        Args:
            step: `step(model, criterion, batch)` that returns the loss, (loss, outputs) if there are metrics, (loss,
                outputs, target), or a `quik_nb.StepOutput`; None for the default: `*inputs, target = batch` for tuples,
                `model(**batch).loss` for dicts. It may have parameters `split` ("train", "valid", "test", "data"),
                `epoch`, `step` (0 at the beginning of a split) and `world`.
            reduction: "sum" if the loss is summed over the samples of the batch, "mean" if it is averaged; None to
                find out at the first batch.

        Raises:
            RecipeError: `step` is not callable, or `reduction` is not known.
        """
        return self._changed("set_step", lambda recipe: with_step(recipe, step, reduction))

    def _changed(self, what: str, change: Callable[[Recipe], Recipe]) -> Self:
        """Apply a change to the recipe, unless a run is active."""
        self._before_change(what)
        self._recipe = change(self._recipe)
        return self

    def _before_change(self, what: str) -> None:
        self._runs.refuse_while_active(what)
        self._runs.report_failure()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in setting_names():
            raise RecipeError(
                f"session.{name} = {value!r} would have no effect: use session.train({name}={value!r}) for one call, "
                f"or QuikSession({name}={value!r}) for all calls."
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
        """Train; further calls continue where the last one ended.

        Args:
            epochs: number of epochs; None for the session's setting.
            processes: number of DistributedDataParallel ranks; None for the session's setting.
            background: return immediately and train in workers, with buttons in the view. In a notebook that is run
                without a front end (nbclient, papermill) the cell waits until the run has ended.
            changes: settings for this call only, such as `lr=3e-4`.

        Returns:
            The handle of the run.

        Raises:
            RecipeError: something is missing or invalid; the message lists all of it.
            PlacementError: the machine does not have the requested devices or cores.
            WorkerError: a worker process failed, was killed, or hangs.
            DivergenceError: the loss became NaN or infinite.
            KeyboardInterrupt: the kernel was interrupted; rows, weights and state are saved.
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
        """Run a custom training loop on every rank, with the same view, files, Stop button and resuming as `train()`.

        Args:
            loop: `loop(session)`, called with a `quik_nb.Loop`: `iter_epochs()`, `loader("train")`, `autocast()`,
                `backward(loss)`, `metrics.add_loss(loss)`, `validate()`, `end_epoch()`, `model`, `criterion`, `world`.
            epochs: number of epochs of `iter_epochs()`; None for the session's setting.
            processes: number of DistributedDataParallel ranks; None for the session's setting.
            background: as in `train`.
            changes: settings for this call only.

        Returns:
            The handle of the run.

        Raises:
            RecipeError: something is missing or invalid; the message lists all of it.
        """
        __tracebackhide__ = True
        self._before_change("traverse")
        given = {"epochs": epochs, "processes": processes, **changes}
        return self._runs.start(self._recipe, Call(given, background, checked_loop(loop)))

    def on(self, event: str, function: Callable[[Any], None]) -> Self:
        """Register a callback; raising `StopTraining` in it stops the run.

        Re-running a cell replaces its callback; `off` removes callbacks.

        Args:
            event: "run_start", "step_end" (at most about ten per second, not every step), "epoch_end" or "run_end".
            function: called with the event record, such as `EpochEnd(row=Row(epoch=3, train_loss=...), best=True)`.

        Raises:
            RecipeError: `event` does not exist or `function` is not callable.

        >>> session = QuikSession().on("epoch_end", lambda event: print(event.row.valid_loss))
        """
        self._runs.listeners.add(event, function)
        return self

    def off(self, event: str | None = None) -> Self:
        """Remove callbacks.

        Args:
            event: those of this event; None for all callbacks.
        """
        self._runs.listeners.remove(event)
        return self

    def reset(self) -> Self:
        """Restart from scratch: initial weights, empty history, a new run folder. Saved files are not deleted."""
        self._before_change("reset")
        initial = self._runs.state.initial_weights
        if initial is not None and self._model_factory is not None:
            model = call_factory(self._model_factory, self.settings.seed)
            self._recipe = replace(self._recipe, model=model)
        if initial is not None:
            # also after a factory, which does not apply a loaded state_dict; this raises if layers were replaced since
            load_into(self.model, initial, "The state_dict from before the first epoch")
        self._runs.state = TrainingState()
        return self

    # ------------------------------------------------------------------ status

    @property
    def world(self) -> World:
        """This process as rank 0 of 1; in a loop, `Loop.world` has the actual rank and world size."""
        return World(device=self._device)

    @property
    def model(self) -> nn.Module:
        """The model, a plain module, with the weights of the last row, also during a run in workers."""
        if self._recipe.model is None:
            raise RecipeError("There is no model yet: use .add_model(Net()).")
        self._runs.load_latest(self._recipe.model)
        return self._recipe.model

    @property
    def history(self) -> Any:
        """A pandas DataFrame: epoch (from 0), train_loss, valid_loss, the metrics, lr, time (seconds)."""
        return self._runs.history.frame()

    @property
    def annotations(self) -> list[Annotation]:
        """Changes made during the training, such as `lr 0.0003`, by epoch: the marks on the curve."""
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
        """A DataFrame with one line per call of train(), including the settings changed since the previous call."""
        return self._runs.log.table()

    @property
    def folder(self) -> Path | None:
        """The run folder, with history and checkpoint; None if nothing was saved yet."""
        return self._runs.folder

    def show(self) -> None:
        """Draw the live view again, with the whole history; it follows the active run."""
        self._runs.show(self.settings.view, self.settings.name)

    # ------------------------------------------------------------------ results

    def plot(self, log: bool = False) -> Any:
        """The loss curve as a matplotlib Figure.

        Args:
            log: draw the loss on a logarithmic scale.
        """
        from quik_nb.views.matplotlib_figure import figure

        return figure(self._runs.history, log=log)

    def compare(self, log: bool = False) -> Any:
        """The loss curves of all runs in one matplotlib Figure, labelled with the settings that were changed.

        Args:
            log: draw the loss on a logarithmic scale.
        """
        from quik_nb.views.compare import overlay

        return overlay(self._runs.log.histories(), log=log)

    def predict(self, data: Any) -> Any:
        """The outputs for all samples, in the order of the data, on the CPU, joined by sample; bfloat16 as float32.

        They are the model's. For a split they are those of a custom step, where it returns outputs. Where the batches'
        outputs have different widths, there is a tensor for each sample; what belongs to a batch rather than to its
        samples, such as a hidden state, is a list with one for each batch.

        Args:
            data: anything that `add_data` accepts, with or without a target, or the name of a split: "test". A
                `DataLoader` with a sampler gives outputs in the sampler's order.

        Raises:
            RecipeError: there is no model, or no split of that name.
        """
        return predict(self._checked("predict", "model"), self._source(data), self._device, name_of(data))

    def evaluate(self, split: Any = "valid") -> dict[str, float]:
        """The loss and the metrics of a split: `{"loss": ..., "accuracy": ...}`.

        Args:
            split: "train", "valid" or "test", or any data that `add_data` accepts.

        Raises:
            RecipeError: there is no model, no criterion, or no split of that name.
        """
        recipe, name = self._checked("evaluate", "model", "criterion"), name_of(split)
        return evaluate(recipe, self._source(split), self._device, name)

    def report(self, label_names: Iterable[Any] | None = None, split: Any = "valid") -> Report:
        """A detailed evaluation of the model on a split: `.table`, `.confusion`, `.figure()`.

        Classification: precision, recall, F1 and a confusion matrix. Regression: MAE, RMSE and R2 of each output.
        Computed by scikit-learn.

        Args:
            label_names: names of the classes or outputs, in order; None to number them.
            split: "train", "valid" or "test", or any data that `add_data` accepts, with targets.

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
        """Find a learning rate: train a few steps with an increasing learning rate until the loss diverges.

        This is Leslie Smith's learning-rate range test (arXiv:1506.01186). It starts from the current weights with a
        fresh optimizer, in this process. Model, history and random number generators are restored afterwards.

        Args:
            start: the first learning rate.
            end: the last learning rate.
            steps: optimizer steps from `start` to `end`, over as many epochs as needed.

        Returns:
            The result, with `.suggestion`, `.frame` (columns lr, loss, smoothed) and `.figure()`.

        Raises:
            RecipeError: something is missing or invalid.
        """
        self._before_change("lr_find")
        recipe = self._checked("lr_find", "train", "model", "criterion", "optimizer")
        check(recipe)
        if not 0 < start < end or steps < 1:
            raise RecipeError(
                f"lr_find(start={start!r}, end={end!r}, steps={steps!r}): the learning rate must grow from start to "
                f"end in at least one step: use numbers such as lr_find(start=1e-6, end=1.0, steps=100)."
            )
        return RateTest(range_test(recipe, self._device, start, end, steps))

    def _checked(self, what: str, *parts: str) -> Recipe:
        """The recipe with the weights of the last row; raises a RecipeError if one of these parts is missing."""
        calls = [call for part, call in self._recipe.missing_steps().items() if part in parts]
        if calls:
            raise RecipeError(f"{what} needs more; missing: " + ", ".join(f".{call}" for call in calls))
        self._runs.report_failure()
        return replace(self._recipe, model=self.model)

    @property
    def _device(self) -> torch.device:
        return torch.device(place(Request(1, self.settings.device), Machine.detect()).devices[0])

    def _source(self, data: Any) -> Source:
        """The source of a split, or of any data that `add_data` accepts."""
        if isinstance(data, str):
            if data not in SPLITS:
                raise RecipeError(f"There is no split {data!r}: {suggest(data, SPLITS)}")
            source: Source | None = getattr(self._recipe, data)
            if source is None:
                given = ", ".join(f"{split}=..." for split in dict.fromkeys(("train", data)))
                raise RecipeError(f"There is no split {data!r} yet: use add_data({given}).")
            return source
        return as_source(data, "data", like=self._recipe.train, labelled=False)

    def as_code(self, folder: str | Path | None = None) -> str:
        """The training as a plain PyTorch script, which gives the same losses without quik_nb.

        Classes and functions from notebook cells are included. Objects without source code, such as datasets, are left
        as `...`, and a comment at the top of the script lists what to fill in.

        Args:
            folder: an empty or new folder to write the script, `train.py`, and its data to; None to write no files.

        Raises:
            RecipeError: something is missing or invalid; the message lists all of it.
            CheckpointError: the folder has such files already.
        """
        recipe = self._checked("as_code", "train", "model", "criterion", "optimizer")
        check(recipe)
        initial = self._runs.state.initial_weights
        if initial is None:
            initial = self.model.state_dict()

        # a factory that gives the initial weights under the seed saves the script from loading them
        factory, seeded = self._model_factory, False
        if factory is not None:
            fresh = call_factory(factory, self.settings.seed).state_dict()
            seeded = all(torch.equal(fresh[key].cpu(), initial[key].cpu()) for key in initial)

        # the dated file may be that of another session
        file = files_of(self._recipe).weights("orig")
        weights_match = folder is not None or not file.exists() or same(read_weights(file), initial)

        text = as_code(recipe, Origin(factory, seeded, beside=folder is not None, weights_match=weights_match))
        if folder is not None:
            write_script(text, recipe, initial, Path(folder))
        return text

    # ------------------------------------------------------------------ files

    def load_epoch(self, epoch: int) -> Self:
        """Load the weights that were saved at the end of an epoch of this session's training.

        Args:
            epoch: counts from 0; `saved_epochs` lists those available.

        Raises:
            CheckpointError: the weights were not saved, were overwritten by another training, or do not match the
                model, which is then unchanged.
        """
        self._before_change("load_epoch")
        path = weights_file(self._runs.state, epoch, files_of(self._recipe))
        load_into(self.model, read_weights(path), path.name)
        self._runs.state = replace(self._runs.state, loaded_epoch=epoch)
        return self

    def load_best(self, monitor: str | None = None, monitor_mode: str | None = None) -> Self:
        """Load the weights of the best epoch: that with the lowest valid_loss (train_loss where there is no validation
        split), or the best by the session's `monitor`.

        Args:
            monitor: another column, such as "accuracy", by which the rows are ranked; None for the session's.
            monitor_mode: "min" or "max"; None to infer it from the name.

        Raises:
            RecipeError: there is no such column, or its name does not tell whether it is to fall or to rise.
            CheckpointError: as `load_epoch`, or nothing was trained yet.
        """
        given = {"monitor": monitor, "monitor_mode": monitor_mode}
        settings = self.settings.changed({name: value for name, value in given.items() if value is not None})
        best = best_of(self._runs.history, replace(self._recipe, settings=settings))
        return self.load_epoch(best.epoch)

    @classmethod
    def resume(cls, folder: str | Path | None = None, base_dir: str | Path = ".") -> Self:
        """Restore a session from a run folder, for example in a new kernel; `train()` then continues it.

        Recipe, weights, optimizer, random number generators and history are restored. A run folder contains pickled
        code, such as the model's class: read only folders that you trust.

        Args:
            folder: such as `data/run_20210101_120000`; None for the latest one in `base_dir`.
            base_dir: the folder that contains data/.

        Raises:
            CheckpointError: the folder has no checkpoint, or it cannot be read.
        """
        where = latest_folder(Path(base_dir)) if folder is None else Path(folder)
        saved = read_run(where)
        session = cls()
        session._recipe = saved.state.trained_by or session._recipe
        session._runs.state = saved.state
        load_into(session.model, saved.weights, str(where))
        load_buffers(session.model, saved.state.progress)
        return session

    def save(self, path: str | Path) -> Path:
        """Save the whole session to one file: model, data, settings, history and training state.

        `QuikSession.load(path)` loads it, and `python -m quik_nb train path` trains it.

        Args:
            path: such as "session.pt"; an existing file is replaced atomically.

        Returns:
            The path of the file.

        Raises:
            CheckpointError: a part cannot be pickled, such as an open file in a dataset; the message names it.
        """
        self._before_change("save")
        write_session(self._recipe, self._runs.state, self._model_factory, Path(path))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load a session that `save` wrote; `train()` then continues it, in a new run folder.

        The file contains pickled code, such as the model's class: load only files that you trust.

        Args:
            path: of the file.

        Raises:
            CheckpointError: the file does not exist, is damaged, or is not a session.
        """
        session = cls()
        session._recipe, session._runs.state, session._model_factory = read_session(Path(path))
        return session

    def export(self, path: str | Path) -> Path:
        """Export the model's weights as safetensors, a format without code that many tools read.

        Args:
            path: such as "model.safetensors"; `add_model(model, state_dict=path)` loads it, too.

        Returns:
            The path of the file.

        Raises:
            QuikError: the package safetensors is not installed.
        """
        export(self.model, Path(path))
        return Path(path)

    # ------------------------------------------------------------------ display

    def __repr__(self) -> str:
        return summary_text(self._recipe, self._runs.history, self._runs.state.loaded_epoch)

    def _repr_html_(self) -> str:
        return summary_html(self._recipe, self._runs.history, self._runs.state.loaded_epoch)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_") or name.startswith("__")]


def best_of(history: History, recipe: Recipe) -> Row:
    """The best row by what the recipe monitors.

    Raises:
        RecipeError: no row has such a column, or its direction is not known.
        CheckpointError: there is none that could be the best.
    """
    name = recipe.settings.monitor
    if name is not None and history.rows and name not in history.columns:
        raise RecipeError(f"monitor={name!r} is no column of the history: {suggest(name, history.columns)}")
    if name is not None and recipe.settings.monitor_mode is None and direction(recipe, name) is None:
        raise RecipeError(
            f"monitor={name!r} may be better when it falls or when it rises, which its name does not tell: "
            f"pass monitor_mode='min' or 'max'."
        )

    ranked = history.copy()
    ranked.ranking = ranking(recipe)
    if ranked.best is None:
        why = "no epoch has a value that can be compared" if history.rows else "nothing was trained"
        raise CheckpointError(f"There is no best epoch yet, since {why}: use session.train() first.")
    return ranked.best


def name_of(data: Any) -> str:
    """The name of a split, or "data" for any other data."""
    return data if isinstance(data, str) else "data"


QuikSession.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what Shift-Tab shows in a notebook
    list(inspect.signature(Settings).parameters.values())
)
QuikSession.__doc__ = f"{QuikSession.__doc__}\n{settings_doc()}"
