"""The notebooks run from top to bottom, are live on the wire, and tell the same story in the saved file."""

import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


class Listener(NotebookClient):
    """A notebook client that keeps what the kernel sent for each cell, in order, until the cell was done."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.heard: dict[int, list[dict[str, Any]]] = {}

    def process_message(self, msg: dict[str, Any], cell: nbformat.NotebookNode, cell_index: int) -> Any:
        self.heard.setdefault(cell_index, []).append(msg)
        return super().process_message(msg, cell, cell_index)


def execute(name: str, folder: Path) -> Listener:
    """Run a copy of a notebook in a folder of its own."""
    shutil.copy(FOLDER / name, folder)
    notebook = nbformat.read(folder / name, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    # a widget that was closed is gone in JupyterLab; nbclient alone would go on keeping its state
    client = Listener(notebook, timeout=300, kernel_name="python3", store_widget_state=False, resources=resources)
    client.execute()
    return client


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Listener]:
    """Notebooks by name, each executed once."""
    return cache(lambda name: execute(name, tmp_path_factory.mktemp("notebook")))


@pytest.fixture
def quickstart(executed: Callable[[str], Listener]) -> Listener:
    """The quickstart, executed."""
    return executed("quickstart.ipynb")


def cell_with(notebook: nbformat.NotebookNode, text: str) -> int:
    """The number of the first code cell that holds this text."""
    return next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and text in cell.source)


def rows(html: str) -> int:
    """Number of rows in the body of the first table."""
    body = re.search(r"<tbody>(.*?)</tbody>", html, re.DOTALL)
    return len(re.findall("<tr>", body.group(1))) if body else 0


def live_rows(messages: list[dict[str, Any]]) -> list[int]:
    """Rows of the live table in each message that changed it, in order."""
    found = []
    for message in messages:
        if message["msg_type"] == "comm_msg":
            value = message["content"]["data"].get("state", {}).get("value", "")
            if isinstance(value, str) and "<table" in value:
                found.append(rows(value))
    return found


def records(notebook: nbformat.NotebookNode) -> list[dict[str, str]]:
    """The bundles that trainings left behind."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    found = [output.data for output in outputs if "data" in output]
    return [data for data in found if "data:image/png;base64" in data.get("text/html", "")]


def test_the_table_is_live_on_the_wire(quickstart: Listener) -> None:
    """Each epoch sends its row while the cell still runs."""
    cell = cell_with(quickstart.nb, "session.train(")
    messages = quickstart.heard[cell]
    idle = next(i for i, message in enumerate(messages) if message["content"].get("execution_state") == "idle")
    epochs = rows(records(quickstart.nb)[0]["text/html"])

    assert list(range(1, epochs + 1)) == [count for count in live_rows(messages[:idle]) if count > 0]


def test_the_saved_file_tells_the_story(quickstart: Listener) -> None:
    """A training leaves one bundle: a table and a picture as HTML, and the table as text, and nothing of widgets."""
    output, widgets = quickstart.nb.cells[cell_with(quickstart.nb, "session.train(")].outputs

    assert {"text/html", "text/plain"} == set(output.data)
    assert re.search(r"<table.*valid_loss.*</table>", output.data["text/html"], re.DOTALL)
    assert re.search(r'<img [^>]*src="data:image/png;base64,\w', output.data["text/html"])
    assert "valid_loss" in output.data["text/plain"]
    assert {""} == set(widgets.data.values())
    assert "widgets" not in quickstart.nb.metadata


def test_the_quickstart_keeps_its_word(quickstart: Listener) -> None:
    """At least 97 % of the validation digits are right with the weights of the best epoch."""
    shown = quickstart.nb.cells[cell_with(quickstart.nb, 'session.evaluate("valid")')].outputs[-1]
    accuracy = re.search(r"accuracy\W+([\d.]+)", shown.data["text/plain"])

    assert accuracy is not None
    assert float(accuracy.group(1)) >= 0.97


def test_the_distributed_notebook_keeps_its_word(executed: Callable[[str], Listener]) -> None:
    """Two processes come to the weights of one, an error shows the line of the cell, and a stop is one interrupt."""
    cells = [cell for cell in executed("distributed.ipynb").nb.cells if cell.cell_type == "code"]
    printed = "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")
    difference = re.search(r"largest difference between two weights: (\S+)", printed)

    assert difference is not None
    assert float(difference.group(1)) < 1e-5
    assert "Rank 1 of 2 failed here:\n  Cell In[8], line 8, in forward\n    raise ValueError" in printed
    assert "KeyboardInterrupt: the training was stopped" in printed


def test_the_own_loop_keeps_its_word(executed: Callable[[str], Listener]) -> None:
    """The loop written by hand has the very numbers of train()."""
    notebook = executed("own_loop.ipynb").nb
    (shown,) = notebook.cells[cell_with(notebook, "equals(kit.history.train_loss)")].outputs

    assert "True" == shown.data["text/plain"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name: str, executed: Callable[[str], Listener]) -> None:
    """The notebook runs from top to bottom, prints no warning, and its curves give no reason for advice."""
    notebook = executed(name).nb
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notes = [re.findall('class="quik-note">([^<]*)<', data["text/html"]) for data in records(notebook)]

    assert [] == [output.text for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    assert {""} == {words for found in notes for words in found}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_kept_with_its_outputs(name: str) -> None:
    """What lies in the repository was executed in one go, so that it shows on GitHub what it does."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]

    assert list(range(1, len(code) + 1)) == [cell.execution_count for cell in code]
    assert len(records(notebook)) >= 1
    assert "widgets" not in notebook.metadata


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_names_no_place_of_ours(name: str) -> None:
    """No output shows a folder of the machine on which it was made."""
    text = (FOLDER / name).read_text()

    assert [] == re.findall(r"/(?:home|root|tmp|Users)/[\w./-]+", re.sub(r"base64,[^\"\\]+", "", text))
