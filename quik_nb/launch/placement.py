"""Where to train, and why there.

`Machine.detect()` gathers facts and decides nothing; `place(request, machine)` decides from the facts alone, so that
the decision for eight GPUs is tested on a laptop.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from quik_nb.errors import PlacementError

MOST_PER_CORE = 4
"""Processes for each core beyond which it is taken for a mistake."""


@dataclass(frozen=True)
class Machine:
    """The facts that a placement rests on."""

    cpus: int
    """cores that this process may use"""
    gpus: int = 0
    """CUDA devices, counted without initialising CUDA in this process"""
    cuda_initialized: bool = False
    """whether this process holds a CUDA context, which a plain fork cannot take along"""
    mps: bool = False
    can_fork: bool = True
    """whether this system has fork (not Windows)"""

    @classmethod
    def detect(cls) -> "Machine":
        """Look at this machine; takes some milliseconds and initialises nothing."""
        held = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
        gpus = torch.cuda.device_count()  # by NVML, without a CUDA context
        return cls(
            cpus=int(min(cores(), quota())),
            gpus=gpus,
            cuda_initialized=held,
            mps=torch.backends.mps.is_available(),
            can_fork=hasattr(os, "fork"),
        )


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores that a container may use in the mean, as Kubernetes and Binder limit it; infinite where there is no limit.

    From https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max) and the two files of version 1.
    """
    files = [folder / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period")]
    try:
        newer = folder / "cpu.max"
        limit, period = newer.read_text().split() if newer.exists() else (file.read_text().strip() for file in files)
    except OSError:
        return math.inf
    return math.inf if limit in ("max", "-1") else max(1, math.ceil(int(limit) / int(period)))


@dataclass(frozen=True)
class Placement:
    """Where a training runs, with the reason in words."""

    devices: tuple[str, ...]
    """one torch device for each rank"""
    launcher: str
    """the name of what starts the ranks or joins them, as in `start.LAUNCHERS`"""
    threads: int | None
    """intra-op threads of each worker; None leaves this process as it is"""
    start_method: str
    reason: str

    @property
    def processes(self) -> int:
        """The number of ranks."""
        return len(self.devices)

    @property
    def backend(self) -> str:
        """The communication backend of torch.distributed."""
        return "nccl" if len({d for d in self.devices if d.startswith("cuda")}) == len(self.devices) else "gloo"

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    processes: int | str = "auto"
    device: str | None = None
    start_method: str = "forkserver"
    background: bool = False
    """a run that leaves the notebook free trains in a worker even where it is one process"""


def place(request: Request, machine: Machine) -> Placement:
    """Decide where to train.

    Raises:
        PlacementError: the machine does not have what was asked for; the message says what it has.

    >>> place(Request(), Machine(cpus=8, gpus=4)).devices
    ('cuda:0', 'cuda:1', 'cuda:2', 'cuda:3')
    >>> place(Request(processes=2), Machine(cpus=8)).reason
    '2 workers on the CPU, 4 threads each: processes=2 was asked for, and no GPU was found'
    """
    kind, why_device = _device_kind(request.device, machine)
    processes, why = _process_count(request, kind, machine)
    _check_count(processes, kind, machine)
    devices = _devices(request.device, kind, processes, machine)
    if why and kind == "cpu" and request.device is None:
        why = f"{why}, and {why_device}"  # GPUs may have been meant: slower code, not broken code
    why = why or why_device

    if processes == 1 and not request.background:
        name = "the CPU" if devices[0] == "cpu" else devices[0]
        reason = f"in this process on {name}: {why}"
        return Placement(devices, "in_process", None, request.start_method, reason)

    _check_start(request.start_method, machine)
    threads = max(1, machine.cpus // processes)
    if request.start_method == "fork":
        threads = 1  # a plain fork of a process with a started thread pool hangs with more
    reason = f"{_workers_in_words(devices, threads)}: {why}"
    return Placement(devices, "workers", threads, request.start_method, reason)


def _device_kind(device: str | None, machine: Machine) -> tuple[str, str]:
    if device is None:
        return ("cuda", "a GPU is there") if machine.gpus else ("cpu", "no GPU was found")
    kind, _, index = device.partition(":")
    if not re.fullmatch(r"(cpu|cuda|mps)(:\d+)?", device):
        raise PlacementError(
            f"device={device!r} is not a device that can be trained on: use 'cpu', 'cuda' or 'cuda:0'."
        )
    if kind == "mps" and not machine.mps:
        raise PlacementError("device='mps' was asked for, and torch finds no Apple GPU here: leave device out.")
    if kind == "cuda" and int(index or 0) >= machine.gpus:
        have = f"{machine.gpus} GPU{'s' if machine.gpus != 1 else ''}"
        raise PlacementError(
            f"device={device!r} was asked for, and this machine has {have}: leave device out, or use 'cpu'."
        )
    return kind, f"device={device!r} was asked for"


def _process_count(request: Request, kind: str, machine: Machine) -> tuple[int, str]:
    if request.processes != "auto":
        return int(request.processes), f"processes={request.processes} was asked for" if request.processes != 1 else ""
    if kind == "cuda" and machine.gpus > 1 and request.device in (None, "cuda") and machine.can_fork:
        return machine.gpus, f"{machine.gpus} GPUs are there"
    return 1, ""


def _check_count(processes: int, kind: str, machine: Machine) -> None:
    most = max(8, MOST_PER_CORE * machine.cpus)
    if kind == "cpu" and processes > most:
        raise PlacementError(
            f"processes={processes} on the CPU was asked for, and this machine has {machine.cpus} "
            f"core{'s' if machine.cpus != 1 else ''}, which so many would only wait for: use processes={machine.cpus}."
        )
    if kind == "mps" and processes > 1:
        raise PlacementError(
            f"processes={processes} was asked for on device='mps', which has one GPU and no way for processes to "
            f"talk to each other: leave processes out, or use device='cpu'."
        )


def _devices(device: str | None, kind: str, processes: int, machine: Machine) -> tuple[str, ...]:
    if kind != "cuda":
        return (kind,) * processes
    if device is not None and ":" in device:
        return (device,) * processes
    if processes > machine.gpus:
        raise PlacementError(
            f"processes={processes} needs a GPU for each, and this machine has {machine.gpus}: "
            f"use processes={machine.gpus}, or device='cpu' to train on the CPU."
        )
    return tuple(f"cuda:{rank}" for rank in range(processes))


def _check_start(method: str, machine: Machine) -> None:
    if not machine.can_fork:
        raise PlacementError(
            "Workers need Linux or macOS, and this is neither: leave out processes and background, and train in this "
            "process, or take WSL."
        )
    if method == "fork" and machine.cuda_initialized:
        raise PlacementError(
            "start_method='fork' cannot be used: this process has initialised CUDA, and a fork cannot take it along; "
            "leave start_method out (workers are then forked from a clean server), or restart the kernel."
        )


def _workers_in_words(devices: tuple[str, ...], threads: int) -> str:
    count = f"{len(devices)} worker{'s' if len(devices) > 1 else ''}"
    if devices[0] != "cpu":
        return f"{count} on {', '.join(devices)}"
    return f"{count} on the CPU, {threads} thread{'s' if threads != 1 else ''} each"
