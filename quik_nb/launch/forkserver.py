"""How worker processes start: forked from a clean server by default, by plain fork or spawn where that is asked for.

The server is the standard library's fork server, preloaded with torch. It never saw the kernel's CUDA context, threads
or locks, so its children cannot meet them; a plain fork of a kernel that has multiplied two matrices hangs.
"""

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from types import FrameType

from quik_nb.launch import stdlib_patches
from quik_nb.launch.transfer import SCRATCH

PRELOAD = ["quik_nb.launch.preload"]


def context(start_method: str) -> BaseContext:
    """The way to start processes; a fork server is told what to preload before it starts."""
    made = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        made.set_forkserver_preload(PRELOAD)
        stdlib_patches.forget_lost_server()
        if not stdlib_patches.has_socket_folder():
            stdlib_patches.keep_sockets_in(SCRATCH.folder())
    return made


@contextmanager
def starting() -> Iterator[None]:
    """Within it, processes start out of reach of the kernel's interrupts and without the main script.

    An interrupt of this process is raised when it is left: in the middle, a worker could be running that nobody knows.
    """
    with _deferred_interrupts(), stdlib_patches.own_process_group(), stdlib_patches.hide_main_module():
        yield


@contextmanager
def _deferred_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where interrupts are not raised
        yield
        return

    interrupts: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        for number, frame in interrupts:
            if callable(before):
                before(number, frame)


def warm_up() -> None:
    """Start the fork server now, in the background, so that the first workers start as fast as all later ones.

    A session that is made on a machine with several GPUs does this by itself. It takes some milliseconds here and two
    or three seconds of another core.

    >>> warm_up()
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        context("forkserver")
        with starting():
            forkserver.ensure_running()
