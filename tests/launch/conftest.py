"""A kernel for the tests of one module, which must find it clean after each of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from harness.kernel import Kernel
from harness.workers import SETUP, leftovers


class Notebook(NamedTuple):
    """A kernel that has run the first cell, and its folder for temporary files."""

    kernel: Kernel
    temporary: Path


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    """The notebook of a module."""
    folder = tmp_path_factory.mktemp("notebook")
    temporary = tmp_path_factory.mktemp("temporary")
    kernel = Kernel(folder, {"TMPDIR": str(temporary)})
    kernel.ok(SETUP)
    yield Notebook(kernel, temporary)
    kernel.close()


@pytest.fixture
def notebook(started: Notebook) -> Iterator[Kernel]:
    """The kernel of the module; a test that leaves anything running or lying about fails."""
    yield started.kernel

    assert [] == leftovers(*started)


@pytest.fixture
def own_notebook(tmp_path: Path, make_kernel: Callable[..., Kernel]) -> Notebook:
    """A fresh kernel that has run the first cell, for a test that ends it."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    kernel = make_kernel(TMPDIR=str(temporary))
    kernel.ok(SETUP)
    return Notebook(kernel, temporary)
