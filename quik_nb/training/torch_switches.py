"""Torch's switches for a whole process: read, carried to another process, and restored.

Covered are those that change numbers or speed and that users set in a cell: default dtype, deterministic algorithms,
precision of matrix products, TF32, anomaly detection, gradient mode and autocast. Threads are the launcher's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

Switches = dict[str, Any]

DEVICES = ("cpu", "cuda")
"""Device types whose autocast is looked at."""


def capture() -> Switches:
    """The switches as they are now: plain values that can be pickled."""
    return {
        "default_dtype": torch.get_default_dtype(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "grad": torch.is_grad_enabled(),
        "autocast": {device: torch.is_autocast_enabled(device) for device in DEVICES},
    }


def restore(switches: Switches) -> None:
    """Set the switches as `capture` found them."""
    torch.set_default_dtype(switches["default_dtype"])
    deterministic, warn_only = switches["deterministic"]
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)

    # first the precision, which sets TF32 of products as well
    torch.set_float32_matmul_precision(switches["matmul_precision"])
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = switches["tf32"]
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = switches["cudnn"]

    enabled, check_nan = switches["anomaly"]
    torch.autograd.set_detect_anomaly(enabled, check_nan)
    torch.set_grad_enabled(switches["grad"])
    for device, on in switches["autocast"].items():
        torch.set_autocast_enabled(device, on)


@contextmanager
def preserved() -> Iterator[None]:
    """Whatever is switched inside, the switches are restored afterwards."""
    before = capture()
    try:
        yield
    finally:
        if capture() != before:
            restore(before)
