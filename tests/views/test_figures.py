"""Figures that show themselves as the last line of a cell."""

import pickle
from typing import Any

import pytest
from harness.kernel import Kernel

from quik_nb.views.inline_figure import InlineFigure

PREPARE = """
import torch
from torch import nn, optim
from quik_nb import QuikSession

x, y = torch.randn(200, 4), torch.randint(0, 3, (200,))
session = (
    QuikSession(epochs=2, view=False, save=False)
    .add_data(train=(x, y), valid=0.2)
    .add_model(nn.Linear(4, 3))
    .set_criterion(nn.CrossEntropyLoss)
    .set_optimizer(optim.SGD)
)
_ = session.train()
"""
FIGURES = ["session.plot()", "session.compare()", "session.report().figure()", "session.lr_find(steps=12).figure()"]


def pictures(kernel: Kernel, code: str) -> list[set[str]]:
    """The mime types of each output of a cell that holds a picture or a figure's words."""
    return [{mime for mime in bundle if mime.startswith("image/")} for bundle in kernel.ok(code).displays]


def test_every_figure_shows_in_a_fresh_kernel(kernel: Kernel) -> None:
    """As the last line and with display(), as a PNG, once; and after pyplot's inline is on, once in its format."""
    kernel.ok(PREPARE)

    for code in FIGURES:
        assert [{"image/png"}] == pictures(kernel, code), code
    assert [{"image/png"}] == pictures(kernel, "display(session.plot())")
    assert "False" == kernel.ok("import sys; print('matplotlib.pyplot' in sys.modules)").text.strip()

    kernel.ok("%matplotlib inline\n%config InlineBackend.figure_formats = ['svg']")
    for code in FIGURES:
        assert [{"image/svg+xml"}] == pictures(kernel, code), code


def test_a_terminal_says_what_it_is_and_how_to_keep_it() -> None:
    """Where no picture can be shown there is a line with the size and the call that writes a file."""
    words = 'loss curve, 6 x 4 inches; figure.savefig("curve.png") writes it to a file'

    assert words == repr(InlineFigure("loss curve", (6.0, 4.0)))


@pytest.mark.parametrize("copied", [lambda figure: figure, lambda figure: pickle.loads(pickle.dumps(figure))])
def test_it_is_a_figure_like_any_other(copied: Any, tmp_path: Any) -> None:
    """It has axes, is written to files, and survives a pickle."""
    figure = InlineFigure("loss curve", (6.0, 4.0))
    figure.subplots().plot([1, 2])
    figure = copied(figure)
    figure.savefig(tmp_path / "curve.pdf")
    data, size = figure._repr_png_()

    assert (tmp_path / "curve.pdf").read_bytes().startswith(b"%PDF")
    assert data.startswith(b"\x89PNG")
    assert {"width": 432, "height": 288} == size
