"""What the tests of workers share: the first cell of their notebooks, and what must be gone after a run.

A kernel or script of these tests has a folder for temporary files of its own, so that nothing in it escapes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil

from harness.cells import cell
from harness.kernel import Kernel

SETUP = cell("workers")
"""Data in float64, a model that calls a function of (rank, step) before each of 8 steps an epoch, and a session."""


class Notebook(NamedTuple):
    """A kernel that has run the first cell, and its folder for temporary files."""

    kernel: Kernel
    temporary: Path


@contextmanager
def running(folder: Path, interactive: bool = False) -> Iterator[Notebook]:
    """A notebook that has run the first cell, until it is no longer needed."""
    with TemporaryDirectory() as temporary:
        kernel = Kernel(folder, {"TMPDIR": temporary}, interactive=interactive)
        try:
            kernel.ok(SETUP)
            yield Notebook(kernel, Path(temporary))
        finally:
            kernel.close()


def servers(kernel: Kernel) -> list[psutil.Process]:
    """The fork server and the resource tracker of a kernel."""
    found = kernel.processes()
    pids = {process.pid for process in found}
    return [process for process in found if process.ppid() not in pids]


def workers(kernel: Kernel) -> list[psutil.Process]:
    """The workers of a kernel that run now, and whatever they started."""
    pids = {process.pid for process in servers(kernel)}
    return [process for process in kernel.processes() if process.pid not in pids]


def leftovers(kernel: Kernel, temporary: Path) -> list[str]:
    """What a run left behind: processes, listening sockets, files of the run and of shared memory."""
    found = [f"process {process.pid} {process.cmdline()}" for process in workers(kernel)]
    found += [f"socket {address}" for process in servers(kernel) for address in listening(process)]
    found += [f"file {path}" for path in temporary.glob("quik_nb_*/*") if path.name.startswith("run_")]
    return found + [f"shared memory {path}" for path in Path("/dev/shm").glob("torch_*")]


def listening(process: psutil.Process) -> list[str]:
    """The addresses at which a process waits for connections."""
    connections = process.net_connections(kind="inet")
    return [str(c.laddr.ip) for c in connections if c.status == psutil.CONN_LISTEN]
