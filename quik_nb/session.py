"""The chainable face: a session is put together by steps, trained, and asked for what came of it.

It trains nothing itself: `train()` checks the recipe, decides where, launches, and takes the state home.
"""

import atexit
import inspect
import time
import warnings
import weakref
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from quik_nb.archive import export, write_session
from quik_nb.archive import read_session as read_archive
from quik_nb.arguments import settings_from
from quik_nb.checks import check
from quik_nb.code import as_code, write_script
from quik_nb.errors import CheckpointError, RecipeError, suggest
from quik_nb.events import Mark
from quik_nb.history import History
from quik_nb.launch.server import warm_up
from quik_nb.launch.start import launch
from quik_nb.placement import Machine, Placement, Request, place
from quik_nb.rates import RateTest
from quik_nb.recipe import Recipe
from quik_nb.report import Report, report
from quik_nb.run import Interrupts, Run
from quik_nb.sameness import same
from quik_nb.settings import OPTIMIZER_DEFAULTS, Settings
from quik_nb.sources import SPLITS, Source, as_source
from quik_nb.state import State
from quik_nb.steps import Steps
from quik_nb.summary import summary_html, summary_text
from quik_nb.training.checkpoint import load_into, read_weights
from quik_nb.training.continuing import carried, measured_alike
from quik_nb.training.evaluate import evaluate, predict
from quik_nb.training.lr_finder import range_test
from quik_nb.training.resume import latest_folder, read_session
from quik_nb.training.snapshot import Snapshot
from quik_nb.training.trainer import Job
from quik_nb.tried import Attempt, described, difference, table
from quik_nb.views.choose import choose, waits_for_cells

EVENTS = {"RunStart": "run_start", "StepEnd": "step_end", "EpochEnd": "epoch_end", "RunEnd": "run_end"}
"""The events that `on` knows, by the name of their record."""

EXIT_SECONDS = 3.0
"""How long a kernel that ends waits for a background run to stop and keep its state."""


class QuikSession(Steps):
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
        super().__init__(**settings)
        self._state = State()
        self._attempts: list[Attempt] = []
        self._listeners: list[tuple[str, Callable[[Any], None]]] = []
        self._run: Run | None = None
        if Machine.detect().gpus > 1 or self.settings.processes not in ("auto", 1):
            warm_up()  # workers are likely, and a server that is ready saves their first start two seconds

    @classmethod
    def from_args(cls, namespace: Namespace) -> Self:
        """A session with the settings that were given on a command line, as `arguments.add_arguments` reads them.

        Args:
            namespace: of a parser's `parse_args()`; what is not a setting is left to its owner.
        """
        return cls(**settings_from(namespace))

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
        return self._run_job(None, background, {"epochs": epochs, "processes": processes, **changes})

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
        return self._run_job(loop, background, {"epochs": epochs, "processes": processes, **changes})

    def _run_job(self, loop: Callable[[Any], Any] | None, background: bool, given: dict[str, Any]) -> Run:
        __tracebackhide__ = True
        if not isinstance(background, bool):
            raise RecipeError(f"background={background!r} is a switch: type background=True or background=False.")
        recipe = self._asked_for(given)
        check(recipe, own_loop=loop is not None)
        settings = recipe.settings
        request = Request(settings.processes, settings.device, settings.start_method, background)
        placement = place(request, Machine.detect())
        interrupts = Interrupts()
        with interrupts.heard():
            run = self._start(recipe, placement, loop)
            leaves = background and not waits_for_cells()
            try:
                view, _ = choose(settings.view, self._state.history, run if leaves else None, settings.name)
                run.attach(view)
            except BaseException:
                run.discard()
                raise
            if leaves:
                _BACKGROUND.add(run)
                run.background()
            else:
                run.foreground(interrupts)
        return run

    def _asked_for(self, given: dict[str, Any]) -> Recipe:
        """The recipe of one call, in which what was given for it wins over all else."""
        changes = {k: v for k, v in given.items() if v is not None or k not in ("epochs", "processes")}
        recipe = replace(self._recipe, settings=self.settings.changed(changes))
        source = recipe.train
        if "batch_size" in changes and getattr(source, "batch_size", None) is not None:
            raise RecipeError(
                f"batch_size={changes['batch_size']!r} was asked for, and the DataLoader of train makes batches of "
                f"{source.batch_size}: pass the dataset itself to add_data, or a loader with that size."  # type: ignore[union-attr]
            )
        if recipe.optimizer is not None:
            instead = {name for name in OPTIMIZER_DEFAULTS if changes.get(name) is not None}
            own = {k: v for k, v in recipe.optimizer.keywords.items() if k not in instead}
            recipe = replace(recipe, optimizer=replace(recipe.optimizer, keywords=own))
        return recipe

    def _start(self, recipe: Recipe, placement: Placement, loop: Callable[[Any], Any] | None) -> Run:
        state = self._state
        progress = carried(state.progress, state.trained, recipe)
        if state.trained is not None and not measured_alike(state.trained, recipe):
            state.history.record(Mark(progress.epoch, "another loss", apart=True))
        if state.held is not None:
            state.history.record(Mark(progress.epoch, f"from epoch {state.held}"))
            state.held = None
        # the schedule spans the session's own epochs, also where this call trains fewer of them
        plan = replace(recipe, settings=replace(recipe.settings, epochs=self.settings.epochs))
        job = Job(plan, progress.epoch + recipe.settings.epochs, str(placement), progress, loop)
        heard = loop is not None or bool(self._listeners)  # by code of the user's own, which may look for the files
        started = launch(job, placement, state.begin(plan, at_once=heard))
        self._run = run = Run(started, state.history, self._settle, self._listen)
        words = described(recipe)
        before = self._attempts[-1].settings if self._attempts else None
        changed = difference(before, words)
        for attempt in self._attempts:
            attempt.let_go()
        self._attempts.append(Attempt(words, progress.epoch, state.history, run, changed))
        return run

    def _settle(self, outcome: Snapshot | None) -> None:
        """Take the state of the last row home, however the run ended."""
        if outcome is not None:
            self._recipe.model.load_state_dict(outcome.weights)  # type: ignore[union-attr]
            self._state.settle(outcome)
        self._attempts[-1].settle()

    def _listen(self, event: Any) -> None:
        name = EVENTS.get(type(event).__name__)
        for wanted, function in self._listeners:
            if wanted == name:
                function(event)

    def on(self, event: str, function: Callable[[Any], None]) -> Self:
        """Have a function called with each event of a kind; raising `StopTraining` in it ends the run.

        A cell that is run again replaces its function; `off` removes some or all of them.

        Args:
            event: "run_start", "step_end" (some a second, not each step), "epoch_end" or "run_end".
            function: gets the plain record, such as `EpochEnd(row=Row(epoch=3, train_loss=...), best=True)`.
        """
        if event not in EVENTS.values():
            raise RecipeError(f"on: there is no event {event!r}: {suggest(str(event), EVENTS.values())}")
        if not callable(function):
            raise RecipeError(f"on: {function!r} is no function of an event: type on({event!r}, lambda event: ...).")
        self._listeners = [pair for pair in self._listeners if not same(pair, (event, function))]
        self._listeners.append((event, function))
        return self

    def off(self, event: str | None = None) -> Self:
        """Have no function called any more.

        Args:
            event: with events of this kind; None for all kinds.
        """
        self._listeners = [pair for pair in self._listeners if event is not None and pair[0] != event]
        return self

    def _before_change(self, what: str) -> None:
        if self._run is not None and self._run.state in ("running", "paused"):
            raise RecipeError(
                f"{what}: a run of this session is {self._run.state}, and this would mix two trainings: "
                f"wait for it with session.run.wait(), or end it with session.run.stop(). session.show() draws it."
            )
        self._tell_failure()

    def _tell_failure(self) -> None:
        """Say once that a background run failed, to someone who may not have looked at its cell."""
        run = self._run
        if run is None or run.told or run.state != "failed":
            return
        run.told = True
        warnings.warn(
            f"The background run failed, and its rows are kept: {run.error!r} (session.run.error)", stacklevel=4
        )

    def _new_model(self) -> None:
        self._state = State()

    def reset(self) -> Self:
        """Start anew: the weights of before the first epoch, an empty history, a new run folder. Files stay."""
        self._before_change("reset")
        original = self._state.original
        if original is not None and self._maker is not None:
            self._recipe = replace(self._recipe, model=self._make(self._maker))
        if original is not None:
            self.model.load_state_dict(original)  # which a maker alone does not give where weights were loaded
        self._state = State()
        return self

    # ------------------------------------------------------------------ what came of it

    @property
    def model(self) -> nn.Module:
        """The model with the weights of the history's last row: a plain module, also while workers train on."""
        if self._recipe.model is None:
            raise RecipeError("There is no model yet: .add_model(Net()).")
        if self._run is not None and self._run.state in ("running", "paused"):
            outcome = self._run.peek()
            if outcome is not None:
                self._recipe.model.load_state_dict(outcome.weights)
        return self._recipe.model

    @property
    def history(self) -> Any:
        """A pandas DataFrame: epoch (from 0), train_loss, valid_loss, the metrics, lr, time (seconds)."""
        return self._state.history.frame()

    @property
    def run(self) -> Run | None:
        """The latest run, or None."""
        return self._run

    @property
    def runs(self) -> Any:
        """A DataFrame of what was tried: a line for each call of train(), with the settings changed since the last."""
        return table(self._attempts)

    @property
    def folder(self) -> Path | None:
        """The folder of the training's history and checkpoint, or None where nothing was saved yet."""
        return self._state.folder

    def show(self) -> None:
        """Draw the live view again, with the whole history; it follows a run that is under way."""
        run = self._run
        live = run is not None and run.state in ("running", "paused")
        controls = run if live and run is not None and run.leaves_kernel_free else None
        view, _ = choose(self.settings.view or "auto", self._state.history, controls, self.settings.name)
        if live and run is not None:
            run.attach(view)
        else:
            view.close()

    def plot(self, log: bool = False) -> Any:
        """The loss curve as a matplotlib Figure.

        Args:
            log: draw the loss on a logarithmic scale.
        """
        from quik_nb.views.figure import figure

        return figure(self._state.history, log=log)

    def compare(self, log: bool = False) -> Any:
        """The curves of all attempts in one matplotlib Figure, named by what was changed.

        Args:
            log: draw the loss on a logarithmic scale.
        """
        from quik_nb.views.compare import overlay

        rows = {f"{n}: {a.changed or ('as before' if n else 'first')}": a.own for n, a in enumerate(self._attempts)}
        return overlay({name: History(values) for name, values in rows.items() if values}, log=log)

    def predict(self, data: Any) -> Any:
        """The model's outputs for all samples, in order, on the CPU.

        Args:
            data: anything that `add_data` takes, with or without a target, or the name of a split: "test".
        """
        return predict(self._checked("predict", "model"), self._source(data), self._device)

    def evaluate(self, split: Any = "valid") -> dict[str, float]:
        """The loss and the metrics of a split: `{"loss": ..., "accuracy": ...}`.

        Args:
            split: "train", "valid" or "test", or data of its own.
        """
        return evaluate(self._checked("evaluate", "model", "criterion"), self._source(split), self._device)

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
        recipe, name = self._checked("report", "model", "criterion"), split if isinstance(split, str) else "data"
        return report(recipe, self._source(split), self._device, label_names, name)

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
                f"so type numbers such as lr_find(start=1e-6, end=1.0, steps=100)."
            )
        return RateTest(range_test(recipe, self._device, start, end, steps))

    def _checked(self, what: str, *parts: str) -> Recipe:
        """The recipe, with the weights of the last row, if these parts are set."""
        calls = [call for part, call in self._recipe.missing().items() if part in parts]
        if calls:
            raise RecipeError(f"{what} needs more; still to type: " + ", ".join(f".{call}" for call in calls))
        self._tell_failure()
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
        original = self._state.original or recipe.model.state_dict()  # type: ignore[union-attr]
        made = None if self._maker is None else self._make(self._maker).state_dict()
        seeded = made is not None and all(torch.equal(made[key].cpu(), original[key].cpu()) for key in original)
        text = as_code(recipe, self._maker, seeded, beside=folder is not None)
        if folder is not None:
            write_script(text, recipe, original, Path(folder))
        return text

    # ------------------------------------------------------------------ files

    def load_epoch(self, epoch: int) -> Self:
        """Load the weights that were saved after an epoch of this session's training.

        Raises:
            CheckpointError: they were not saved, were overwritten by another training, or do not fit the model, which
                is then left as it was.
        """
        self._before_change("load_epoch")
        path = self._state.weights_file(epoch, self._files)
        load_into(self.model, read_weights(path), path.name)
        self._state.held = epoch
        return self

    def load_best(self) -> Self:
        """Load the weights of the epoch with the lowest valid_loss (train_loss where there is no validation split).

        Raises:
            CheckpointError: as `load_epoch`, or nothing was trained yet.
        """
        best = self._state.history.best
        if best is None:
            raise CheckpointError("There is no best epoch yet, as nothing was trained: session.train() first.")
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
        saved = read_session(where)
        session = cls()
        session._recipe = saved.recipe
        session._state = State(saved.history, saved.progress, saved.recipe, saved.original, folder=where)
        load_into(session.model, saved.weights, str(where))
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
        write_session(self._recipe, self._state, self._maker, Path(path))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A session as `save` wrote it, which goes on where that one stood, into a new run folder.

        The file holds code, such as the model's class, and reading runs it: read only files that you trust.

        Raises:
            CheckpointError: there is no such file, it is damaged, or it holds something else.
        """
        session = cls()
        session._recipe, session._state, session._maker = read_archive(Path(path))
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
        return summary_text(self._recipe, self._state.history, self._state.held)

    def _repr_html_(self) -> str:
        return summary_html(self._recipe, self._state.history, self._state.held)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_") or name.startswith("__")]


_BACKGROUND: "weakref.WeakSet[Run]" = weakref.WeakSet()
"""Runs that a kernel which ends must end with it."""


@atexit.register
def _end_background_runs() -> None:
    """Stop what still runs and give it a moment to keep its state, so that its folder can be resumed."""
    live = [run for run in _BACKGROUND if run.state in ("running", "paused")]
    for run in live:
        run.stop()
    until = time.monotonic() + EXIT_SECONDS
    for run in live:
        run.close(max(0.0, until - time.monotonic()))


QuikSession.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what Shift-Tab shows in a notebook
    list(inspect.signature(Settings).parameters.values())
)
