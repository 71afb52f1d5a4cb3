"""Every place where quik_nb changes how the standard library's `multiprocessing` behaves, and why.

Each patch relies on something that Python does not document. They were tried with Python 3.11, 3.12 and 3.13; a test
for each in `tests/launch/test_stdlib_patches.py` fails on a Python where the patched thing has moved. Not for starting
anything: `forkserver.py` and `worker.py` use these.

Modules are shared by all threads of a process, so a patch that lasts for a while is made under one lock and acts in the
thread that made it; all other threads go on with the standard library's own.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver, reduction, spawn, util
from pathlib import Path
from typing import Any

_PATCHING = threading.RLock()
"""held for as long as a function of the standard library is replaced"""

MAX_SOCKET_FOLDER = 80
"""Bytes of a folder's path in which a socket can still have a name: its whole path may have some 100."""


@contextmanager
def _replaced_in_this_thread(module: Any, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """Call `replacement(original, *args)` in place of a module's function, in this thread only."""
    with _PATCHING:
        original = getattr(module, name)
        here = threading.get_ident()

        def chosen(*args: Any) -> Any:
            if threading.get_ident() == here:
                return replacement(original, *args)
            return original(*args)

        setattr(module, name, chosen)
        try:
            yield
        finally:
            setattr(module, name, original)


@contextmanager
def own_process_group() -> Iterator[None]:
    """Within it, the fork server and the resource tracker are started in process groups of their own.

    Jupyter interrupts a kernel's whole process group, and ipykernel ends all of it before the kernel itself: it would
    wait for the resource tracker, which ignores requests to end, until it is killed, and no run's state would be kept.

    Relies on: both are started by `multiprocessing.util.spawnv_passfds(path, args, passfds)`.
    """
    with _replaced_in_this_thread(util, "spawnv_passfds", _spawn_in_own_group):
        yield


def _spawn_in_own_group(original: Callable[..., int], path: Any, args: Any, passfds: Any) -> int:
    for fd in passfds:
        os.set_inheritable(fd, True)
    try:
        return os.posix_spawn(path, args, os.environ, setpgroup=0)
    finally:
        for fd in passfds:
            os.set_inheritable(fd, False)


@contextmanager
def hide_main_module() -> Iterator[None]:
    """Within it, processes start without importing the main script again.

    What a worker needs of `__main__` is pickled by value, and a script without an `if __name__ == "__main__"` guard
    would otherwise train inside its own workers.

    Relies on: `multiprocessing.spawn.get_preparation_data(name)` tells a new process what to import.
    """
    with _replaced_in_this_thread(spawn, "get_preparation_data", _preparation_without_main):
        yield


def _preparation_without_main(original: Callable[[str], dict[str, Any]], name: str) -> dict[str, Any]:
    vars(sys.modules["__main__"]).setdefault("__spec__", None)  # pdb of Python 3.11 leaves it out, and it is asked for
    data = original(name)
    return {key: value for key, value in data.items() if not key.startswith("init_main_from_")}


@contextmanager
def forking_pickler_dumps(replacement: Callable[..., Any]) -> Iterator[None]:
    """Within it, queues pickle by `replacement(original, value, protocol)`, in all threads and in forked children.

    It must give what the original gives where that succeeds. Within another one it changes nothing.

    Relies on: queues call `multiprocessing.reduction.ForkingPickler.dumps(value)` in their feeding thread.
    """
    pickler: Any = reduction.ForkingPickler
    with _PATCHING:
        own = vars(pickler)["dumps"]
        is_first = isinstance(own, classmethod)
        if is_first:
            pickler.dumps = staticmethod(partial(replacement, pickler.dumps))
    try:
        yield
    finally:
        if is_first:
            pickler.dumps = own


def keep_sockets_in(folder: Path) -> None:
    """Have the standard library keep its temporary files in a folder of ours, with which they are removed.

    By itself it makes a folder for each process that has a fork server or hands tensors to another one, and a process
    that is killed leaves it behind. A folder with too long a path for a socket is not used.

    Relies on: `multiprocessing.util.get_temp_dir()` takes `current_process()._config["tempdir"]`.
    """
    if len(os.fsencode(folder)) <= MAX_SOCKET_FOLDER:
        with _PATCHING:
            multiprocessing.current_process()._config["tempdir"] = str(folder)  # type: ignore[attr-defined]


def has_socket_folder() -> bool:
    """Whether the standard library has a folder for its temporary files, and it is still there."""
    return os.path.isdir(multiprocessing.current_process()._config.get("tempdir") or "")  # type: ignore[attr-defined]


def forget_lost_server() -> None:
    """Restart the fork server if its socket was deleted, for example by a tmp cleaner.

    The old server ends by itself: with this process, or with the workers that it still has.

    Relies on: `forkserver._forkserver` has `_forkserver_address`, and starts a server where `_forkserver_pid` is None.
    """
    with _PATCHING:
        server: Any = forkserver._forkserver
        address = server._forkserver_address
        if address is not None and not util.is_abstract_socket_namespace(address) and not os.path.exists(address):
            server._forkserver_pid = None
