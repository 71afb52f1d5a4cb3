"""Torch's global switches: read, applied in another process, and restored.

Covered are those that change results or speed and that users set in a cell: default dtype, deterministic algorithms,
precision of matrix products, TF32, cuDNN, anomaly detection, gradient mode and autocast.

What is not here: the number of threads, which the launcher sets.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

Switches = dict[str, Any]

DEVICES = ("cpu", "cuda")
"""Device types whose autocast switch is covered."""


def capture() -> Switches:
    """The current switches, as plain values that can be pickled."""
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
    """Set the switches to values from `capture`."""
    torch.set_default_dtype(switches["default_dtype"])
    deterministic, warn_only = switches["deterministic"]
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)

    # precision first, since it also changes TF32 of matrix products
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
    """Restore all switches afterwards, and leave the autocast contexts that were entered and not left."""
    before, depth = capture(), autocast_depth()
    try:
        yield
    finally:
        if capture() != before:
            restore(before)
        # within a context that nobody leaves, autocast would use casts of old weights for ever
        for _ in range(autocast_depth() - depth):
            torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()


def autocast_depth() -> int:
    """The number of autocast contexts that this thread is in.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     autocast_depth()
    1
    """
    inside = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return int(inside) - 1
