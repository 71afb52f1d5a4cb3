"""`doctor()`: what this machine has, and where a training would run on it."""

import platform
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from quik_nb.errors import PlacementError
from quik_nb.launch.placement import Machine, Request, place
from quik_nb.views.choose import FrontEnd, decide


def doctor() -> None:
    """Print the facts about this machine and where a training would run; no process is started, no GPU initialised.

    >>> doctor()  # doctest: +ELLIPSIS
    python ...
    """
    machine = Machine.detect()
    for name, value in {**_facts(machine), **_decisions(machine)}.items():
        print(f"{name:<24}{value}")


def _facts(machine: Machine) -> dict[str, str]:
    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    shm = Path("/dev/shm")
    cuda = "has" if machine.cuda_initialized else "has no"
    return {
        "python": f"{platform.python_version()} on {sys.platform}",
        "torch": f"{torch.__version__}",
        "cores": str(machine.cpus),
        "GPUs": f"{machine.gpus}; this process {cuda} CUDA context",
        "free for workers' data": f"{free:.1f} GiB in {tempfile.gettempdir()}",
        "/dev/shm": f"{shutil.disk_usage(shm).free / 2**20:.0f} MiB free" if shm.exists() else "absent, not needed",
        "view": ": ".join(decide("auto", FrontEnd.detect())),
    }


def _decisions(machine: Machine) -> dict[str, str]:
    decisions = {"train()": str(place(Request(), machine))}
    for name, request in {
        "train(processes=2)": Request(processes=2),
        "start_method='fork'": Request(processes=2, start_method="fork"),
    }.items():
        try:
            decisions[name] = str(place(request, machine))
        except PlacementError as error:
            decisions[name] = f"not here: {error}"
    return decisions
