"""`Run`, the handle of one training: passes events on to history, views and callbacks, and commands to the ranks.

What is not here: how ranks are started (`launch/`), and what a run leaves in the session (`training_runs.py`).
"""

import contextvars
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from quik_nb.errors import QuikWarning, RecipeError, StopTraining, WorkerError, message_of
from quik_nb.events import Event, Notice, Output, PauseChanged, RunEnd, RunFailed, RunStart
from quik_nb.history import History
from quik_nb.launch.base import Running
from quik_nb.training.progress import Snapshot
from quik_nb.views.base import View
from quik_nb.views.choose import cell_number

if TYPE_CHECKING:
    import pandas as pd


KILLED_SECONDS = 3.0
"""How long to wait for killed workers to exit and for their last checkpoint to be read."""


class Interrupts:
    """A SIGINT handler that counts interrupts, so that one during the set-up of a run is neither lost nor does damage.

    Signals are handled in the main thread only; in other threads nothing changes.
    """

    def __init__(self) -> None:
        self.count = 0
        """interrupts so far"""
        self.act: Callable[[int], None] = self._raise_on_second
        """called with the number of each interrupt, 1 for the first"""

    def _raise_on_second(self, count: int) -> None:
        if count > 1:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.act(self.count)

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Install the handler, and restore the previous one afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        before: Any = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


class Run:
    """The handle of one training, as `session.train()` returns it.

    Attributes:
        state: "running", "paused", "finished", "stopped" or "failed".
        error: the exception that a failed run ended with, else None.
        record: rows, annotations and live losses so far, as views draw them.
        in_background: whether it runs in the background, so that other cells can be run and its buttons work.
        failure_reported: whether the user has seen its error; False for a background run until `wait()` or a later
            call of the session reports it.
    """

    def __init__(
        self,
        running: Running,
        history: History,
        settle: Callable[[Snapshot | None], None],
        listen: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._running: Running | None = running
        """None once it has ended, so that model, optimizer and data can be freed"""
        self.record = history
        self._commands = running.commands
        self._settle = settle
        self._listen = listen
        self._views: list[tuple[View, contextvars.Context]] = []
        """each with the context of its cell, by which ipykernel routes output to that cell"""
        self._start: RunStart | None = None
        self._done = threading.Event()
        self._drawing = threading.RLock()
        """guards the views: the training's thread draws, and so does a cell that pauses the run or attaches a view"""
        self.in_background = False
        self.state = "stopped"  # until it starts, so that an interrupt before that leaves no active run
        self.error: BaseException | None = None
        self.failure_reported = True
        self._cell = cell_number()
        self._ending = False
        self._ended = False
        self._end: RunEnd | RunFailed | None = None

    @property
    def is_active(self) -> bool:
        """Whether it is running or paused."""
        return self.state in ("running", "paused")

    @property
    def history(self) -> "pd.DataFrame":
        """The rows so far as a DataFrame: epoch (from 0), train_loss, valid_loss, metrics, lr, time (seconds)."""
        return self.record.frame()

    # ------------------------------------------------------------------ commands

    def stop(self) -> None:
        """Stop the run at the next step boundary; history, weights and training state are saved."""
        self._commands.stop()

    def pause(self) -> None:
        """Pause the run at the next step boundary, until `resume()` or `stop()`."""
        self._commands.pause()
        self._change_state("running", "paused")

    def resume(self) -> None:
        """Continue after `pause()`."""
        self._commands.resume()
        self._change_state("paused", "running")

    def _change_state(self, before: str, after: str) -> None:
        with self._drawing:
            if self.state == before:
                self.state = after
                self._show(PauseChanged(after == "paused"))

    def set_lr(self, lr: float) -> None:
        """Set the learning rate from the next step on.

        Other parameter groups and the rest of a schedule are scaled by the same factor. The rate stays in effect in
        later calls of `train()`, until one passes `lr=`.

        Args:
            lr: learning rate of the first parameter group.

        Raises:
            RecipeError: `lr` is not a number above 0.
        """
        try:
            rate = float(lr)
        except (TypeError, ValueError):
            rate = math.nan
        if not 0 < rate < math.inf:
            raise RecipeError(
                f"set_lr({lr!r}): a learning rate is a number above 0, so the run continues with the current one: "
                f"use run.set_lr(3e-4)."
            )
        self._commands.set_lr(rate)

    def wait(self, timeout: float | None = None) -> "Run":
        """Wait until the run has ended.

        Args:
            timeout: seconds to wait at most; None to wait as long as the run takes.

        Returns:
            The run itself, which is still active if the timeout has passed.

        Raises:
            Exception: the error of a failed run.
        """
        self._done.wait(timeout)
        if self.error is not None:
            self.failure_reported = True
            raise self.error
        return self

    def close(self, timeout: float) -> None:
        """Wait for a stopped run to end, and kill its workers if it does not.

        Args:
            timeout: seconds to wait before the workers are killed.
        """
        running = self._running
        if not self._done.wait(timeout) and running is not None:
            running.kill()
            self._done.wait(KILLED_SECONDS)

    def snapshot(self) -> Snapshot | None:
        """The state of the last row of a run in workers; None once the session has it already."""
        running = self._running
        return None if running is None else running.snapshot()

    def attach(self, view: View) -> None:
        """Add a view, which draws the history so far and then every further event."""
        with self._drawing:
            if self._start is not None:
                view.show(self._start)
            if self.state == "paused":
                view.show(PauseChanged(True))
            if self._end is not None:
                view.show(self._end)
            if self._ended:
                view.close()
            else:
                self._views.append((view, contextvars.copy_context()))

    # ------------------------------------------------------------------ the loop

    def foreground(self, interrupts: Interrupts) -> None:
        """Run to the end in this thread; the first interrupt stops at a step boundary, the second one immediately."""
        __tracebackhide__ = True
        interrupts.act = self._interrupted
        if interrupts.count:
            self.stop()
        self.state = "running"
        self._consume()
        error = self.error
        if error is not None and any(isinstance(e, WorkerError) for e in (error, error.__cause__)):
            raise error.with_traceback(None)  # the message has the worker's frames; those of this process do not help
        if error is not None:
            raise error
        if interrupts.count:
            raise KeyboardInterrupt("the training was stopped; its rows, weights and state are kept") from None

    def background(self) -> None:
        """Run to the end in a thread; returns immediately."""
        self.in_background = True
        self.failure_reported = False
        self.state = "running"
        here = contextvars.copy_context()
        threading.Thread(target=here.run, args=(self._consume,), name="quik_nb run", daemon=True).start()

    def _consume(self) -> None:
        __tracebackhide__ = True
        running = self._running
        assert running is not None  # a run is consumed only once

        try:
            with running:
                self._train(running)
        except BaseException as error:
            self._fail(error)

        try:
            self._collect_result(running)
        except BaseException as error:
            self._fail(error)
        finally:
            self._running = None
            # only now, since other threads read the model as soon as the run is no longer active
            self.state = self._end.state if isinstance(self._end, RunEnd) and self.error is None else "failed"
            self._close_views()
            self._done.set()

    def _train(self, running: Running) -> None:
        __tracebackhide__ = True
        try:
            running.events(self._process)
        except BaseException as error:  # `foreground` and `wait` raise it again
            self._fail(error)
        self._ending = True

    def _fail(self, error: BaseException) -> None:
        """Store and show the first error; a further one becomes a note of it."""
        if self.error is not None:
            kind, message = type(error).__name__, message_of(error)
            self.error.add_note(f"quik_nb: in addition, the final state could not be retrieved: {kind}: {message}")
            return
        self.error = error
        if not isinstance(error, KeyboardInterrupt):
            self._end = RunFailed(f"{type(error).__name__}: {message_of(error)}")
            self._show(self._end)

    def _collect_result(self, running: Running) -> None:
        """Record events that arrived late, and pass the final state on to the session."""
        for event in running.undelivered:
            self.record.record(event)

        outcome = None
        try:
            outcome = running.snapshot()
        finally:
            self._settle(outcome)

    def _close_views(self) -> None:
        with self._drawing:
            self._ended = True
            self._draw(lambda view: view.close(), self._views)
            self._views.clear()

    def _interrupted(self, count: int) -> None:
        if count == 1:
            self.stop()
        elif count == 2 and not self._ending:  # only once: a third one would interrupt the shutdown
            raise KeyboardInterrupt

    def tell(self, notice: Notice) -> None:
        """Tell the user something, as a warning, once per cause."""
        self._process(notice)

    def _process(self, event: Event) -> None:
        """Record an event, show it in the views, and call the user's callbacks with it."""
        is_new = isinstance(event, Notice) and event.cause not in self.record.notices
        self.record.record(event)

        match event:
            case Notice() if is_new:
                warnings.warn(event.text, QuikWarning, stacklevel=2)
            case RunStart():
                self._start = event
            case RunEnd():
                self._end = event

        self._show(event)
        try:
            self._listen(event)
        except StopTraining:
            self.stop()

    def _show(self, event: Event) -> None:
        with self._drawing:
            # output of workers is shown once, in the latest view; all other events in every view
            views = self._views[-1:] if isinstance(event, Output) else self._views
            self._draw(lambda view: view.show(event), views)

    def _draw(self, act: Callable[[View], None], views: list[tuple[View, contextvars.Context]]) -> None:
        """Let views draw; one that fails is dropped with a warning, since drawing must not end a training."""
        for view, cell in list(views):
            try:
                cell.run(act, view)
            except Exception as error:
                self._views.remove((view, cell))
                reason = f"{type(error).__name__}: {message_of(error)}"
                text = f"The live view failed ({reason}), and the training continues without it: use session.show()."
                warnings.warn(text, QuikWarning, stacklevel=2)

    def _ipython_display_(self) -> None:
        """Show nothing in the cell that trains, which has the view; one line in any other cell."""
        if self._cell is None or cell_number() != self._cell:
            print(repr(self))

    def __repr__(self) -> str:
        return f"Run({self.state}: {self.record!r})"
