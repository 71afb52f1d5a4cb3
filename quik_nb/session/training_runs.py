"""Starts the runs of a session, one after the other, each from the state in which the previous one ended.

A call of `train()` is validated and placed, its initial state is computed, its run folder is opened, and it is
launched. The session's state changes when the first row of the run arrives: a run that fails before that leaves only
its entry in the log.

What is not here: how a run passes on events (`run.py`), and how its initial state is computed
(`training/carry_over.py`).
"""

import atexit
import time
import warnings
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from quik_nb.errors import CheckpointError, QuikWarning, RecipeError, message_of
from quik_nb.events import EpochEnd, Event, Notice, Row
from quik_nb.history import History
from quik_nb.launch.placement import Machine, Placement, Request, place
from quik_nb.launch.start import LAUNCHERS, launch
from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.validate import check
from quik_nb.session.listeners import Listeners
from quik_nb.session.recipe_builder import for_call
from quik_nb.session.run import Interrupts, Run
from quik_nb.session.run_log import RunLog
from quik_nb.storage.files import Files
from quik_nb.storage.run_folder import RunFolder, new_folder
from quik_nb.training.carry_over import TrainingState, continue_from
from quik_nb.training.job import Job, fit
from quik_nb.training.notebook_objects import objects_of, shared
from quik_nb.training.progress import Snapshot
from quik_nb.views.choose import choose, runs_headless

EXIT_SECONDS = 3.0
"""How long an exiting kernel waits for background runs to stop and save their state."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call of train() or traverse()."""

    given: Mapping[str, Any]
    """settings for this call, by name"""
    background: bool = False
    loop: Callable[[Any], Any] = fit
    """the loop to run on each rank: `fit` for train(), a custom one for traverse()"""

    def __post_init__(self) -> None:
        if not isinstance(self.background, bool):
            raise RecipeError(f"background={self.background!r} must be True or False.")


def checked_loop(loop: Any) -> Callable[[Any], Any]:
    """The loop that was passed to traverse().

    Raises:
        RecipeError: it is not callable.
    """
    if not callable(loop):
        raise RecipeError(
            f"traverse: {loop!r} is not callable, so it cannot be run on each rank: "
            f"pass a function, session.traverse(loop)."
        )
    return loop  # type: ignore[no-any-return]


class TrainingRuns:
    """The state of a session's training, the log of its runs, and the active run."""

    def __init__(self) -> None:
        self.state = TrainingState()
        self.log = RunLog()
        self.listeners = Listeners()
        self.latest: Run | None = None
        self._row_of_model: Row | None = None
        """the row whose weights the model has, during a run in workers"""
        self._active_folder: Path | None = None
        """of the active run; its first row makes it the folder of the state"""

    def start(self, recipe: Recipe, call: Call) -> Run:
        """Start a run; in the foreground, returns when it has ended.

        Args:
            recipe: of the session.
            call: the arguments of train() or traverse().

        Raises:
            RecipeError: the recipe is incomplete or invalid.
            PlacementError: the machine does not have the requested devices.
        """
        __tracebackhide__ = True
        requested = for_call(recipe, call.given)
        check(requested, own_loop=call.loop is not fit)
        settings = requested.settings
        request = Request(settings.processes, settings.device, settings.start_method, call.background)
        placement = place(request, Machine.detect())

        # a schedule spans the session's epochs, even if this call trains fewer
        plan = replace(requested, settings=replace(settings, epochs=recipe.settings.epochs))
        initial = continue_from(self.state, plan, lr=None if call.given.get("lr") is None else settings.lr)
        job = Job(plan, initial.progress.epoch + settings.epochs, str(placement), initial.progress, call.loop)

        interrupts = Interrupts()
        with interrupts.handled():
            in_background = call.background and not runs_headless()
            run = self._launch(job, placement, initial, interrupts if in_background else None)
            self.log.add(requested, initial.progress.epoch, run)
            self.latest = run

            if in_background:
                _BACKGROUND.add(run)
                run.background()
            else:
                run.foreground(interrupts)
        return run

    def _launch(self, job: Job, placement: Placement, initial: TrainingState, interrupts: Interrupts | None) -> Run:
        """Open the run folder, launch, and show the run; if any of it fails, all of it is undone.

        Args:
            job: what to train.
            placement: where.
            initial: the state to start from.
            interrupts: for a background run, those that arrive before it has started; None in the foreground.
        """
        settings = job.recipe.settings
        with ExitStack() as undo:
            folder, checkpointer = None, None
            if settings.save:
                folder, initial = _open_folder(initial)
                undo.callback(folder.discard)
                checkpointer = folder.checkpointer(initial, self.state.trained_by)

            running = undo.enter_context(launch(job, placement, checkpointer))
            pending = PendingState(self, initial, folder, job.model)
            run = Run(running, pending.history, pending.settle, pending.listen)

            controls = None if interrupts is None else run
            view, _ = choose(settings.view, pending.history, controls, settings.name, str(initial.folder or ""))
            run.attach(view)
            if LAUNCHERS[placement.launcher].copies_objects:
                self._tell_shared_objects(job, run)

            if interrupts is not None and interrupts.count:
                raise KeyboardInterrupt("the training was not started")
            undo.pop_all()
        self._active_folder = initial.folder
        return run

    def _tell_shared_objects(self, job: Job, run: Run) -> None:
        """Warn about objects used by both callbacks in this process and a step in workers, which have copies."""
        step = objects_of(job.recipe.step, job.loop if job.has_own_loop else None)
        for name in shared(step, objects_of(*self.listeners.functions)):
            run.tell(
                Notice(
                    f"shared with a callback: {name}",
                    f"{name} is used by the step and by a callback. The step runs in workers, each with a copy of "
                    f"{name}, so it does not see what the callback changes. Add a parameter epoch to the step "
                    f"if it needs the epoch, return StepOutput(loss, values={{...}}) to send numbers back, or use "
                    f"processes=1.",
                )
            )

    # ------------------------------------------------------------------ the active run

    @property
    def history(self) -> History:
        """Rows, annotations and live losses, including those of the active run."""
        if self.latest is not None and self.latest.is_active:
            return self.latest.record
        return self.state.history

    @property
    def folder(self) -> Path | None:
        """The run folder; that of the active run even before its first row."""
        if self.latest is not None and self.latest.is_active:
            return self._active_folder
        return self.state.folder

    def refuse_while_active(self, what: str) -> None:
        """Refuse to change a session while one of its runs is active.

        Args:
            what: the name of the method that would change it.

        Raises:
            RecipeError: a run is active.
        """
        if self.latest is not None and self.latest.is_active:
            raise RecipeError(
                f"{what}: a run of this session is {self.latest.state}, and a change now would mix two trainings: "
                f"use session.run.wait() or session.run.stop() first; session.show() draws the run."
            )

    def report_failure(self) -> None:
        """Warn once that a background run failed, since the user may not have looked at its cell."""
        run = self.latest
        if run is None or run.failure_reported or run.state != "failed" or run.error is None:
            return
        run.failure_reported = True
        error = f"{type(run.error).__name__}: {message_of(run.error)}"
        text = f"The background run failed, and its rows are kept: {error} (session.run.error)"
        warnings.warn(text, QuikWarning, stacklevel=4)

    def load_latest(self, model: nn.Module) -> None:
        """Load the weights of the active run's last row into the model; does nothing without a new row."""
        run = self.latest
        if run is None or not run.is_active or not run.record.rows:
            return
        row = run.record.rows[-1]
        if row is self._row_of_model:
            return
        snapshot = run.snapshot()
        if snapshot is not None:
            snapshot.load_into(model)
        self._row_of_model = row

    def show(self, view: str | bool, title: str) -> None:
        """Draw the live view again; it follows the active run.

        Args:
            view: as the setting.
            title: above the curve.
        """
        run = self.latest if self.latest is not None and self.latest.is_active else None
        controls = run if run is not None and run.in_background else None
        drawn, _ = choose(view or "auto", self.history, controls, title, str(self.folder or ""))
        if run is None:
            drawn.close()
        else:
            run.attach(drawn)


class PendingState:
    """The state of a run that becomes the session's state with its first row.

    Args:
        runs: of the session.
        initial: the state that the run starts from.
        folder: the run folder; None if nothing is saved.
        model: the user's model, which receives the weights of the last row.
    """

    def __init__(self, runs: TrainingRuns, initial: TrainingState, folder: RunFolder | None, model: nn.Module) -> None:
        self.history = initial.history.copy()
        self._runs = runs
        self._before = runs.state
        self._initial = initial
        self._folder = folder
        self._model = model
        self._has_row = False

    def listen(self, event: Event) -> None:
        """Handle an event that was recorded: the first row commits the state; then callbacks are called."""
        if isinstance(event, EpochEnd) and not self._has_row:
            self._has_row = True
            self._runs.state = replace(self._initial, history=self.history.copy())
        self._runs.listeners.call(event)

    def settle(self, outcome: Snapshot | None) -> None:
        """Commit the state of the last row, however the run ended; without a row, restore the state before the run.

        Args:
            outcome: weights and progress at the last row; None if no row was finished.

        Raises:
            CheckpointError: there were rows, but their state is lost.
        """
        if outcome is not None:
            outcome.load_into(self._model)

        if outcome is not None and outcome.row is not None:
            self._add_unreported(outcome.row)
            self._runs.state = replace(self._initial, history=self.history.copy(), progress=outcome.progress)
            self._close_folder(discard=False)
        else:
            self._runs.state = self._before
            self._close_folder(discard=not self._has_row)
        self._runs.log.settle()

        if outcome is None and self._has_row:
            raise CheckpointError(
                "The checkpoint of this run is gone, probably because its folder was deleted during the training, so "
                "the session is back in its state before the run: train again, and leave the run folder in place."
            )

    def _add_unreported(self, row: Row) -> None:
        """Add the last row if a worker saved it and was killed before it could report it."""
        last = self.history.rows[-1] if self.history.rows else None
        if last is None or (last.epoch, last.fraction) < (row.epoch, row.fraction):
            self.history.add(row)

    def _close_folder(self, discard: bool) -> None:
        if self._folder is None:
            return
        if discard:
            self._folder.discard()
        else:
            self._folder.release()


def _open_folder(state: TrainingState) -> tuple[RunFolder, TrainingState]:
    """The folder that a run writes to, and its initial state with that folder."""
    assert state.trained_by is not None  # the recipe of the run
    settings = state.trained_by.settings
    files = Files(Path(settings.base_dir).absolute(), settings.date)
    folder = RunFolder.open(state.folder, new_folder(files, time.strftime("%H%M%S"), settings.name))
    if folder.path == state.folder:
        return folder, state
    earlier = state.earlier_folder if state.folder is None else (state.folder, state.progress.epoch)
    return folder, replace(state, folder=folder.path, earlier_folder=earlier)


_BACKGROUND: "weakref.WeakSet[Run]" = weakref.WeakSet()
"""Background runs that must be stopped when the kernel exits."""


@atexit.register
def _end_background_runs() -> None:
    """Stop active background runs and let them save their state, so that their folders can be resumed."""
    active = [run for run in _BACKGROUND if run.is_active]
    for run in active:
        run.stop()
    until = time.monotonic() + EXIT_SECONDS
    for run in active:
        run.close(max(0.0, until - time.monotonic()))
