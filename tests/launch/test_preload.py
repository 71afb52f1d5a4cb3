"""What the fork server has loaded before it forks: all that a worker's first step needs, and no thread."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.plain import network, regression
from torch import Tensor, nn, optim

MOST_LATE = 5
"""Modules of torch that a worker may import by itself: hundreds are there from birth."""


class Notes(nn.Module):
    """Writes down which modules came between its birth in a worker and its latest forward pass."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.inner = network()
        self.path = path
        self.at_birth: set[str] = set()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.at_birth = set(sys.modules)

    def forward(self, x: Tensor) -> Tensor:
        late = {name for name in sys.modules if name.startswith("torch.")} - self.at_birth
        self.path.write_text("\n".join(sorted(late)))
        return self.inner(x)


@pytest.mark.parametrize("optimizer", [optim.Adam, optim.SGD])
def test_a_worker_imports_next_to_nothing_of_torch(tmp_path: Path, optimizer: type[optim.Optimizer]) -> None:
    """On another version of torch, what a worker imports late shows here, rather than as slower starts."""
    session = regression(Notes(tmp_path / "late"), epochs=2).set_optimizer(optimizer, lr=0.01)
    session.train(processes=2)
    late = (tmp_path / "late").read_text().split()

    assert MOST_LATE >= len(late), late


def test_preloading_starts_no_thread() -> None:
    """A fork of a process with torch's thread pool hangs at the child's first parallel operation."""
    code = "import quik_nb.launch.preload, psutil; print(psutil.Process().num_threads())"
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # NumPy's, which starts one and knows of forks
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=environment
    )

    assert "1\n" == done.stdout
