"""What outlives what: cells run by a program, a kernel that ends, a folder that is resumed, a view drawn again."""

import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import psutil
import pytest
from harness.kernel import Kernel, Result
from harness.workers import SETUP, Notebook, leftovers
from nbclient import NotebookClient

MakeNotebook = Callable[[], Notebook]

LONG = "s = session(Net(slow), epochs=100, view=False, save=True); run = s.train(background=True, processes=2)\n"
ROWS = "while len(run.history) < {}:\n    time.sleep(0.02)\n"
COMPARED = ["train_loss", "valid_loss", "lr"]


def last(kernel: Kernel, code: str) -> str:
    """The last line that a cell prints."""
    return kernel.ok(code).text.splitlines()[-1]


def test_a_program_that_runs_cells_never_loses_the_run(tmp_path: Path) -> None:
    """Executed by nbclient, the cell waits for its background run, and its output is the record of all epochs."""
    train = "run = session(Net(slow), epochs=3, view='auto').train(background=True, processes=2)"
    cells = [nbformat.v4.new_code_cell(code) for code in (SETUP, train, "run.state")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    executed = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()

    output, widgets = executed.cells[1].outputs
    assert {"text/html", "text/plain"} == set(output.data)
    assert 3 == output.data["text/html"].split("<tbody>")[1].count("<tr>")
    assert "data:image/png;base64," in output.data["text/html"]
    assert {""} == set(widgets.data.values())
    assert "'finished'" == executed.cells[2].outputs[0].data["text/plain"]


@pytest.mark.parametrize("how", ["shut_down", "kill"])
def test_a_kernel_that_ends_takes_its_run_along(make_notebook: MakeNotebook, how: str) -> None:
    """No process is left; what was trained is resumed in another kernel, equal to a run that was left alone."""
    first = make_notebook()
    rows = int(last(first.kernel, LONG + ROWS.format(2) + "print(len(run.history))"))
    getattr(first.kernel, how)()
    end = time.monotonic() + 10
    while first.kernel.processes() and time.monotonic() < end:
        time.sleep(0.05)
    left = leftovers(*first)
    second = make_notebook().kernel
    resumed = second.ok(
        f"s = QuikSession.resume()\n"
        "print(len(s.history) , s.run)\n"
        "done = int((s.history.get('fraction', s.history.epoch * 0 + 1) == 1).sum())\n"
        "s.model.before = lambda rank, step: None\n"
        "s.train(epochs=12 - done, view=False, processes=1)\n"
        "w = session(Net(), epochs=100, view=False); w.train(epochs=12, processes=1)\n"
        f"print(len(s.history), float((s.history[{COMPARED}] - w.history[{COMPARED}]).abs().max().max()) < 1e-9,"
        " torch.allclose(s.model.layer.weight, w.model.layer.weight, atol=1e-9))"
    )

    assert [] == left
    assert rows <= int(resumed.text.split()[0])
    assert "12 True True" == resumed.text.splitlines()[-1]


def test_a_step_that_takes_long_does_not_hold_up_the_end(make_notebook: MakeNotebook) -> None:
    """A kernel that is shut down while a step takes a minute ends its workers, and then itself."""
    notebook = make_notebook()
    kernel, _ = notebook
    kernel.ok(
        "def long(rank, step):\n    time.sleep(60 if step > 1 else 0)\n"
        "s = session(Net(long), view=False); run = s.train(background=True, processes=2)\n"
        "time.sleep(1.5); print(run.state)"
    )
    kernel.client.shutdown()
    gone, _ = psutil.wait_procs([psutil.Process(kernel.pid)], timeout=20)

    assert 1 == len(gone)
    assert [] == leftovers(*notebook)


def test_show_draws_the_whole_history_and_follows(notebook: Kernel) -> None:
    """In another cell the rows so far are there at once, later ones come too, and each place ends with the record."""
    began = notebook.ok(
        "s = session(Net(slow), epochs=6, view='auto'); run = s.train(background=True)\n" + ROWS.format(2)
    )
    shown = notebook.ok("s.show()")
    tables = [table for table in sent(shown) if "<tbody>" in table]
    ended = notebook.ok("run.wait(); time.sleep(0.5)")
    again = notebook.ok("s.show()")

    assert 2 <= tables[0].count("<tr>") - 1
    assert 1 == len([data for data in began.displays if "application/vnd.jupyter.widget-view+json" in data])
    assert [6, 6] == rows_of(ended)[-2:]
    assert 6 == rows_of(again)[-1]


def rows_of(result: Result) -> list[int]:
    """The rows of each table that a cell displayed."""
    pages = [display.get("text/html", "") for display in result.displays]
    return [page.split("<tbody>")[1].count("<tr>") for page in pages if "<tbody>" in page]


def sent(result: Result) -> list[str]:
    """The HTML of the widgets that a cell opened."""
    states = [message.content["data"].get("state", {}) for message in result.of("comm_open")]
    return [state["value"] for state in states if isinstance(state.get("value"), str)]


def test_show_in_a_pause_says_so(notebook: Kernel) -> None:
    """A view that comes to a run in a pause says that it is paused, and offers to go on."""
    shown = notebook.ok(
        "s = session(Net(slow), epochs=50, view='auto'); run = s.train(background=True)\n"
        + ROWS.format(1)
        + "run.pause(); time.sleep(0.3); s.show()"
    )
    texts = [str(m.content["data"].get("state", {})) for m in shown.of("comm_msg", "comm_open")]
    notebook.ok("run.stop(); run.wait(); time.sleep(0.3)")

    assert any("paused" in text for text in texts)
    assert any("Resume" in text for text in texts)


def test_runs_lists_what_was_tried(notebook: Kernel) -> None:
    """A line for each call of train(), with what was changed since the one before; compare() draws a line for each."""
    result = notebook.ok(
        "s = session(Net(slow), view=False)\n"
        "s.train(2); s.train(1, lr=0.1); s.train(1, lr=0.1)\n"
        "s.reset(); run = s.train(50, background=True)\n" + ROWS.format(1) + "state = s.runs.state.iloc[-1]\n"
        "names = s.compare().axes[0].get_legend_handles_labels()[1]\n"
        "run.stop(); run.wait(); runs = s.runs\n"
        "print(list(runs.state), state)\n"
        "print(list(runs.epochs[:3]), list(runs.changed))\n"
        "print(names)\n"
        "print(runs.best_loss.notna().all(), (runs.time > 0).all())"
    )

    states, changes, names, numbers = result.text.splitlines()
    assert "['finished', 'finished', 'finished', 'stopped'] running" == states
    assert "['0-1', '2-2', '3-3'] ['', 'epochs=1, lr=0.1', '', 'epochs=50, lr=0.01']" == changes
    assert "['0: first', '1: epochs=1, lr=0.1', '2: as before', '3: epochs=50, lr=0.01']" == names
    assert "True True" == numbers
