"""The JupyterLab that the other tests drive is itself what it says."""

from collections.abc import Callable
from typing import Literal

import pytest
from harness.lab import Lab, NotebookPage
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

OpenNotebook = Callable[..., NotebookPage]


@pytest.mark.parametrize("front_end", ["lab", "notebook"])
def test_a_cell_prints(lab: Lab, open_notebook: OpenNotebook, front_end: Literal["lab", "notebook"]) -> None:
    """A cell that is run in the page prints in the page, and the saved file holds it."""
    lab.write(f"prints-{front_end}.ipynb", "print(6 * 7)")
    notebook = open_notebook(f"prints-{front_end}.ipynb", front_end=front_end)

    notebook.run(0)

    expect(notebook.output(0)).to_have_text("42")
    assert "42\n" == notebook.save().cells[0].outputs[0].text


def test_a_running_cell_is_seen(lab: Lab, open_notebook: OpenNotebook) -> None:
    """What a cell shows while it runs can be waited for, and the cell interrupted."""
    lab.write("runs.ipynb", "import time\nprint('begun', flush=True)\ntime.sleep(60)")
    notebook = open_notebook("runs.ipynb")

    notebook.start(0)
    expect(notebook.output(0)).to_have_text("begun", timeout=30_000)
    notebook.interrupt()

    notebook.wait(0)
    expect(notebook.output(0)).to_contain_text("KeyboardInterrupt")


def test_both_themes(lab: Lab, open_notebook: OpenNotebook) -> None:
    """The theme is that of the page, and ipywidgets are drawn in it."""
    lab.write("themes.ipynb", "import ipywidgets\nipywidgets.HTML('<b>hello</b>')")
    darkness = {}
    for theme in ("dark", "light"):
        lab.set_theme(theme)
        notebook = open_notebook("themes.ipynb")
        notebook.run(0)
        expect(notebook.output(0).locator(".widget-html b")).to_have_text("hello")
        darkness[theme] = notebook.page.locator("body").get_attribute("data-jp-theme-light")
        notebook.screenshot(f"harness-{theme}")

    assert {"dark": "false", "light": "true"} == darkness
