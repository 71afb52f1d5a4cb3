"""A worker's life, in order: shed the parent's ways, read the job, join the ranks, train, report, wait for the end."""

import faulthandler
import io
import multiprocessing
import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import torch

from quik_nb.events import Output
from quik_nb.launch.failure import capture
from quik_nb.launch.forkserver import keep_sockets_in
from quik_nb.launch.transfer import read_job
from quik_nb.storage.checkpointer import Saver
from quik_nb.training.commands import AHEAD, SharedCommands
from quik_nb.training.loop import run_own
from quik_nb.training.trainer import Job, Trainer
from quik_nb.training.world import join


@dataclass(frozen=True)
class Errand:
    """All that a worker is told; everything else it reads from the folder."""

    rank: int
    devices: tuple[str, ...]
    backend: str
    threads: int
    folder: Path
    """private to this run: job, commands, meeting point, stacks"""
    data: Path | None
    """the file with the samples; None where the job came by fork"""
    saver: Saver
    timeout: float
    """seconds"""
    prints: bool
    """whether what this rank prints is sent home"""
    environment: dict[str, str] = field(default_factory=dict)
    """the environment variables of the parent, which may have changed since the server started"""
    job: Job | None = None
    """the job itself, where the worker is a plain fork"""

    @property
    def commands(self) -> Path:
        return self.folder / "commands"

    @property
    def stack(self) -> Path:
        """Where this rank writes its stack when it is asked to (SIGUSR1)."""
        return self.folder / f"stack_{self.rank}"


DONE = "done"
"""The last message of a rank that came to its end."""


def work(errand: Errand, home: Connection) -> None:
    """Run one rank; everything that happens is sent home."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and stops all ranks in step
    post = Post(errand.rank, home)
    try:
        _settle_in(errand, post)
        _train(errand, post)
    except BaseException as error:  # it travels home as a value
        post.send(capture(errand.rank, error))
        _vanish(1)


def _settle_in(errand: Errand, post: "Post") -> None:
    os.environ.clear()
    os.environ.update(errand.environment)
    keep_sockets_in(errand.folder)
    if sys.platform == "linux":  # for the processes of a DataLoader: what came by value cannot be pickled a second time
        multiprocessing.set_start_method("fork", force=True)
    # first of all and before any tensor operation: a forked child must not use thread pools that stayed with the parent
    torch.set_num_threads(errand.threads)
    threading.Thread(target=_end_with_parent, args=(errand.folder,), daemon=True).start()
    sys.stdout = Prints(post, "stdout", errand.prints)
    sys.stderr = Prints(post, "stderr", errand.prints)
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, errand.stack.open("w"), all_threads=False)
    if errand.devices[0] == "cpu" or len(errand.devices) > 1:
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)


def _train(errand: Errand, post: "Post") -> None:
    job = errand.job
    if job is None:
        assert errand.data is not None  # a worker that is no plain fork has files
        job = read_job(errand.folder, errand.data)
    size = len(errand.devices)
    device = errand.devices[errand.rank]
    world = join(errand.rank, size, device, errand.backend, errand.folder / "meeting", errand.timeout)
    commands = SharedCommands(errand.commands, errand.rank, ahead=AHEAD if world.device.type == "cuda" else 1)
    trainer = Trainer(job, world, commands, errand.saver)
    if world.is_logger:
        errand.saver.begin(trainer)
    tell = post.send if world.is_logger else ignore
    if job.loop is not None:
        run_own(trainer, job.loop, tell)
    else:
        for event in trainer.run():
            tell(event)
    sys.stdout.flush()
    sys.stderr.flush()
    post.send(DONE)
    # Stay until the launching process ends us, once all ranks are done: a rank that leaves first takes its end of the
    # connections along, and taking gloo's groups down in order hung in 1 of some 10 runs.
    threading.Event().wait()


def ignore(event: Any) -> None:
    """What ranks other than the logger do with their events."""


def _end_with_parent(folder: Path) -> None:
    """End when the launching process is gone, however it went: the server's own pipe would keep all of us alive."""
    import shutil

    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    shutil.rmtree(folder.parent, ignore_errors=True)
    _vanish(1)


def _vanish(code: int) -> NoReturn:
    """Leave without the interpreter's farewell: gloo's threads may abort it, and nothing of ours waits for it."""
    os._exit(code)


class Post:
    """The way home; prints come from any thread, so one message at a time."""

    def __init__(self, rank: int, home: Connection) -> None:
        self.rank, self.home, self.lock = rank, home, threading.Lock()

    def send(self, message: Any) -> None:
        """Send a message; a parent that is gone needs none."""
        with self.lock:
            try:
                self.home.send(message)
            except (BrokenPipeError, ConnectionResetError):
                _vanish(1)


class Prints(io.TextIOBase):
    """What a rank prints, sent home line by line, or dropped where it was not asked for."""

    def __init__(self, post: Post, stream: str, wanted: bool) -> None:
        self.post, self.stream, self.wanted, self.rest = post, stream, wanted, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
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
        self.post.send(Output(self.post.rank, text, self.stream))  # type: ignore[arg-type]
