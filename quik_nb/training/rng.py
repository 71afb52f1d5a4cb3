"""Random number generators: seeds for each epoch, saving and restoring of states.

Seeding each epoch from (seed, epoch, rank) makes two calls of two epochs equal to one call of four, and lets a training
resume at the start of an epoch without saved generator states; within an epoch, captured states are restored.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def capture(device: torch.device | None = None) -> State:
    """The states of the generators of Python, NumPy and torch, and of a CUDA or MPS device."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: State = {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device is not None and device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore(state: State, device: torch.device | None = None) -> None:
    """Restore states from `capture`; that of a device of another type is ignored."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if device is not None and device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device is not None and device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def epoch_seed(seed: int, epoch: int, rank: int = 0, step: int = 0) -> int:
    """The seed for an epoch on a rank, starting at a step; different arguments give independent streams."""
    numbers = [seed, epoch, rank, *([step] if step else [])]
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # NumPy takes 32 bits, torch 64

    # torch.manual_seed also queues a seed, with a stack trace, for each kind of device that is not in use: that took a
    # quarter of the time of epochs of a millisecond
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


@contextmanager
def preserved(device: torch.device | None = None) -> Iterator[None]:
    """Restore all generators afterwards, including those of all GPUs.

    Args:
        device: that will be used inside; CUDA is initialised for it first, since it has no generator state before.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
    state = capture(device if device is not None and device.type == "mps" else None)
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        restore(state, device)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)
