"""A kernel as a person's page drives it, which must be clean after each test of a module."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness.kernel import Kernel
from harness.workers import Notebook, leftovers, running


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    """The notebook of a module."""
    with running(tmp_path_factory.mktemp("notebook"), interactive=True) as notebook:
        yield notebook


@pytest.fixture
def notebook(started: Notebook) -> Iterator[Kernel]:
    """The kernel of the module; a test that leaves anything running or lying about fails."""
    yield started.kernel

    assert [] == leftovers(*started)


@pytest.fixture
def make_notebook(tmp_path: Path) -> Iterator[Callable[[], Notebook]]:
    """Fresh kernels that have run the first cell, one after the other in one folder, for tests that end them."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(running(tmp_path, interactive=True))
