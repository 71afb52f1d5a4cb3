"""Random numbers: every epoch starts from a seed of its own, and the user's generators are given back as they were.

Seeding each epoch from (seed, epoch, rank) makes two trainings of two epochs equal to one of four, and lets a resumed
run go on at an epoch's start without any saved state; within an epoch the captured state does that.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def capture() -> State:
    """The state of the generators of Python, NumPy and torch (and CUDA, where this process uses it)."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: State = {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: State) -> None:
    """Put back what `capture` took."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """A seed for one epoch on one rank; different epochs and ranks give unrelated streams."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint32)[0])


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # NumPy takes 32 bits, torch 64
    torch.manual_seed(seed)


@contextmanager
def preserved() -> Iterator[None]:
    """Whatever is drawn inside, the generators are afterwards as they were before."""
    state = capture()
    try:
        yield
    finally:
        restore(state)
