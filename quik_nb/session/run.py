"""One training, in the foreground or in the background: events to history and views, and the commands."""

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
"""How long workers that were killed may take to be gone, and their state to come home."""


class Interrupts:
    """Hears interrupts, so that one which comes while a run is still being prepared is not lost, and loses nothing.

    Signals are handled in the main thread only; elsewhere nothing changes.
    """

    def __init__(self) -> None:
        self.count = 0
        self.act: Callable[[int], None] = self._give_up
        """called with the number of each interrupt, 1 for the first"""

    def _give_up(self, count: int) -> None:
        if count > 1:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.act(self.count)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Within it, interrupts are counted and acted upon."""
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
        in_background: whether it leaves the kernel free, so that other cells and its buttons work.
        failure_reported: whether the user knows how it ended: False for a background run, until someone asks.
    """

    def __init__(
        self,
        running: Running,
        history: History,
        settle: Callable[[Snapshot | None], None],
        listen: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._running: Running | None = running
        """until it is over: model, optimizer and data hang on it"""
        self.record = history
        self._commands = running.commands
        self._settle = settle
        self._listen = listen
        self._views: list[tuple[View, contextvars.Context]] = []
        """each with the context it came from, by which a kernel knows under which cell its output belongs"""
        self._start: RunStart | None = None
        self._done = threading.Event()
        self._drawing = threading.RLock()
        """held while the views are told something: the training's thread does it, and a cell that pauses or attaches"""
        self.in_background = False
        self.state = "stopped"  # until it begins: an interrupt before that leaves nothing under way
        self.error: BaseException | None = None
        self.failure_reported = True
        self._cell = cell_number()
        self._ending = False
        self._ended = False
        self._end: RunEnd | RunFailed | None = None

    @property
    def is_active(self) -> bool:
        """Whether it is under way: running or paused."""
        return self.state in ("running", "paused")

    @property
    def history(self) -> "pd.DataFrame":
        """The rows so far: epoch, train_loss, valid_loss, metrics, lr, time (seconds)."""
        return self.record.frame()

    # ------------------------------------------------------------------ commands

    def stop(self) -> None:
        """End the run at the next step boundary; everything is kept."""
        self._commands.stop()

    def pause(self) -> None:
        """Hold the run at the next step boundary, until `resume()` or `stop()`."""
        self._commands.pause()
        self._hold("running", "paused")

    def resume(self) -> None:
        """Go on after `pause()`."""
        self._commands.resume()
        self._hold("paused", "running")

    def _hold(self, before: str, after: str) -> None:
        with self._drawing:
            if self.state == before:
                self.state = after
                self._tell(PauseChanged(after == "paused"))

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the first parameter group from the next step on; the others are scaled alike.

        So is what is left of a schedule. It holds in later calls of `train()` as well, until one is given `lr=`.

        Raises:
            RecipeError: it is not a number above 0.
        """
        try:
            rate = float(lr)
        except (TypeError, ValueError):
            rate = math.nan
        if not 0 < rate < math.inf:
            raise RecipeError(
                f"set_lr({lr!r}): a learning rate is a number above 0, so the run goes on with the one it has. "
                f"Type run.set_lr(3e-4)."
            )
        self._commands.set_lr(rate)

    def wait(self, timeout: float | None = None) -> "Run":
        """Wait until the run has ended; raises the error of a failed run.

        Args:
            timeout: seconds to wait at most; None for as long as it takes.
        """
        self._done.wait(timeout)
        if self.error is not None:
            self.failure_reported = True
            raise self.error
        return self

    def close(self, timeout: float) -> None:
        """Wait for the end of a run that was stopped; end it the hard way if that does not come within some seconds."""
        running = self._running
        if not self._done.wait(timeout) and running is not None:
            running.kill()
            self._done.wait(KILLED_SECONDS)

    def snapshot(self) -> Snapshot | None:
        """The state of the last row so far, where the training goes on elsewhere; None where it is at hand already."""
        running = self._running
        return None if running is None else running.snapshot()

    def attach(self, view: View) -> None:
        """Add a view: it draws what the history holds and follows on."""
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
        """Consume the run here. The first interrupt stops it at a step boundary, a second one at once."""
        __tracebackhide__ = True
        interrupts.act = self._interrupted
        if interrupts.count:
            self.stop()
        self.state = "running"
        self._consume()
        error = self.error
        if error is not None and any(isinstance(e, WorkerError) for e in (error, error.__cause__)):
            raise error.with_traceback(None)  # the worker's own frames stand in its message; ours tell nothing
        if error is not None:
            raise error
        if interrupts.count:
            raise KeyboardInterrupt("the training was stopped; its rows, weights and state are kept") from None

    def background(self) -> None:
        """Consume the run in a thread; returns at once."""
        self.in_background = True
        self.failure_reported = False
        self.state = "running"
        here = contextvars.copy_context()
        threading.Thread(target=here.run, args=(self._consume,), name="quik_nb run", daemon=True).start()

    def _consume(self) -> None:
        __tracebackhide__ = True
        running = self._running
        assert running is not None  # a run is consumed once
        try:
            with running:
                self._train(running)
        except BaseException as error:
            self._fail(error)
        try:
            self._bring_home(running)
        except BaseException as error:
            self._fail(error)
        finally:
            self._running = None
            # not before the state is home, or who looks at it takes the old weights
            self.state = self._end.state if isinstance(self._end, RunEnd) and self.error is None else "failed"
            self._close_views()
            self._done.set()

    def _train(self, running: Running) -> None:
        __tracebackhide__ = True
        try:
            running.events(self._take)
        except BaseException as error:  # kept, shown, and raised again by the caller
            self._fail(error)
        self._ending = True

    def _fail(self, error: BaseException) -> None:
        """Keep the first error; one that comes on top of it is noted there."""
        if self.error is not None:
            kind, message = type(error).__name__, message_of(error)
            self.error.add_note(f"quik_nb: in addition, the final state could not be retrieved: {kind}: {message}")
            return
        self.error = error
        if not isinstance(error, KeyboardInterrupt):
            self._end = RunFailed(f"{type(error).__name__}: {message_of(error)}")
            self._tell(self._end)

    def _bring_home(self, running: Running) -> None:
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
        elif count == 2 and not self._ending:  # once only: a further one would break the ending off half way
            raise KeyboardInterrupt

    def tell(self, notice: Notice) -> None:
        """Tell the user something, unless it was told before."""
        self._take(notice)

    def _take(self, event: Event) -> None:
        is_new = isinstance(event, Notice) and event.cause not in self.record.notices
        self.record.record(event)
        match event:
            case Notice() if is_new:
                warnings.warn(event.text, QuikWarning, stacklevel=2)
            case RunStart():
                self._start = event
            case RunEnd():
                self._end = event
        self._tell(event)
        try:
            self._listen(event)
        except StopTraining:
            self.stop()

    def _tell(self, event: Event) -> None:
        with self._drawing:
            # what a worker printed is shown once, where the user looked last; all else in every view
            views = self._views[-1:] if isinstance(event, Output) else self._views
            self._draw(lambda view: view.show(event), views)

    def _draw(self, act: Callable[[View], None], views: list[tuple[View, contextvars.Context]]) -> None:
        """Have views draw; one that fails is dropped with a warning: a picture is no reason to lose a training."""
        for view, cell in list(views):
            try:
                cell.run(act, view)
            except Exception as error:
                self._views.remove((view, cell))
                words = "The training goes on without its picture; session.show() draws it anew"
                warnings.warn(f"{words}. Drawing failed: {type(error).__name__}: {message_of(error)}", stacklevel=2)

    def _ipython_display_(self) -> None:
        """Show nothing under the cell that trains, where the view has shown it already; in another cell, a line."""
        if self._cell is None or cell_number() != self._cell:
            print(repr(self))

    def __repr__(self) -> str:
        return f"Run({self.state}: {self.record!r})"
