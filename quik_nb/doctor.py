"""`doctor()`: can this kernel launch workers, on what, and if not, why and what to do."""

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
    """Print the facts of this machine and what a training would do on it; nothing is started or initialised.

    >>> doctor()  # doctest: +ELLIPSIS
    python ...
    """
    machine = Machine.detect()
    for name, value in {**_facts(machine), **_decisions(machine)}.items():
        print(f"{name:<24}{value}")


def _facts(machine: Machine) -> dict[str, str]:
    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    shm = Path("/dev/shm")
    held = "holds" if machine.cuda_initialized else "does not hold"
    return {
        "python": f"{platform.python_version()} on {sys.platform}",
        "torch": f"{torch.__version__}",
        "cores": str(machine.cpus),
        "GPUs": f"{machine.gpus}; this process {held} a CUDA context",
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
