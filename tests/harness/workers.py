"""What the tests of workers share: the first cell of their notebooks, and what must be gone after a run.

A kernel or script of these tests has a folder for temporary files of its own, so that nothing in it escapes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil

from harness.kernel import Kernel

SETUP = """
import os, signal, threading, time
import torch
from torch import nn, optim
from quik_nb import QuikSession

torch.manual_seed(0)
x = torch.randn(1000, 5, dtype=torch.float64)
y = (x[:, 0] > 0).long() + (x[:, 1] > 1).long()

class Net(nn.Module):
    def __init__(self, before=lambda rank, step: None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.layer = nn.Linear(5, 3).double()
        self.before, self.step = before, 0

    def forward(self, x):
        if self.training:
            self.step += 1
            self.before(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0, self.step)
        return self.layer(x)

def slow(rank, step):
    time.sleep(0.02)

def session(model, **settings):
    return (
        QuikSession(**{"epochs": 2, "batch_size": 100, "view": "text", "save": False, "lr": 0.01, **settings})
        .add_data(train=(x, y), valid=0.2)
        .add_model(model)
        .set_criterion(nn.CrossEntropyLoss)
        .set_optimizer(optim.AdamW)
    )
"""
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
