"""A kernel for the tests of one module, which must find it clean after each of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from harness.kernel import Kernel
from harness.workers import SETUP, Notebook, leftovers


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    """The notebook of a module."""
    folder = tmp_path_factory.mktemp("notebook")
    with TemporaryDirectory() as temporary:
        kernel = Kernel(folder, {"TMPDIR": temporary})
        kernel.ok(SETUP)
        yield Notebook(kernel, Path(temporary))
        kernel.close()


@pytest.fixture
def notebook(started: Notebook) -> Iterator[Kernel]:
    """The kernel of the module; a test that leaves anything running or lying about fails."""
    yield started.kernel

    assert [] == leftovers(*started)


@pytest.fixture
def own_notebook(make_kernel: Callable[..., Kernel]) -> Iterator[Notebook]:
    """A fresh kernel that has run the first cell, for a test that ends it."""
    with TemporaryDirectory() as temporary:
        kernel = make_kernel(TMPDIR=temporary)
        kernel.ok(SETUP)
        yield Notebook(kernel, Path(temporary))
