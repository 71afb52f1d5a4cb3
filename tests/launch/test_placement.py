"""Where to train is decided from facts alone, so eight GPUs are tested on a laptop."""

import math
from pathlib import Path
from typing import Any

import pytest

from quik_nb import PlacementError
from quik_nb.launch.placement import Machine, Placement, Request, place, quota

LAPTOP = Machine(cpus=8)
ONE_GPU = Machine(cpus=16, gpus=1)
EIGHT = Machine(cpus=64, gpus=8)
MAC = Machine(cpus=10, mps=True)
WINDOWS = Machine(cpus=8, can_fork=False)
CUDA_IN_USE = Machine(cpus=16, gpus=2, cuda_initialized=True)

GPUS = tuple(f"cuda:{rank}" for rank in range(8))

DECISIONS: list[tuple[Request, Machine, tuple[str, ...], str]] = [
    (Request(), LAPTOP, ("cpu",), "in_process"),
    (Request(), Machine(cpus=1), ("cpu",), "in_process"),
    (Request(), ONE_GPU, ("cuda:0",), "in_process"),
    (Request(), EIGHT, GPUS, "workers"),
    (Request(1), EIGHT, ("cuda:0",), "in_process"),
    (Request(2), EIGHT, GPUS[:2], "workers"),
    (Request(8), EIGHT, GPUS, "workers"),
    (Request(device="cuda"), EIGHT, GPUS, "workers"),
    (Request(device="cuda:3"), EIGHT, ("cuda:3",), "in_process"),
    (Request(device="cpu"), EIGHT, ("cpu",), "in_process"),
    (Request(4, device="cpu"), EIGHT, ("cpu",) * 4, "workers"),
    (Request(4), LAPTOP, ("cpu",) * 4, "workers"),
    (Request(device="mps"), MAC, ("mps",), "in_process"),
    (Request(), MAC, ("cpu",), "in_process"),
    (Request(background=True), LAPTOP, ("cpu",), "workers"),
    (Request(background=True), ONE_GPU, ("cuda:0",), "workers"),
    (Request(), Machine(cpus=8, gpus=2, can_fork=False), ("cuda:0",), "in_process"),
    (Request(), WINDOWS, ("cpu",), "in_process"),
    (Request(2), CUDA_IN_USE, GPUS[:2], "workers"),
]


@pytest.mark.parametrize(("request_", "machine", "devices", "launcher"), DECISIONS)
def test_decisions(request_: Request, machine: Machine, devices: tuple[str, ...], launcher: str) -> None:
    """Each request on each machine gives these devices, in this process or in workers."""
    placement = place(request_, machine)

    assert (devices, launcher) == (placement.devices, placement.launcher)
    assert len(devices) == placement.processes


REASONS: list[tuple[Request, Machine, str]] = [
    (Request(), LAPTOP, "in this process on the CPU: no GPU was found"),
    (Request(), ONE_GPU, "in this process on cuda:0: a GPU is there"),
    (Request(device="cpu"), EIGHT, "in this process on the CPU: device='cpu' was asked for"),
    (Request(2), LAPTOP, "2 workers on the CPU, 4 threads each: processes=2 was asked for, and no GPU was found"),
    (Request(8), LAPTOP, "8 workers on the CPU, 1 thread each: processes=8 was asked for, and no GPU was found"),
    (Request(2, "cpu"), EIGHT, "2 workers on the CPU, 32 threads each: processes=2 was asked for"),
    (Request(), EIGHT, f"8 workers on {', '.join(GPUS)}: 8 GPUs are there"),
]


@pytest.mark.parametrize(("request_", "machine", "reason"), REASONS)
def test_reasons(request_: Request, machine: Machine, reason: str) -> None:
    """The reason in words says where and why there."""
    assert reason == str(place(request_, machine))


@pytest.mark.parametrize(("cpus", "processes", "threads"), [(8, 2, 4), (8, 3, 2), (2, 4, 1), (64, 8, 8)])
def test_workers_share_the_cores(cpus: int, processes: int, threads: int) -> None:
    """Threads of a worker are cores by workers, at least one; this process is left as it is."""
    assert threads == place(Request(processes), Machine(cpus)).threads
    assert place(Request(1), Machine(cpus)).threads is None


ERRORS: list[tuple[Request, Machine, str]] = [
    (Request(3), Machine(cpus=8, gpus=2), r"processes=3 needs a GPU for each, and this machine has 2.*device='cpu'"),
    (Request(device="cuda"), LAPTOP, "device='cuda' was asked for, and this machine has 0 GPUs"),
    (Request(device="cuda:1"), ONE_GPU, "device='cuda:1' was asked for, and this machine has 1 GPU:"),
    (Request(device="mps"), LAPTOP, "no Apple GPU"),
    (Request(device="tpu"), EIGHT, "device='tpu' is not a device"),
    (Request(device="cuda:x"), EIGHT, "device='cuda:x' is not a device"),
    (Request(2), WINDOWS, "Workers need Linux or macOS"),
    (Request(background=True), WINDOWS, "leave out processes and background"),
    (
        Request(1000),
        Machine(cpus=2),
        "processes=1000 .* this machine has 2 cores.*use processes=2",
    ),
    (Request(2, device="mps"), Machine(cpus=8, mps=True), "processes=2 was asked for on device='mps'"),
    (Request(2, start_method="fork"), CUDA_IN_USE, "initialised CUDA"),
]


@pytest.mark.parametrize(("request_", "machine", "message"), ERRORS)
def test_what_a_machine_cannot_give(request_: Request, machine: Machine, message: str) -> None:
    """The error says what was asked for, what there is, and what to type."""
    with pytest.raises(PlacementError, match=message):
        place(request_, machine)


@pytest.mark.parametrize(
    ("devices", "backend"),
    [(("cpu",) * 2, "gloo"), (GPUS, "nccl"), (("cuda:0",), "nccl"), (("cuda:0", "cuda:0"), "gloo")],
)
def test_backends(devices: tuple[str, ...], backend: str) -> None:
    """GPUs of their own talk by NCCL, everything else by gloo."""
    assert backend == Placement(devices, "workers", 1, "forkserver", "").backend


def test_this_machine_is_detected() -> None:
    """Detecting takes a moment, initialises nothing, and gives a machine that can be trained on."""
    import torch

    before: Any = torch.cuda.is_initialized()
    machine = Machine.detect()

    assert machine.cpus >= 1
    assert before == torch.cuda.is_initialized()
    assert "in_process" == place(Request(1), machine).launcher


LIMITS: list[tuple[dict[str, str], float]] = [
    ({}, math.inf),
    ({"cpu.max": "max 100000\n"}, math.inf),
    ({"cpu.max": "200000 100000\n"}, 2),
    ({"cpu.max": "150000 100000\n"}, 2),
    ({"cpu.max": "10000 100000\n"}, 1),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
]


@pytest.mark.parametrize(("files", "cores"), LIMITS)
def test_a_container_has_the_cores_that_it_may_use(tmp_path: Path, files: dict[str, str], cores: float) -> None:
    """The limit of a container counts, not the cores of the machine below it, in both versions of control groups."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert cores == quota(tmp_path)
