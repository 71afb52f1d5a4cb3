"""A kernel as a person's page drives it, which must be clean after each test of a module."""

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
        kernel = Kernel(folder, {"TMPDIR": temporary}, interactive=True)
        kernel.ok(SETUP)
        yield Notebook(kernel, Path(temporary))
        kernel.close()


@pytest.fixture
def notebook(started: Notebook) -> Iterator[Kernel]:
    """The kernel of the module; a test that leaves anything running or lying about fails."""
    yield started.kernel

    assert [] == leftovers(*started)


@pytest.fixture
def make_notebook(tmp_path: Path) -> Iterator[Callable[[], Notebook]]:
    """Fresh kernels that have run the first cell, one after the other in one folder, for tests that end them."""
    kernels: list[Kernel] = []
    with TemporaryDirectory() as temporary:

        def make() -> Notebook:
            kernels.append(Kernel(tmp_path, {"TMPDIR": temporary}, interactive=True))
            kernels[-1].ok(SETUP)
            return Notebook(kernels[-1], Path(temporary))

        yield make
        for kernel in kernels:
            kernel.close()
