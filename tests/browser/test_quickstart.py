"""The quickstart as a newcomer meets it: opened in JupyterLab, cell after cell."""

from collections.abc import Callable

import nbformat
import pytest
from harness.lab import ROOT, Lab, NotebookPage
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_the_quickstart_runs_in_the_page(lab: Lab, open_notebook: Callable[..., NotebookPage]) -> None:
    """Every cell runs without an error; the pictures of it are kept, and the README shows the one of the training."""
    committed = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
    for cell in committed.cells:
        if cell.cell_type == "code":
            cell.update(execution_count=None, outputs=[])
    cells = committed.cells
    nbformat.write(committed, lab.folder / "quickstart.ipynb")
    lab.set_theme("light")
    notebook = open_notebook("quickstart.ipynb")
    training = next(i for i, cell in enumerate(cells) if cell.source == "session.train()")

    for i, cell in enumerate(cells):
        if cell.cell_type == "code":
            notebook.start(i)
            if i == training:
                # on a fast machine the record is there before a look at the live view
                live = notebook.output(i).locator(".quik-view tbody tr")
                expect(live.nth(6)).to_be_attached(timeout=60_000)
                notebook.screenshot("quickstart-training", cell=i)
            notebook.wait(i)
            notebook.screenshot(f"quickstart-{i:02d}", cell=i)

    expect(notebook.page.locator(".jp-OutputArea-output[data-mime-type*=error]")).to_have_count(0)
    expect(notebook.output(training).locator("table tbody tr")).to_have_count(10)
