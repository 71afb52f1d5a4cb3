"""A kernel for the tests of one module, which must find it clean after each of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.kernel import Kernel
from harness.workers import Notebook, leftovers, running


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    """The notebook of a module."""
    with running(tmp_path_factory.mktemp("notebook")) as notebook:
        yield notebook


@pytest.fixture
def notebook(started: Notebook) -> Iterator[Kernel]:
    """The kernel of the module; a test that leaves anything running or lying about fails."""
    yield started.kernel

    assert [] == leftovers(*started)


@pytest.fixture
def own_notebook(tmp_path: Path) -> Iterator[Notebook]:
    """A fresh kernel that has run the first cell, for a test that ends it."""
    with running(tmp_path) as notebook:
        yield notebook
