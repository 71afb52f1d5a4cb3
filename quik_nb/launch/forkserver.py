"""How worker processes start: forked from a clean server by default, by plain fork or spawn where that is asked for.

The server is the standard library's fork server, preloaded with torch. It never saw the kernel's CUDA context, threads
or locks, so its children cannot meet them; a plain fork of a kernel that has multiplied two matrices hangs.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, util
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from quik_nb.launch.transfer import SCRATCH

PRELOAD = ["quik_nb.launch.preload"]

LONGEST = 80
"""Bytes of a folder's path in which a socket can still have a name: its whole path may have some 100."""


def context(start_method: str) -> BaseContext:
    """The way to start processes; a fork server is told what to preload before it starts."""
    made = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        made.set_forkserver_preload(PRELOAD)
        _forget_lost_server()
        if not os.path.isdir(multiprocessing.current_process()._config.get("tempdir") or ""):  # type: ignore[attr-defined]
            keep_sockets_in(SCRATCH.folder())
    return made


def _forget_lost_server() -> None:
    """Have a new server started where the socket of the old one is gone, as after a cleaning of the temporary files."""
    server: Any = forkserver._forkserver
    address = server._forkserver_address
    if address is not None and not util.is_abstract_socket_namespace(address) and not os.path.exists(address):
        server._forkserver_pid = None  # it ends by itself, with this process or with the workers that it still has


def keep_sockets_in(folder: Path) -> None:
    """Have the standard library keep its own temporary files in a folder of ours, and so go with it.

    By itself it makes a folder for each process that has a fork server or hands tensors to another one, and a process
    that is killed leaves it behind.
    """
    if len(os.fsencode(folder)) <= LONGEST:
        multiprocessing.current_process()._config["tempdir"] = str(folder)  # type: ignore[attr-defined]


def warm_up() -> None:
    """Start the fork server now, in the background, so that the first workers come as fast as all later ones.

    A session that is made on a machine with several GPUs does this by itself. It takes some milliseconds here and two
    or three seconds of another core.

    >>> warm_up()
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        context("forkserver")
        with apart():
            forkserver.ensure_running()


@contextmanager
def apart() -> Iterator[None]:
    """Start the standard library's servers in a process group of their own.

    Jupyter interrupts a kernel's whole group, and ipykernel ends all of it before the kernel itself: it would wait for
    the resource tracker, which heeds no request to end, until it is killed, and no run's state would be brought home.
    """
    before = util.spawnv_passfds  # what both servers are started by; it knows no groups
    util.spawnv_passfds = _spawn_apart
    try:
        yield
    finally:
        util.spawnv_passfds = before


def _spawn_apart(path: Any, args: Any, passfds: Any) -> int:
    for fd in passfds:
        os.set_inheritable(fd, True)
    try:
        return os.posix_spawn(path, args, os.environ, setpgroup=0)
    finally:
        for fd in passfds:
            os.set_inheritable(fd, False)


@contextmanager
def hidden_main() -> Iterator[None]:
    """Keep the standard library from importing the main script again in each worker.

    What a worker needs of it travels by value, and a script without an `if __name__ == "__main__"` guard would
    otherwise train inside its own workers.
    """
    main: Any = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    main.__spec__ = None
    if file is not None:
        del main.__file__
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file
