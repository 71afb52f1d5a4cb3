"""The live view as a person sees it: in JupyterLab and Notebook, in both themes, while a cell trains and afterwards."""

import re
from collections.abc import Callable
from typing import Literal

import pytest
from harness.cells import cell as cell_of
from harness.lab import Lab, NotebookPage, Theme
from playwright.sync_api import Locator, expect

pytestmark = pytest.mark.browser

EPOCHS = 6

PREPARE = cell_of("live_view")

WATCH = """() => {
    window.counts = [];
    window.places = [];
    const look = () => {
        requestAnimationFrame(look);
        const view = document.querySelector('.widget-box.quik-view');
        const prompt = document.querySelectorAll('.jp-InputPrompt')[1].textContent;
        if (!view || !prompt.includes('*')) return;
        const rows = view.querySelectorAll('table tbody tr').length;
        if (rows !== window.counts.at(-1)) window.counts.push(rows);

        const curve = view.querySelector('svg'), footer = view.querySelector('.quik-footer');
        if (!curve || !footer) return;
        const origin = document.querySelectorAll('.jp-Cell')[1].getBoundingClientRect();
        const box = curve.getBoundingClientRect(), end = footer.getBoundingClientRect();
        const place = [box.x - origin.x, box.y - origin.y, box.height, end.y - origin.y].map(Math.round).join();
        if (place !== window.places.at(-1)) window.places.push(place);
    };
    look();
}"""
"""Writes down the number of rows in the live table, and where curve and footer stand, in each frame that is drawn while
the second cell runs, whenever they change."""

PLACES = """(view) => {
    const origin = document.querySelectorAll('.jp-Cell')[1].getBoundingClientRect();
    const box = view.querySelector('.quik-curve > :first-child').getBoundingClientRect();
    const end = view.querySelector('.quik-footer').getBoundingClientRect();
    return [box.x - origin.x, box.y - origin.y, box.height, end.y - origin.y].map(Math.round);
}"""
"""Of a record: where the curve stands (x, y), how high it is, and where the footer stands."""

LINE = 23
"""Pixels by which something may move when a run ends."""
MANY = 60_000
"""Milliseconds that a loaded machine may take."""

OpenNotebook = Callable[..., NotebookPage]


def live(notebook: NotebookPage, cell: int = 1) -> Locator:
    """The live view under a cell."""
    return notebook.output(cell).locator(".widget-box.quik-view")


def record(notebook: NotebookPage, cell: int = 1) -> Locator:
    """The plain view under a cell: the record of a run, or what stands in for a live view that is gone."""
    return notebook.output(cell).locator("div.quik-view:not(.widget-box)")


def wait_for_rows(notebook: NotebookPage, count: int) -> None:
    """Wait until the live view has so many rows."""
    expect(live(notebook).locator("tbody tr").nth(count - 1)).to_be_attached(timeout=MANY)


def picture_kind(shown: Locator) -> str:
    """The type of the picture that the page chose to show."""
    source: str = shown.locator("img").evaluate("image => image.currentSrc")
    return source.removeprefix("data:").partition(";")[0]


@pytest.mark.parametrize(("front_end", "theme"), [("lab", "light"), ("lab", "dark"), ("notebook", "dark")])
def test_a_training_is_watched(
    lab: Lab, open_notebook: OpenNotebook, front_end: Literal["lab", "notebook"], theme: Theme
) -> None:
    """Each epoch adds a row while the cell runs, and nothing else moves; then the record stands in the same place."""
    name = f"live-{front_end}-{theme}"
    lab.write(f"{name}.ipynb", PREPARE, "run = session.train()")
    lab.set_theme(theme)
    notebook = open_notebook(f"{name}.ipynb", front_end=front_end)
    notebook.run(0)
    notebook.page.evaluate(WATCH)

    notebook.start(1)
    notebook.page.wait_for_function("window.counts.at(-1) >= 3", timeout=MANY)
    notebook.screenshot(f"{name}-training")
    notebook.wait(1)

    expect(live(notebook)).to_have_count(0)
    expect(record(notebook)).to_be_visible()
    expect(record(notebook).locator("table tbody tr")).to_have_count(EPOCHS)
    notebook.screenshot(f"{name}-record")
    counts, places = notebook.page.evaluate("[window.counts, window.places]")
    assert list(range(1, EPOCHS + 1)) == [count for count in counts if count > 0]
    assert 1 == len(places), places
    before, after = [int(number) for number in places[0].split(",")], record(notebook).evaluate(PLACES)
    assert [0, 0] == [abs(one - two) for one, two in zip(before, after, strict=True) if abs(one - two) > LINE] + [0, 0]
    assert "image/svg+xml" == picture_kind(record(notebook))

    saved = notebook.save()
    kept, widgets = saved.cells[1].outputs
    assert {"text/html", "text/plain"} == set(kept.data)
    assert {""} == set(widgets.data.values())
    assert "widgets" not in saved.metadata


def test_the_record_is_there_when_the_notebook_is_opened_again(lab: Lab, open_notebook: OpenNotebook) -> None:
    """A saved notebook that is opened anew, with a fresh kernel, shows table and curve."""
    lab.write("again.ipynb", PREPARE, "run = session.train(epochs=2)")
    lab.set_theme("light")
    notebook = open_notebook("again.ipynb")
    notebook.run(0)
    notebook.run(1)
    notebook.save()
    notebook.close()
    lab.end_kernels()

    again = open_notebook("again.ipynb")

    expect(record(again).locator("table tbody tr")).to_have_count(2)
    expect(record(again).locator("img")).to_have_count(1)
    expect(again.output(1)).not_to_contain_text("Error displaying widget")


@pytest.mark.parametrize("front_end", ["lab", "notebook"])
def test_a_page_that_is_loaded_again_during_a_run_shows_it(
    lab: Lab, open_notebook: OpenNotebook, front_end: Literal["lab", "notebook"]
) -> None:
    """Table and curve up to the last save and how to go on: while the kernel is busy, and when it is gone."""
    name = f"reloaded-{front_end}"
    lab.write(f"{name}.ipynb", PREPARE.replace("save=False", "save=True"), "run = session.train(epochs=500)")
    lab.set_theme("light")
    notebook = open_notebook(f"{name}.ipynb", front_end=front_end)
    notebook.run(0)
    notebook.start(1)
    wait_for_rows(notebook, 3)
    expect(record(notebook).locator("tbody tr").first).to_be_attached(timeout=MANY)
    expect(record(notebook)).to_be_hidden()
    notebook.save()

    notebook.reload()
    expect(record(notebook)).to_be_visible(timeout=MANY)
    notebook.page.wait_for_timeout(6000)  # after some seconds JupyterLab says that the widgets are not found
    notebook.screenshot(f"{name}-busy")
    stood_in(notebook)
    notebook.close()
    lab.end_kernels()

    again = open_notebook(f"{name}.ipynb", front_end=front_end)
    again.page.wait_for_timeout(6000)
    again.screenshot(f"{name}-dead")
    stood_in(again)


def stood_in(notebook: NotebookPage) -> None:
    """The plain view is seen, says how to go on, and no error stands beside it."""
    expect(record(notebook)).to_be_visible()
    expect(record(notebook).locator("tbody tr").first).to_be_visible()
    expect(record(notebook).locator("img")).to_be_visible()
    expect(record(notebook)).to_contain_text("session.show()")
    expect(record(notebook)).to_contain_text(re.compile(r"QuikSession\.resume\('data/run_\w+'\)"))
    for words in ("Error displaying widget", "Loading widget"):
        for line in notebook.output(1).get_by_text(words).all():
            expect(line).to_be_hidden()


def test_a_narrow_page_has_the_curve_below_the_table(lab: Lab, open_notebook: OpenNotebook) -> None:
    """At 700 pixels nothing is cut off, and the order is table, curve, footer."""
    lab.write("narrow.ipynb", PREPARE, "run = session.train()")
    lab.set_theme("light")
    notebook = open_notebook("narrow.ipynb", front_end="notebook", width=700)
    notebook.run(0)
    notebook.start(1)
    wait_for_rows(notebook, 2)
    table, curve = (live(notebook).locator(part).bounding_box() for part in ("table", "svg"))
    notebook.screenshot("narrow-training")
    notebook.wait(1)
    notebook.screenshot("narrow-record")
    table_after, image = (record(notebook).locator(part).bounding_box() for part in ("table", "img"))

    for above, below in ((table, curve), (table_after, image)):
        assert above is not None
        assert below is not None
        assert above["y"] + above["height"] <= below["y"]
        assert below["x"] + below["width"] <= 700


def test_the_pointer_finds_values(lab: Lab, open_notebook: OpenNotebook) -> None:
    """Over an epoch of the curve the page knows its number and its values, live and in the record."""
    lab.write("pointer.ipynb", PREPARE, "run = session.train()")
    lab.set_theme("light")
    notebook = open_notebook("pointer.ipynb")
    notebook.run(0)
    notebook.start(1)
    wait_for_rows(notebook, 2)
    told = live(notebook).locator("svg rect title").first.text_content()
    notebook.wait(1)
    box = record(notebook).locator("img").bounding_box()
    assert box is not None
    under = "([x, y]) => document.elementFromPoint(x, y).getAttribute('title')"
    kept = notebook.page.evaluate(under, [box["x"] + 80, box["y"] + 100])

    assert told is not None
    assert told.startswith("epoch 0: train_loss ")
    assert told == kept


def test_figures_show_in_a_fresh_kernel(lab: Lab, open_notebook: OpenNotebook) -> None:
    """Without pyplot the last line of a cell is a picture."""
    lab.write("figures.ipynb", PREPARE.replace("slow)", "None)"), "run = session.train()", "session.plot()")
    lab.set_theme("dark")
    notebook = open_notebook("figures.ipynb")
    for cell in range(3):
        notebook.run(cell)
    notebook.screenshot("figures")

    expect(notebook.output(2).locator("img[src^='data:image/png']")).to_have_count(1)
    expect(notebook.output(2)).not_to_contain_text("inches")
