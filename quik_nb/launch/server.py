"""How worker processes start: forked from a clean server by default, by plain fork or spawn where that is asked for.

The server is the standard library's fork server, preloaded with torch. It never saw the kernel's CUDA context, threads
or locks, so its children cannot meet them; a plain fork of a kernel that has multiplied two matrices hangs.
"""

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from typing import Any

PRELOAD = ["quik_nb.launch.preload"]


def context(start_method: str) -> BaseContext:
    """The way to start processes; a fork server is told what to preload before it starts."""
    made = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        made.set_forkserver_preload(PRELOAD)
    return made


def warm_up() -> None:
    """Start the fork server now, in the background, so that the first workers come as fast as all later ones.

    A session that is made on a machine with several GPUs does this by itself. It takes some milliseconds here and two
    or three seconds of another core.

    >>> warm_up()
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        context("forkserver")
        forkserver.ensure_running()


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
