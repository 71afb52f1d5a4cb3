"""A saved notebook away from its kernel: as a page made by nbconvert, and on a site that strips what it distrusts."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from bleach import clean
from nbconvert import HTMLExporter

QUICKSTART = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"

ALLOWED = {"table", "thead", "tbody", "tr", "th", "td", "img", "b", "strong", "p", "caption", "br", "em"}
"""What GitHub leaves of a cell's output: no style, svg, script or id."""


def records() -> list[str]:
    """The HTML of the trainings in the quickstart."""
    notebook = json.loads(QUICKSTART.read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    pages = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    return [page for page in pages if "data:image/png" in page]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # nbconvert's own
def test_nbconvert_shows_table_and_picture() -> None:
    """The page that nbconvert makes has the loss table and the curve of each training."""
    body, _ = HTMLExporter().from_notebook_node(nbformat.read(QUICKSTART, as_version=4))

    assert 2 == len(records())
    assert body.count("train_loss</th>") >= 2
    assert len(re.findall(r'<img[^>]+src="data:image/png;base64', body)) >= 2


def test_a_strict_sanitiser_leaves_table_and_picture() -> None:
    """With styles, ids, scripts and SVG stripped, every number of the table and the picture are still there."""
    for page in records():
        kept = clean(
            page,
            tags=ALLOWED,
            attributes={"img": ["src", "alt", "width"], "*": ["align"]},
            protocols=["data"],
            strip=True,
        )
        numbers = re.compile(r"\d+\.\d{4}")

        assert numbers.findall(re.sub("<[^>]*>", "", page)) == numbers.findall(re.sub("<[^>]*>", "", kept))
        assert page.count("<tr") == kept.count("<tr")
        assert 1 == kept.count('src="data:image/png;base64,')
