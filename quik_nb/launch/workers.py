"""Training in worker processes: started, listened to, and ended whatever happens.

The same generator runs in each worker as in this process. Rank 0's events come home through a pipe; its state comes
home as a checkpoint file that it writes before it sends the event that tells of it.
"""

import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from quik_nb.errors import WorkerError
from quik_nb.events import Event, RunEnd
from quik_nb.launch.failure import Failure, as_error, killed, root_cause, shown_frames, stack_frames
from quik_nb.launch.forkserver import apart, context, hidden_main
from quik_nb.launch.placement import Placement
from quik_nb.launch.transfer import SCRATCH, write_job
from quik_nb.launch.worker import DONE, Errand, work
from quik_nb.storage.checkpointer import Saver, read_checkpoint, stamp
from quik_nb.training.commands import SharedCommands
from quik_nb.training.progress import Snapshot
from quik_nb.training.trainer import Job

GRACE_SECONDS = 2.0
"""How long the error of a lost connection waits for the error that caused it."""


class Workers:
    """A training in worker processes.

    Args:
        job: what to train.
        placement: where; one worker for each of its devices.
        saver: writes files at each epoch's end; None for none but the state that comes home.
    """

    def __init__(self, job: Job, placement: Placement, saver: Saver | None) -> None:
        self.job, self.placement = job, placement
        self.folder = SCRATCH.folder() / f"run_{os.urandom(4).hex()}"
        self.folder.mkdir()
        self.commands = SharedCommands(self.folder / "commands", create=True)
        self.saver = saver or Saver(self.folder)
        self.saver.every_epoch = True
        self._before = stamp(self.saver.folder)
        self._processes: list[BaseProcess] = []
        self._homes: dict[Connection, int] = {}
        self._outcome: Snapshot | None = None
        self._failures: list[Failure] = []
        self._done: set[int] = set()
        self._ending = threading.Lock()
        """held while processes are started, killed and let go, which may be asked for from another thread"""
        self._over = False
        self._data = self._write()

    def drive(self, take: Callable[[Event], None]) -> None:
        """Start the workers, and hand out rank 0's events until all ranks are done."""
        __tracebackhide__ = True
        for event in self._run():
            take(event)

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
            return own
        except BaseException:
            shutil.rmtree(self.folder)
            raise

    def _start(self) -> None:
        settings, placement = self.job.recipe.settings, self.placement
        errand = Errand(
            rank=0,
            devices=placement.devices,
            backend=placement.backend,
            threads=placement.threads or 1,
            folder=self.folder,
            data=self._data,
            saver=self.saver,
            timeout=settings.timeout,
            prints=True,
            environment=dict(os.environ),
            job=self.job if self._data is None else None,
        )
        started = context(placement.start_method)
        with self._ending, hidden_main(), apart():
            for rank in range(placement.processes):
                mine, theirs = started.Pipe(duplex=False)
                prints = rank == 0 or settings.output == "all"
                process = started.Process(  # type: ignore[attr-defined]
                    target=work, args=(replace(errand, rank=rank, prints=prints), theirs), name=f"quik_nb rank {rank}"
                )
                process.start()
                theirs.close()
                self._processes.append(process)
                self._homes[mine] = rank

    # ------------------------------------------------------------------ listening

    def _run(self) -> Iterator[Event]:
        self._start()
        last: RunEnd | None = None
        heard = time.monotonic()
        while len(self._done) < self.placement.processes:
            messages = list(self._receive(timeout=0.5))
            if messages or self.commands.paused:
                heard = time.monotonic()
            for message in messages:
                if isinstance(message, RunEnd):
                    last = message  # told when all ranks have come to their end
                else:
                    yield message
            if self._failures:
                yield from self._gather_failures()
                raise as_error(root_cause(self._failures), self.placement.processes)
            if time.monotonic() - heard > self.job.recipe.settings.timeout:
                raise self._hanging()
        if last is not None:
            yield last

    def _receive(self, timeout: float) -> Iterator[Event]:
        """What the ranks sent, and notes of their failures, within some seconds at most."""
        ends = {process.sentinel: rank for rank, process in enumerate(self._processes)}
        waiting = [s for s, rank in ends.items() if rank not in self._done and not self._has_failed(rank)]
        ready = wait([*self._homes, *waiting], timeout)
        for home in [r for r in ready if isinstance(r, Connection)]:
            yield from self._drain(home)
        for end in [r for r in ready if isinstance(r, int)]:
            rank = ends[end]
            for home in [h for h, owner in self._homes.items() if owner == rank]:
                yield from self._drain(home)  # its last words may have come after the wait
            if rank not in self._done and not self._has_failed(rank):
                self._processes[rank].join()
                self._failures.append(killed(rank, self._processes[rank].exitcode or 0))

    def _drain(self, home: Connection) -> Iterator[Event]:
        rank = self._homes[home]
        try:
            while home.poll():
                message: Any = home.recv()
                if message == DONE:
                    self._done.add(rank)
                elif isinstance(message, Failure):
                    self._failures.append(message)
                else:
                    yield message
        except (EOFError, OSError, pickle.UnpicklingError):  # the worker's end, be it in the midst of a message
            self._homes.pop(home)  # its sentinel tells the rest
            home.close()

    def _has_failed(self, rank: int) -> bool:
        return any(failure.rank == rank for failure in self._failures)

    def _gather_failures(self) -> Iterator[Event]:
        """Wait a moment for the failure behind a lost connection."""
        until = time.monotonic() + GRACE_SECONDS
        while root_cause(self._failures).secondary and time.monotonic() < until:
            if len(self._failures) + len(self._done) == self.placement.processes:
                break
            yield from self._receive(timeout=0.1)

    def _hanging(self) -> WorkerError:
        """The error of workers that gave no sign of life: where each rank stands."""
        stacks = []
        for rank, process in enumerate(self._processes):
            where = self._stack_of(rank, process)
            stacks.append(f"Rank {rank} of {self.placement.processes} stands here:\n{where}")
        seconds = self.job.recipe.settings.timeout
        return WorkerError(
            f"The workers gave no sign of life for {seconds:g} seconds, so they were ended; the state of the last row "
            f"is kept. A rank that waits in a collective or in backward waits for another one. "
            f"If a step may take longer, type QuikSession(timeout={2 * seconds:g}).\n" + "\n".join(stacks)
        )

    def _stack_of(self, rank: int, process: BaseProcess) -> str:
        """Where a rank stands, by its own word."""
        path = self.folder / f"stack_{rank}"
        if not path.exists():  # which is there from the moment on from which a worker answers
            return "  (it is still starting)"
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGUSR1)
        until = time.monotonic() + 1.0
        while not path.stat().st_size and time.monotonic() < until:
            time.sleep(0.02)
        return shown_frames(stack_frames(path.read_text()))

    # ------------------------------------------------------------------ ending

    def kill(self) -> None:
        """Kill all workers, from any thread; the one that listens to them finds out."""
        with self._ending:
            if not self._over:
                for process in self._processes:
                    process.kill()

    def close(self) -> list[Event]:
        """End all workers, take the state home, and remove the run's private folder; gives the events not yet heard."""
        self.kill()  # those that are done wait for this, the others have nothing left to say
        with self._ending:
            self._over = True
            for process in self._processes:
                process.join()
                process.close()
        left = [event for home in list(self._homes) for event in self._drain(home)]
        for home in self._homes:
            home.close()
        try:
            self._outcome = self.peek()
        finally:
            self.commands.close()
            shutil.rmtree(self.folder, ignore_errors=True)
        return left

    def peek(self) -> Snapshot | None:
        """The state of the last row so far."""
        if self._outcome is not None or stamp(self.saver.folder) in (None, self._before):
            return self._outcome
        return read_checkpoint(self.saver.folder)

    def outcome(self) -> Snapshot | None:
        """The state of the last row; None where no row was finished."""
        return self._outcome
