"""A worker, from birth to end: reset inherited state, load the job, join the group, train, report, wait to be ended.

Not for starting and watching workers, which is the launching process's part in `workers.py`.
"""

import faulthandler
import io
import multiprocessing
import os
import signal
import sys
import threading
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch

from quik_nb.events import Emit, EpochEnd, Event, Notice, Output
from quik_nb.launch.batch_pickling import batches_by_value
from quik_nb.launch.failure import capture
from quik_nb.launch.process_state import ProcessState, send_logs
from quik_nb.launch.stdlib_patches import keep_sockets_in
from quik_nb.launch.transfer import read_job
from quik_nb.storage.checkpointer import Checkpointer
from quik_nb.training.commands import MAX_STEPS_AHEAD, SharedCommands
from quik_nb.training.job import Job
from quik_nb.training.notebook_objects import changed, fingerprints, objects_of
from quik_nb.training.rank import run_rank
from quik_nb.training.world import World, join


@dataclass(frozen=True)
class WorkerConfig:
    """All that a worker is started with; everything else it reads from the folder."""

    rank: int
    devices: tuple[str, ...]
    """one for each rank"""
    backend: str
    threads: int
    folder: Path
    """private to this run: job, commands, rendezvous, stacks"""
    data: Path | None
    """the file with the samples; None where the job came by fork"""
    saver: Checkpointer
    timeout: float
    """seconds"""
    prints: bool
    """whether what this rank prints is sent to the launching process"""
    state: ProcessState
    """of the launching process, which may have changed since the server started"""
    job: Job | None = None
    """the job itself, where the worker is a plain fork"""

    @property
    def commands(self) -> Path:
        """The file of the commands."""
        return self.folder / "commands"

    @property
    def rendezvous_file(self) -> Path:
        """The file by which the ranks find each other."""
        return self.folder / "rendezvous"

    @property
    def stack(self) -> Path:
        """Where this rank writes its stack when it is asked to (SIGUSR1)."""
        return self.folder / f"stack_{self.rank}"


MARGIN_SECONDS = 2.0
"""How much longer a rank waits for another one than the launching process, which can tell where all of them stand."""

DONE = "done"
"""The last message of a rank that came to its end."""


def work(config: WorkerConfig, connection: Connection) -> None:
    """Run one rank; everything that happens is sent through the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and stops all ranks at one step
    sender = EventSender(config.rank, connection)
    try:
        _reset_inherited_state(config, sender)
        job = _load(config)
        world = _join(config)
        with batches_by_value():
            _train(config, job, world, sender)

        sys.stdout.flush()
        sys.stderr.flush()
        sender.send(DONE)
    except BaseException as error:  # it is raised again in the launching process
        sender.send(capture(config.rank, error))
        _exit_now(1)

    # Until the launching process ends us, once all ranks are done: a rank that leaves first takes its end of the
    # connections along, and taking gloo's groups down in order hung in 1 of some 10 runs.
    threading.Event().wait()


def _reset_inherited_state(config: WorkerConfig, sender: "EventSender") -> None:
    """Make a process that was forked from the server, or from the kernel, into one of its own."""
    # first of all and before any tensor operation: a forked child must not use thread pools that stayed with the parent
    torch.set_num_threads(config.threads)

    config.state.restore()
    send_logs(sender.send if config.prints else None)
    if config.devices[0] == "cpu" or len(config.devices) > 1:  # one machine: nothing of ours faces the network
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)

    keep_sockets_in(config.folder)
    if sys.platform == "linux":  # for the processes of a DataLoader: what came by value cannot be pickled a second time
        multiprocessing.set_start_method("fork", force=True)

    threading.Thread(target=_end_with_parent, args=(config.folder,), daemon=True).start()
    sys.stdout = PrintSender(sender, "stdout", config.prints)
    sys.stderr = PrintSender(sender, "stderr", config.prints)
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, config.stack.open("w"), all_threads=False)


def _load(config: WorkerConfig) -> Job:
    if config.job is not None:
        return config.job
    assert config.data is not None  # a worker that is no plain fork has files
    return read_job(config.folder, config.data)


def _join(config: WorkerConfig) -> World:
    device = config.devices[config.rank]
    timeout = config.timeout + MARGIN_SECONDS
    return join(config.rank, len(config.devices), device, config.backend, config.rendezvous_file, timeout)


def _train(config: WorkerConfig, job: Job, world: World, sender: "EventSender") -> None:
    commands = SharedCommands(config.commands, config.rank, ahead=MAX_STEPS_AHEAD if world.device.type == "cuda" else 1)
    emit = sender.send if world.is_logger else partial(send_notices, sender)
    run_rank(job, world, commands, config.saver, partial(emit_and_tell, emit, NotebookCopies(job)))


class NotebookCopies:
    """The copies that a worker has of the notebook's lists, dicts and counters.

    Args:
        job: whose functions read them.
    """

    def __init__(self, job: Job) -> None:
        own_loop = job.loop if job.has_own_loop else None
        self.functions = (job.recipe.step, own_loop, *job.recipe.metrics.values())
        self.before = fingerprints(objects_of(*self.functions))

    def changed(self) -> list[str]:
        """The names of those that were changed here since the last look."""
        now = fingerprints(objects_of(*self.functions))
        names, self.before = changed(self.before, now), now
        return names


def emit_and_tell(emit: Emit, copies: NotebookCopies, event: Event) -> None:
    """Emit an event; at an epoch's end, tell of changes that will not be seen in the notebook."""
    emit(event)
    if not isinstance(event, EpochEnd):
        return
    for name in copies.changed():
        emit(
            Notice(
                f"changed in a worker: {name}",
                f"{name} was changed in a worker, which has a copy of it, and the notebook's own stays as it was. Have "
                f"the step return StepOutput(loss, values={{'name': number}}) for a column of the history, take epoch "
                f"as a parameter of the step to know where it stands, or train with processes=1.",
            )
        )


def send_notices(sender: "EventSender", event: Event) -> None:
    """What ranks other than the logger do with their events: only what the user should know is sent."""
    if isinstance(event, Notice):
        sender.send(event)


def _end_with_parent(folder: Path) -> None:
    """End when the launching process is gone, however it went: the server's own pipe would keep all of us alive."""
    import shutil

    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    shutil.rmtree(folder.parent, ignore_errors=True)
    _exit_now(1)


def _exit_now(code: int) -> NoReturn:
    """Exit without the interpreter's finalization: gloo's threads may abort it, and nothing of ours waits for it."""
    os._exit(code)


class EventSender:
    """Sends events to the launching process; prints come from any thread, so one message at a time."""

    def __init__(self, rank: int, connection: Connection) -> None:
        self.rank = rank
        self.connection = connection
        self.lock = threading.Lock()

    def send(self, message: Any) -> None:
        """Send a message; without a parent there is nothing left to do."""
        with self.lock:
            try:
                self.connection.send(message)
            except (BrokenPipeError, ConnectionResetError):
                _exit_now(1)


class PrintSender(io.TextIOBase):
    """A stream that sends what a rank prints, line by line, or drops it where it was not asked for."""

    def __init__(self, sender: EventSender, stream: Literal["stdout", "stderr"], wanted: bool) -> None:
        self.sender = sender
        self.stream = stream
        self.wanted = wanted
        self.rest = ""
        """of a line that has no end yet"""

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Send the lines that are whole now."""
        if self.wanted:
            *lines, self.rest = (self.rest + text).split("\n")
            if lines:
                self._send("\n".join(lines) + "\n")
        return len(text)

    def flush(self) -> None:
        """Send a line that has no end yet."""
        if self.rest:
            self._send(self.rest)
            self.rest = ""

    def _send(self, text: str) -> None:
        self.sender.send(Output(self.sender.rank, text, self.stream))
