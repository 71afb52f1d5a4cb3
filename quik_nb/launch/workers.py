"""Training in worker processes: started, listened to, and ended whatever happens.

Each worker runs the same loop as this process would (`worker.py`). Rank 0's events come through a pipe; its state comes
as a checkpoint file that it writes before it sends the event that tells of it.
"""

import logging
import os
import pickle
import shutil
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from quik_nb.errors import WorkerError
from quik_nb.events import Event, RunEnd
from quik_nb.launch.failure import Failure, as_error, killed, root_cause, shown, shown_frames, stack_frames
from quik_nb.launch.forkserver import context, starting
from quik_nb.launch.placement import Placement
from quik_nb.launch.process_state import ProcessState, handle_log
from quik_nb.launch.transfer import SCRATCH, write_job
from quik_nb.launch.worker import DONE, WorkerConfig, work
from quik_nb.storage.checkpointer import CHECKPOINT, Checkpointer, read_checkpoint
from quik_nb.storage.files import stamp
from quik_nb.training.commands import SharedCommands
from quik_nb.training.job import Job
from quik_nb.training.progress import Snapshot

GRACE_SECONDS = 2.0
"""How long the error of a lost connection waits for the error that caused it."""


@dataclass
class Worker:
    """One rank's process, as the launching process sees it."""

    rank: int
    process: BaseProcess
    receiver: Connection
    """through which its messages come; closed once there can be no more"""
    is_done: bool = False
    """whether it came to its end"""
    has_failed: bool = False

    @property
    def is_training(self) -> bool:
        """Whether it has neither come to its end nor failed, as far as is known."""
        return not self.is_done and not self.has_failed

    def messages(self) -> list[Any]:
        """What it has sent since the last call."""
        received: list[Any] = []
        try:
            while not self.receiver.closed and self.receiver.poll():
                received.append(self.receiver.recv())
        except (EOFError, OSError, pickle.UnpicklingError):  # its end, perhaps in the middle of a message
            self.receiver.close()
        return received

    def kill(self) -> None:
        """Kill it, if it was started."""
        if self.process.pid is not None:
            self.process.kill()

    def join(self) -> None:
        """Wait until the process is gone, and let go of it."""
        if self.process.pid is not None:
            self.process.join()
        self.process.close()


class Workers:
    """A training in worker processes.

    Args:
        job: what to train.
        placement: where; one worker for each of its devices.
        saver: writes files at each epoch's end; None for none but the state that is brought back.
    """

    def __init__(self, job: Job, placement: Placement, saver: Checkpointer | None = None) -> None:
        self.job = job
        self.placement = placement
        self.folder = SCRATCH.folder() / f"run_{os.urandom(4).hex()}"
        self.folder.mkdir()
        self._remove_folder = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.commands = SharedCommands.create(self.folder / "commands")

        # the checkpoint is what brings the state back, so it is written at every row, whatever it costs
        self.saver = replace(saver or Checkpointer(self.folder), each_row=True)
        self._stamp_before = stamp(self.saver.folder / CHECKPOINT)
        self._last: Snapshot | None = None

        self._workers: list[Worker] = []
        self._inbox: deque[Event] = deque()
        """events that were received and not yet emitted"""
        self._failures: list[Failure] = []
        """in the order in which they were heard of"""

        self._ending = threading.Lock()
        """held while processes are started, killed and let go, which may be asked for from another thread"""
        self._is_over = False
        self._data = self._write()

    def __enter__(self) -> Self:
        return self

    @property
    def undelivered(self) -> Sequence[Event]:
        """Events that were sent and not emitted."""
        return tuple(self._inbox)

    def events(self, emit: Callable[[Event], None]) -> None:
        """Start the workers, and emit rank 0's events until all ranks are done."""
        __tracebackhide__ = True
        self._start()
        timeout = self.job.recipe.settings.timeout
        last_sign = time.monotonic()
        end: RunEnd | None = None

        while not all(worker.is_done for worker in self._workers):
            if self._receive(seconds=0.5) or self.commands.paused:
                last_sign = time.monotonic()
            end = self._deliver(emit) or end

            if self._failures:
                self._gather_failures()
                self._deliver(emit)
                raise self._failed()
            if time.monotonic() - last_sign > timeout:
                raise self._hanging(f"The workers gave no sign of life for {timeout:g} seconds")

        if end is not None:
            emit(end)

    def _deliver(self, emit: Callable[[Event], None]) -> RunEnd | None:
        """Emit what was received, but the run's end, which counts only when all ranks have come to theirs."""
        __tracebackhide__ = True
        end: RunEnd | None = None
        while self._inbox:
            event = self._inbox.popleft()
            if isinstance(event, RunEnd):
                end = event
            else:
                emit(event)
        return end

    # ------------------------------------------------------------------ starting

    def _write(self) -> Path | None:
        """Write the job as it is now, whatever the next cell changes; the file with its samples.

        That file is the run's own by a link, since another training may put its samples in place of these.
        """
        if self.placement.start_method == "fork":
            return None
        try:
            write_job(self.job, self.folder)
            data, own = SCRATCH.data(self.job), self.folder / "data.pt"
            try:
                os.link(data, own)
            except OSError:  # a file system without links
                shutil.copyfile(data, own)
        except BaseException:
            self._remove_folder()
            raise
        return own

    def _start(self) -> None:
        settings, placement = self.job.recipe.settings, self.placement
        config = WorkerConfig(
            rank=0,
            devices=placement.devices,
            backend=placement.backend,
            threads=placement.threads or 1,
            folder=self.folder,
            data=self._data,
            saver=self.saver,
            timeout=settings.timeout,
            prints=True,
            state=ProcessState.capture(),
            job=self.job if self._data is None else None,
        )
        start_context = context(placement.start_method)
        with self._ending, starting():
            for rank in range(placement.processes):
                receiver, sender = start_context.Pipe(duplex=False)
                own = replace(config, rank=rank, prints=rank == 0 or settings.output == "all")
                process = start_context.Process(  # type: ignore[attr-defined]
                    target=work, args=(own, sender), name=f"quik_nb rank {rank}"
                )
                self._workers.append(Worker(rank, process, receiver))
                process.start()
                sender.close()

    # ------------------------------------------------------------------ listening

    def _receive(self, seconds: float) -> bool:
        """Wait for messages and ends of workers for some seconds at most; whether anything came."""
        connections = {w.receiver: w for w in self._workers if not w.receiver.closed}
        sentinels = {w.process.sentinel: w for w in self._workers if w.is_training}
        ready = wait([*connections, *sentinels], seconds)

        for sign in ready:
            if isinstance(sign, Connection):
                self._take_messages(connections[sign])
        for sign in ready:
            if isinstance(sign, int):
                self._take_end(sentinels[sign])
        return bool(ready)

    def _take_messages(self, worker: Worker) -> None:
        for message in worker.messages():
            if message == DONE:
                worker.is_done = True
            elif isinstance(message, Failure):
                worker.has_failed = True
                self._failures.append(message)
            elif isinstance(message, logging.LogRecord):
                handle_log(message)
            else:
                self._inbox.append(message)

    def _take_end(self, worker: Worker) -> None:
        self._take_messages(worker)  # its last ones may have come after the wait
        if worker.is_training:
            worker.process.join()
            worker.has_failed = True
            self._failures.append(killed(worker.rank, worker.process.exitcode or 0))

    def _gather_failures(self) -> None:
        """Wait a moment for the failure behind a lost connection."""
        until = time.monotonic() + GRACE_SECONDS
        while root_cause(self._failures).secondary and time.monotonic() < until:
            if not any(worker.is_training for worker in self._workers):
                break
            self._receive(seconds=0.1)

    def _failed(self) -> BaseException:
        """The error to raise after failures: that of the rank that failed by itself, or where the others stand."""
        cause = root_cause(self._failures)
        if cause.secondary and any(worker.is_training for worker in self._workers):
            return self._hanging(f"Rank {cause.rank} waited for another one in vain ({_first_line(cause.message)})")
        return as_error(cause, self.placement.processes)

    def _hanging(self, what: str) -> WorkerError:
        """The error of ranks that do not come on: where each of them stands."""
        seconds = self.job.recipe.settings.timeout
        stacks = [f"Rank {w.rank} of {len(self._workers)} {self._where(w)}" for w in self._workers]
        return WorkerError(
            f"{what}, so they were ended; the state of the last row is kept. A rank that waits in a collective or in "
            f"backward waits for another one. If a step may take longer, pass QuikSession(timeout={2 * seconds:g}).\n"
            + "\n".join(stacks)
        )

    def _where(self, worker: Worker) -> str:
        failure = next((f for f in self._failures if f.rank == worker.rank), None)
        if failure is not None:
            return f"failed here:\n{shown(failure)}"
        if worker.is_done:
            return "has come to its end."
        return f"stands here:\n{self._stack_of(worker)}"

    def _stack_of(self, worker: Worker) -> str:
        """Where a rank stands, as it says itself."""
        path = self.folder / f"stack_{worker.rank}"
        if not path.exists():  # which is there from the moment on from which a worker answers
            return "  (it is still starting)"

        if worker.process.pid is not None and worker.process.is_alive():
            os.kill(worker.process.pid, signal.SIGUSR1)
        until = time.monotonic() + 1.0
        while not path.stat().st_size and time.monotonic() < until:
            time.sleep(0.02)
        return shown_frames(stack_frames(path.read_text()))

    # ------------------------------------------------------------------ ending

    def kill(self) -> None:
        """Kill all workers, from any thread; `events` finds out in its own."""
        with self._ending:
            if not self._is_over:
                for worker in self._workers:
                    worker.kill()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End all workers, read the state that they left, and remove the run's private folder."""
        self.kill()  # those that are done wait for this, the others have nothing left to say
        with self._ending:
            self._is_over = True
            for worker in self._workers:
                worker.join()

        for worker in self._workers:
            self._take_messages(worker)
            worker.receiver.close()
        try:
            self._last = self.snapshot()
        finally:
            self.commands.close()
            self._remove_folder()

    def snapshot(self) -> Snapshot | None:
        """The state of the last row; None before the first."""
        if self._last is not None or stamp(self.saver.folder / CHECKPOINT) in (None, self._stamp_before):
            return self._last
        return read_checkpoint(self.saver.folder)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
