"""The runs of a session: started one after the other, each from the state that the one before left.

A call of `train()` is checked and placed, its starting state is computed, its folder is opened, and it is launched. The
session's state changes when the run's first row has come home, and not before: a run that fails earlier leaves no trace
but its line in the log.
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

from quik_nb.errors import CheckpointError, RecipeError, message_of
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
"""How long a kernel that ends waits for a background run to stop and keep its state."""


@dataclass(frozen=True)
class Call:
    """What one call of train() or traverse() asks for."""

    given: Mapping[str, Any]
    """settings for this call, by name"""
    background: bool = False
    loop: Callable[[Any], Any] = fit
    """called on each rank: that of train(), or the one that traverse() was given"""

    def __post_init__(self) -> None:
        if not isinstance(self.background, bool):
            raise RecipeError(f"background={self.background!r} must be True or False.")


def checked_loop(loop: Any) -> Callable[[Any], Any]:
    """The loop that traverse() was given.

    Raises:
        RecipeError: it cannot be called.
    """
    if not callable(loop):
        raise RecipeError(f"traverse: {loop!r} is no function of a loop: use session.traverse(loop).")
    return loop  # type: ignore[no-any-return]


class TrainingRuns:
    """The state of a session's training, the runs that led to it, and the one under way."""

    def __init__(self) -> None:
        self.state = TrainingState()
        self.log = RunLog()
        self.listeners = Listeners()
        self.latest: Run | None = None
        self._row_of_model: Row | None = None
        """while a run trains elsewhere: the row whose weights the model has"""
        self._active_folder: Path | None = None
        """of the run under way, which becomes that of the state with the first row"""

    def start(self, recipe: Recipe, call: Call) -> Run:
        """Start a run, and see it through unless it is one in the background.

        Args:
            recipe: of the session.
            call: what is asked for.
        """
        __tracebackhide__ = True
        asked = for_call(recipe, call.given)
        check(asked, own_loop=call.loop is not fit)
        settings = asked.settings
        request = Request(settings.processes, settings.device, settings.start_method, call.background)
        placement = place(request, Machine.detect())

        # a schedule spans the session's own epochs, also where this call trains fewer of them
        plan = replace(asked, settings=replace(settings, epochs=recipe.settings.epochs))
        begun = continue_from(self.state, plan, lr=None if call.given.get("lr") is None else settings.lr)
        job = Job(plan, begun.progress.epoch + settings.epochs, str(placement), begun.progress, call.loop)

        interrupts = Interrupts()
        with interrupts.heard():
            in_background = call.background and not runs_headless()
            run = self._launch(job, placement, begun, interrupts if in_background else None)
            self.log.add(asked, begun.progress.epoch, run)
            self.latest = run
            if in_background:
                _BACKGROUND.add(run)
                run.background()
            else:
                run.foreground(interrupts)
        return run

    def _launch(self, job: Job, placement: Placement, begun: TrainingState, interrupts: Interrupts | None) -> Run:
        """Open the folder, launch, and show the run; whatever fails on the way, all of it is undone.

        Args:
            job: what to train.
            placement: where.
            begun: the state that it starts from.
            interrupts: those that a run in the background obeys as long as it has not begun; None in the foreground.
        """
        settings = job.recipe.settings
        with ExitStack() as undo:
            folder, checkpointer = None, None
            if settings.save:
                folder, begun = _open_folder(begun)
                undo.callback(folder.discard)
                checkpointer = folder.checkpointer(begun, self.state.trained_by)

            running = undo.enter_context(launch(job, placement, checkpointer))
            assert job.recipe.model is not None  # which has been checked
            coming = ComingState(self, begun, folder, job.recipe.model)
            run = Run(running, coming.history, coming.settle, coming.listen)
            controls = None if interrupts is None else run
            view, _ = choose(settings.view, coming.history, controls, settings.name, str(begun.folder or ""))
            run.attach(view)
            if LAUNCHERS[placement.launcher].creates_processes:
                self._tell_shared_objects(job, run)
            if interrupts is not None and interrupts.count:
                raise KeyboardInterrupt("the training was not begun")
            undo.pop_all()
        self._active_folder = begun.folder
        return run

    def _tell_shared_objects(self, job: Job, run: Run) -> None:
        """Tell of what callbacks in this process and a step in workers both reach for, and do not share."""
        step = objects_of(job.recipe.step, job.loop if job.has_own_loop else None)
        for name in shared(step, objects_of(*self.listeners.functions)):
            run.tell(
                Notice(
                    f"shared with a callback: {name}",
                    f"{name} is read by the step and by a callback. The step trains in workers, each with a copy of "
                    f"{name}, so what the callback changes is not seen there. Take epoch as a parameter of the step "
                    f"to know where it stands, return StepOutput(loss, values={{...}}) to bring numbers back, or train "
                    f"with processes=1.",
                )
            )

    # ------------------------------------------------------------------ the run under way

    @property
    def history(self) -> History:
        """Rows, annotations and live losses, those of a run that is under way among them."""
        if self.latest is not None and self.latest.is_active:
            return self.latest.record
        return self.state.history

    @property
    def folder(self) -> Path | None:
        """The run folder, also that of a run under way which has no row yet."""
        if self.latest is not None and self.latest.is_active:
            return self._active_folder
        return self.state.folder

    def refuse_while_active(self, what: str) -> None:
        """Raise where a run is under way that a change would disturb.

        Args:
            what: the method that would change something.

        Raises:
            RecipeError: a run is under way.
        """
        if self.latest is not None and self.latest.is_active:
            raise RecipeError(
                f"{what}: a run of this session is {self.latest.state}, and this would mix two trainings: "
                f"wait for it with session.run.wait(), or end it with session.run.stop(). session.show() draws it."
            )

    def report_failure(self) -> None:
        """Say once that a background run failed, to someone who may not have looked at its cell."""
        run = self.latest
        if run is None or run.failure_reported or run.state != "failed" or run.error is None:
            return
        run.failure_reported = True
        error = f"{type(run.error).__name__}: {message_of(run.error)}"
        warnings.warn(f"The background run failed, and its rows are kept: {error} (session.run.error)", stacklevel=4)

    def load_latest(self, model: nn.Module) -> None:
        """Load the weights of the last row of a run that trains elsewhere; without a new row, nothing is read."""
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
        """Draw the live view again; it follows a run that is under way.

        Args:
            view: as the setting.
            title: over the curve.
        """
        run = self.latest if self.latest is not None and self.latest.is_active else None
        controls = run if run is not None and run.in_background else None
        drawn, _ = choose(view or "auto", self.history, controls, title, str(self.folder or ""))
        if run is None:
            drawn.close()
        else:
            run.attach(drawn)


class ComingState:
    """The state that a run leads to, which becomes that of the session when the first row has come home.

    Args:
        runs: of the session.
        begun: the state that the run starts from.
        folder: that it writes into; None where nothing is saved.
        model: of the user, which gets the weights of the last row.
    """

    def __init__(self, runs: TrainingRuns, begun: TrainingState, folder: RunFolder | None, model: nn.Module) -> None:
        self.history = begun.history.copy()
        self._runs = runs
        self._before = runs.state
        self._begun = begun
        self._folder = folder
        self._model = model
        self._has_row = False

    def listen(self, event: Event) -> None:
        """Take in an event that was recorded, and call the user's functions."""
        if isinstance(event, EpochEnd) and not self._has_row:
            self._has_row = True
            self._runs.state = replace(self._begun, history=self.history.copy())
        self._runs.listeners.call(event)

    def settle(self, outcome: Snapshot | None) -> None:
        """Take over the state of the last row, however the run ended; without a row, nothing has happened.

        Args:
            outcome: the weights and the progress; None where no row was finished.

        Raises:
            CheckpointError: there were rows, and their state is gone.
        """
        if outcome is not None:
            outcome.load_into(self._model)
        if outcome is not None and outcome.row is not None:
            self._add_unreported(outcome.row)
            self._runs.state = replace(self._begun, history=self.history.copy(), progress=outcome.progress)
            self._close_folder(discard=False)
        else:
            self._runs.state = self._before
            self._close_folder(discard=not self._has_row)
        self._runs.log.settle()

        if outcome is None and self._has_row:
            raise CheckpointError(
                "The checkpoint of this run is gone, as after its folder was deleted while it trained, so the session "
                "is as it was before the run: train again, and leave the run folder in place."
            )

    def _add_unreported(self, row: Row) -> None:
        """Add the last row where a worker that was killed saved it and did not report it."""
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
    """The folder that a run writes into, and its state with that folder in it."""
    assert state.trained_by is not None  # the recipe of the run
    settings = state.trained_by.settings
    files = Files(Path(settings.base_dir).absolute(), settings.date)
    folder = RunFolder.open(state.folder, new_folder(files, time.strftime("%H%M%S"), settings.name))
    if folder.path == state.folder:
        return folder, state
    earlier = state.earlier_folder if state.folder is None else (state.folder, state.progress.epoch)
    return folder, replace(state, folder=folder.path, earlier_folder=earlier)


_BACKGROUND: "weakref.WeakSet[Run]" = weakref.WeakSet()
"""Runs that a kernel which ends must end with it."""


@atexit.register
def _end_background_runs() -> None:
    """Stop what still runs and give it a moment to keep its state, so that its folder can be resumed."""
    active = [run for run in _BACKGROUND if run.is_active]
    for run in active:
        run.stop()
    until = time.monotonic() + EXIT_SECONDS
    for run in active:
        run.close(max(0.0, until - time.monotonic()))
