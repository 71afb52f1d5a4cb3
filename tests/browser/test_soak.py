"""A long background run of short epochs leaves kernel, wire and page as they were."""

from collections.abc import Callable

import psutil
import pytest
from browser.test_live_view import PREPARE
from harness.kernel import Kernel
from harness.lab import Lab, NotebookPage
from playwright.sync_api import expect

EPOCHS = 2000
MEGABYTE = 2**20

FAST = """session.set_step(None).train(epochs=100, background=True).wait()
len(session.history)  # what a record and a DataFrame import is there before memory is looked at
run = session.train(epochs={epochs}, background=True)
import os
os.getpid()"""

RESPONSE = """() => new Promise(done => {
    const start = performance.now();
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - start), 0));
})"""
"""Milliseconds until the page has drawn once more and is free again."""


def response(notebook: NotebookPage) -> float:
    """How long the page takes to answer: the median of some askings, in milliseconds."""
    return sorted(notebook.page.evaluate(RESPONSE) for _ in range(21))[10]


@pytest.mark.slow
@pytest.mark.browser
def test_two_thousand_epochs_with_the_page_open(lab: Lab, open_notebook: Callable[..., NotebookPage]) -> None:
    """After 2,000 epochs the kernel has grown by megabytes at most, and the page answers as it did at the start."""
    lab.write("soak.ipynb", PREPARE, FAST.format(epochs=EPOCHS), "run.wait(); len(run.history)", "1 + 1")
    notebook = open_notebook("soak.ipynb")
    notebook.run(0)
    notebook.run(1)
    kernel = psutil.Process(int(notebook.output(1).inner_text().split()[-1]))
    expect(notebook.output(1).locator(".widget-box.quik-view tbody tr").nth(5)).to_be_attached(timeout=60_000)
    memory, quick = kernel.memory_info().rss, response(notebook)

    notebook.run(2, timeout=300)
    notebook.run(3)
    expect(notebook.output(1).locator("img[src^='data:image/png;base64']")).to_have_count(2, timeout=30_000)
    notebook.screenshot("soak-end", cell=1)

    assert str(EPOCHS + 100) in notebook.output(2).inner_text()
    assert kernel.memory_info().rss < memory + 20 * MEGABYTE
    assert response(notebook) < 5 * quick + 100


@pytest.mark.slow
def test_an_epoch_costs_the_wire_the_same_however_many_came_before(make_kernel: Callable[..., Kernel]) -> None:
    """Within a long run, the messages of later epochs are no larger than those of earlier ones beyond the picture."""
    kernel = make_kernel()
    kernel.ok(PREPARE)
    sizes = []
    for epochs in (200, 1000):
        result = kernel.ok(f"session.reset().set_step(None).train(epochs={epochs})", timeout=200)
        curves = [m.size for m in result.of("comm_msg")]
        sizes.append(max(curves))

    assert sizes[1] < 2 * sizes[0]
