"""A background run as a person meets it: rows that grow, cells that answer, buttons, a page that is loaded anew."""

import re
import time
from collections.abc import Callable

import pytest
from browser.test_live_view import PREPARE
from harness.lab import Lab, NotebookPage, Theme
from playwright.sync_api import Locator, expect

pytestmark = pytest.mark.browser

OpenNotebook = Callable[..., NotebookPage]

TRAIN = "run = session.train(epochs=200, background=True, processes={})"
MANY = 60_000
"""Milliseconds that a loaded machine may take until workers have started."""


def view(notebook: NotebookPage, cell: int = 1) -> Locator:
    """The live view under a cell."""
    return notebook.output(cell).locator(".widget-box.quik-view")


def rows(notebook: NotebookPage, count: int, cell: int = 1) -> None:
    """Wait until the table under a cell has so many rows."""
    expect(view(notebook, cell).locator("tbody tr").nth(count - 1)).to_be_attached(timeout=MANY)


def button(notebook: NotebookPage, name: str, cell: int = 1) -> Locator:
    """A button under the live view."""
    return view(notebook, cell).get_by_role("button", name=name)


def status(notebook: NotebookPage, cell: int = 1) -> Locator:
    """The first line under the bars."""
    return view(notebook, cell).locator(".quik-status").first


@pytest.mark.parametrize(
    ("front_end", "theme", "processes"), [("lab", "light", 2), ("lab", "dark", 1), ("notebook", "light", 1)]
)
def test_a_background_run_is_watched_and_steered(
    lab: Lab, open_notebook: OpenNotebook, front_end: str, theme: Theme, processes: int
) -> None:
    """Cells answer while the bar moves; rate, pause, resume and stop work by hand and are seen; the record stays."""
    name = f"background-{front_end}-{theme}"
    lab.write(f"{name}.ipynb", PREPARE, TRAIN.format(processes), "6 * 7", "session.runs")
    lab.set_theme(theme)
    notebook = open_notebook(f"{name}.ipynb", front_end=front_end)
    notebook.run(0)
    notebook.run(1)
    rows(notebook, 1)
    before = status(notebook).inner_text()
    began = time.monotonic()
    notebook.run(2)
    answered = time.monotonic() - began
    expect(notebook.output(2)).to_contain_text("42")
    expect(status(notebook)).not_to_have_text(before, timeout=5000)
    notebook.screenshot(f"{name}-running")

    field = view(notebook).get_by_placeholder("new learning rate")
    field.fill("fast")
    field.press("Enter")
    expect(view(notebook)).to_contain_text("'fast' is no learning rate")
    field.fill("3e-3")
    field.press("Enter")
    expect(view(notebook).locator("svg")).to_contain_text("lr 0.003", timeout=15_000)
    button(notebook, "Pause").click()
    expect(status(notebook)).to_contain_text("paused")
    notebook.page.wait_for_timeout(700)
    held = status(notebook).inner_text(), view(notebook).locator("tbody tr").count()
    notebook.page.wait_for_timeout(1000)
    assert held == (status(notebook).inner_text(), view(notebook).locator("tbody tr").count())
    notebook.screenshot(f"{name}-paused")
    button(notebook, "Resume").click()
    expect(status(notebook)).not_to_contain_text("paused")
    expect(view(notebook).locator("svg")).to_contain_text(re.compile(r"paused \d s"), timeout=15_000)
    button(notebook, "Stop").click()
    expect(view(notebook)).to_have_count(0, timeout=15_000)

    output = notebook.output(1)
    expect(output).to_contain_text("stopped in epoch")
    expect(output.locator("img[src^='data:image/png;base64']")).to_have_count(1)
    notebook.run(3)
    expect(notebook.output(3)).to_contain_text("stopped")
    notebook.screenshot(f"{name}-stopped")
    saved = notebook.save()
    assert answered < 3.0  # the harness itself looks every 0.3 seconds
    assert {"text/html", "text/plain"} == set(saved.cells[1].outputs[0].data)
    assert "widgets" not in saved.metadata


def test_a_page_that_is_loaded_anew_finds_its_run(lab: Lab, open_notebook: OpenNotebook) -> None:
    """After a reload show() draws the whole history and follows; shut down and reopened, the record is there."""
    lab.write("reload.ipynb", PREPARE, TRAIN.format(1), "session.show()", "run.stop(); run.wait(); run.state")
    lab.set_theme("light")
    notebook = open_notebook("reload.ipynb")
    notebook.run(0)
    notebook.run(1)
    rows(notebook, 2)
    notebook.save()
    notebook.page.reload()
    expect(notebook.cells.first).to_be_visible(timeout=MANY)
    notebook.run(2)
    rows(notebook, 3, cell=2)
    notebook.screenshot("reload-shown")
    expect(view(notebook, 2).locator("td").first).to_have_text("0")
    notebook.run(3)
    expect(notebook.output(3)).to_contain_text("'stopped'")
    expect(notebook.output(2).locator("img[src^='data:image/png;base64']")).to_have_count(1)
    notebook.save()
    notebook.close()
    lab.end_kernels()

    again = open_notebook("reload.ipynb")

    # the cell that began it lost its display id with the reload, so the place where it was shown last has the record
    expect(again.output(2).locator("table tbody tr").first).to_be_visible()
    expect(again.output(2).locator("img[src^='data:image/png;base64']")).to_have_count(1)
    again.screenshot("reload-reopened")


def test_a_cell_that_is_run_again_has_one_bar(lab: Lab, open_notebook: OpenNotebook) -> None:
    """Interrupted and run again, there is one view and then one record; a second train() beside a run is refused."""
    lab.write("again.ipynb", PREPARE, "run = session.train(epochs=20)", TRAIN.format(1), "run.stop(); run.wait()")
    lab.set_theme("light")
    notebook = open_notebook("again.ipynb")
    notebook.run(0)
    for _ in range(2):
        notebook.start(1)
        rows(notebook, 1)
        expect(view(notebook).locator(".quik-bar")).to_have_count(1)
        notebook.interrupt()
        notebook.wait(1)
        expect(view(notebook)).to_have_count(0)
        expect(notebook.output(1).locator("img")).to_have_count(1)
        expect(notebook.output(1)).to_contain_text("KeyboardInterrupt")
    notebook.screenshot("again-interrupted")
    notebook.run(2)
    expect(view(notebook, 2).locator(".quik-bar")).to_have_count(1)
    notebook.run(2)
    expect(notebook.output(2)).to_contain_text(re.compile("a run of this session is running.*session.show\\(\\)"))
    expect(view(notebook, 2)).to_have_count(0)
    notebook.screenshot("again-refused")
    notebook.run(3)
