"""The trainings of a session: started, listened to, taken home; and the one that runs now.

A call of `train()` checks the recipe, decides where, launches, and takes the state home when it is over.
"""

import atexit
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from torch import nn

from quik_nb.errors import RecipeError, suggest
from quik_nb.events import Annotation
from quik_nb.launch.forkserver import warm_up
from quik_nb.launch.placement import Machine, Placement, Request, place
from quik_nb.launch.start import launch
from quik_nb.recipe.equality import same
from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.settings import OPTIMIZER_DEFAULTS
from quik_nb.recipe.validate import check
from quik_nb.session.recipe_builder import Steps
from quik_nb.session.run import Interrupts, Run
from quik_nb.session.run_log import RunRecord, described, difference, table
from quik_nb.storage.run_state import State
from quik_nb.training.carry_over import base_rate, carried, same_loss
from quik_nb.training.job import Job, fit
from quik_nb.training.progress import Snapshot
from quik_nb.views.choose import choose, runs_headless

EVENTS = {"RunStart": "run_start", "StepEnd": "step_end", "EpochEnd": "epoch_end", "RunEnd": "run_end"}
"""The events that `on` knows, by the name of their record."""

EXIT_SECONDS = 3.0
"""How long a kernel that ends waits for a background run to stop and keep its state."""


class Runs(Steps):
    """A recipe that can be trained, again and again.

    Args:
        settings: the session's settings by name.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._state = State()
        self._attempts: list[RunRecord] = []
        self._listeners: list[tuple[str, Callable[[Any], None]]] = []
        self._run: Run | None = None
        if Machine.detect().gpus > 1 or self.settings.processes not in ("auto", 1):
            warm_up()  # workers are likely, and a server that is ready saves their first start two seconds

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
        if not callable(loop):
            raise RecipeError(f"traverse: {loop!r} is no function of a loop: type session.traverse(loop).")
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
        with interrupts.heard(), self._state.released_on_error():
            run = self._start(recipe, placement, loop, given)
            leaves = background and not runs_headless()
            if leaves and interrupts.count:
                run.discard()
                raise KeyboardInterrupt("the training was not begun")
            try:
                controls = run if leaves else None
                folder = str(self.folder or "")
                view, _ = choose(settings.view, self._state.history, controls, settings.name, folder)
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
        if changes.get("lr") is not None and recipe.scheduler is not None and recipe.scheduler.takes("max_lr"):
            raise RecipeError(
                f"lr={changes['lr']!r} was asked for, and {recipe.scheduler.name} sets the rate itself: type "
                f"set_scheduler({recipe.scheduler.name}, max_lr={changes['lr']!r}), or set_scheduler(None) for none."
            )
        if recipe.optimizer is not None:
            instead = {name for name in OPTIMIZER_DEFAULTS if changes.get(name) is not None}
            own = {k: v for k, v in recipe.optimizer.keywords.items() if k not in instead}
            recipe = replace(recipe, optimizer=replace(recipe.optimizer, keywords=own))
        return recipe

    def _start(
        self, recipe: Recipe, placement: Placement, loop: Callable[[Any], Any] | None, given: dict[str, Any]
    ) -> Run:
        state = self._state
        held, unfinished = state.held, state.progress.step > 0
        rate = None if given.get("lr") is None else recipe.settings.lr
        if rate is not None and base_rate(state.progress) not in (None, rate):  # run.set_lr() left another
            state.progress = replace(state.progress, scheduler=None, schedule_end=0)
        progress = carried(state.progress, state.trained, recipe, other_weights=held is not None)
        if state.trained is not None and not same_loss(state.trained, recipe):
            state.history.record(Annotation(progress.epoch, "another loss", breaks_comparison=True))
        if held is not None and (unfinished or held != progress.epoch - 1):
            state.history.record(Annotation(progress.epoch, f"from epoch {held}"))
        state.held = None
        # the schedule spans the session's own epochs, also where this call trains fewer of them
        plan = replace(recipe, settings=replace(recipe.settings, epochs=self.settings.epochs))
        job = Job(plan, progress.epoch + recipe.settings.epochs, str(placement), progress, loop or fit)
        heard = loop is not None or bool(self._listeners)  # by code of the user's own, which may look for the files
        started = launch(job, placement, state.begin(plan, at_once=heard))
        self._run = run = Run(started, state.history, self._settle, self._listen)
        words = described(recipe)
        before = self._attempts[-1].settings if self._attempts else None
        changed = difference(before, words)
        for attempt in self._attempts:
            attempt.let_go()
        self._attempts.append(RunRecord(words, progress.epoch, state.history, run, changed))
        return run

    def _settle(self, outcome: Snapshot | None) -> None:
        """Take the state of the last row home, however the run ended."""
        if outcome is not None:
            self._recipe.model.load_state_dict(outcome.weights)  # type: ignore[union-attr]
            self._state.settle(outcome)
        self._state.release()
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

    # ------------------------------------------------------------------ how it stands

    @property
    def model(self) -> nn.Module:
        """The model with the weights of the history's last row: a plain module, also while workers train on."""
        if self._recipe.model is None:
            raise RecipeError("There is no model yet: .add_model(Net()).")
        if self._run is not None and self._run.state in ("running", "paused"):
            outcome = self._run.snapshot()
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
        folder = str(self.folder or "")
        view, _ = choose(self.settings.view or "auto", self._state.history, controls, self.settings.name, folder)
        if live and run is not None:
            run.attach(view)
        else:
            view.close()


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
