"""Real kernels to measure in: what a cell costs is the time until the kernel is idle again, messages and all."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

from harness.kernel import Kernel  # noqa: E402  found in the folder above

SETUP = """
import gc, time
from dataclasses import replace
import contestants, tasks, torch
torch.set_num_threads(1)
"""


@contextmanager
def kernel(*cells: str, **env: str) -> Iterator[Kernel]:
    """A fresh kernel that knows tasks and contestants and has run these cells."""
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    with TemporaryDirectory() as folder:
        made = Kernel(Path(folder), {"PYTHONPATH": path, **env})
        try:
            for cell in cells:
                made.ok(cell, timeout=120)
            yield made
        finally:
            made.close()
