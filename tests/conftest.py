"""Options, reasons to skip, and the fixtures that start something real: a kernel, JupyterLab, a browser."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# IPython warns where this names another environment than the one it runs in, as in a shell that has one activated
os.environ.pop("VIRTUAL_ENV", None)

if TYPE_CHECKING:
    from harness.kernel import Kernel
    from harness.lab import Lab, NotebookPage
    from playwright.sync_api import Browser


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--slow` adds the tests that take longer."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with the reason, what was not asked for or cannot run here."""
    if not config.getoption("--slow"):
        skip(items, "slow", "slow: add --slow to run it")
    if any(item.get_closest_marker("gpu") for item in items) and not cuda():
        skip(items, "gpu", "needs a CUDA device")
    if (reason := no_browser()) and not os.environ.get("CI"):  # in CI the fixture fails instead
        skip(items, "browser", reason)


def skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    """Skip all tests that carry a marker."""
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


def cuda() -> bool:
    """Whether torch sees a GPU; asked only where a test wants one."""
    import torch

    return torch.cuda.is_available()


def no_browser() -> str | None:
    """Why the browser tests cannot run here; None where they can."""
    from harness.lab import chromium

    return None if chromium() else "needs Chromium: install your system's package 'chromium'"


@pytest.fixture
def make_kernel(tmp_path: Path) -> Iterator[Callable[..., "Kernel"]]:
    """Start kernels with an environment of one's own; all are ended with the test."""
    from harness.kernel import Kernel

    kernels: list[Kernel] = []

    def make(**env: str) -> Kernel:
        kernels.append(Kernel(tmp_path, env))
        return kernels[-1]

    yield make
    for kernel in kernels:
        kernel.close()


@pytest.fixture
def kernel(make_kernel: Callable[..., "Kernel"]) -> "Kernel":
    """A fresh kernel whose working folder is the test's `tmp_path`."""
    return make_kernel()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Lab"]:
    """A JupyterLab server (with Notebook 7 beside it) for all browser tests."""
    from harness.lab import Lab

    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium, for one module: Playwright's event loop must be gone before tests that run a loop of their own."""
    from harness.lab import launch
    from playwright.sync_api import sync_playwright

    if reason := no_browser():
        pytest.fail(reason)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def open_notebook(lab: "Lab", browser: "Browser") -> Iterator[Callable[..., "NotebookPage"]]:
    """Open notebooks of the lab's folder by name; tabs and kernels end with the test."""
    pages: list[NotebookPage] = []

    def open_one(name: str, **options: str) -> "NotebookPage":
        pages.append(lab.open(browser, name, **options))  # type: ignore[arg-type]
        return pages[-1]

    yield open_one
    for page in pages:
        page.close()
    lab.end_kernels()
