"""The live view as a person sees it: in JupyterLab and Notebook, in both themes, while a cell trains and afterwards."""

from collections.abc import Callable
from typing import Literal

import pytest
from harness.lab import Lab, NotebookPage, Theme
from nbformat import NotebookNode
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

EPOCHS = 6

PREPARE = """import time

import torch
from torch import nn, optim

from quik_nb import QuikSession

torch.manual_seed(0)
x = torch.randn(400, 8)
y = (x[:, :2].prod(dim=1) > 0).long()


def slow(model, criterion, batch):
    time.sleep(0.05)
    x, y = batch
    return criterion(model(x), y)


session = (
    QuikSession(epochs=6, batch_size=40, lr=1e-2, save=False)
    .add_data(train=(x, y), valid=0.2)
    .add_model(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)))
    .set_criterion(nn.CrossEntropyLoss)
    .set_optimizer(optim.AdamW)
    .set_step(slow)
)"""

WATCH = """() => {
    window.counts = [];
    const look = () => {
        const view = document.querySelector('.quik-view');
        const prompt = document.querySelectorAll('.jp-InputPrompt')[1].textContent;
        if (!view || !prompt.includes('*')) return;
        const rows = view.querySelectorAll('table tbody tr').length;
        if (rows !== window.counts.at(-1)) window.counts.push(rows);
    };
    new MutationObserver(look).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""
"""Writes down the number of rows in the live table at each change of the page while the second cell runs."""


def bundle(notebook: NotebookNode) -> dict[str, str]:
    """The one output of the training cell in a saved notebook."""
    (output,) = notebook.cells[1].outputs
    data: dict[str, str] = output.data
    return data


@pytest.mark.parametrize(("front_end", "theme"), [("lab", "light"), ("lab", "dark"), ("notebook", "light")])
def test_the_table_grows_while_the_cell_runs(
    lab: Lab, open_notebook: Callable[..., NotebookPage], front_end: Literal["lab", "notebook"], theme: Theme
) -> None:
    """Each epoch adds a row while the cell runs; then a plain record stands there, on the screen and in the file."""
    name = f"live-{front_end}-{theme}"
    lab.write(f"{name}.ipynb", PREPARE, "run = session.train()")
    lab.set_theme(theme)
    notebook = open_notebook(f"{name}.ipynb", front_end=front_end)
    notebook.run(0)
    notebook.page.evaluate(WATCH)

    notebook.start(1)
    notebook.page.wait_for_function("window.counts.at(-1) >= 3", timeout=60_000)
    notebook.screenshot(f"{name}-training")
    notebook.wait(1)

    output = notebook.output(1)
    expect(output.locator(".quik-view")).to_have_count(0)
    expect(output.locator("table tbody tr")).to_have_count(EPOCHS)
    expect(output.locator("img[src^='data:image/png;base64']")).to_have_count(1)
    notebook.screenshot(f"{name}-record")
    counts = notebook.page.evaluate("window.counts")
    assert list(range(1, EPOCHS + 1)) == [count for count in counts if count > 0]
    saved = notebook.save()
    assert {"text/html", "text/plain"} == set(bundle(saved))
    assert "widgets" not in saved.metadata


def test_the_record_is_there_when_the_notebook_is_opened_again(
    lab: Lab, open_notebook: Callable[..., NotebookPage]
) -> None:
    """A saved notebook that is opened anew, with a fresh kernel, shows table and curve."""
    lab.write("again.ipynb", PREPARE, "run = session.train(epochs=2)")
    lab.set_theme("light")
    notebook = open_notebook("again.ipynb")
    notebook.run(0)
    notebook.run(1)
    notebook.save()
    notebook.close()
    lab.end_kernels()

    output = open_notebook("again.ipynb").output(1)

    expect(output.locator("table tbody tr")).to_have_count(2)
    expect(output.locator("img[src^='data:image/png;base64']")).to_have_count(1)
