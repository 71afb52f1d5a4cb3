"""A matplotlib Figure that shows itself as the last line of a cell, in a fresh kernel too.

IPython draws figures only once pyplot has been used in the kernel, and shows the words `<Figure size ...>` before. This
one brings its own picture. Where pyplot is on, IPython's way with figures comes first, in the format that was chosen
there, so that it is shown once.

The module imports matplotlib, so it is imported where a figure is made, and not before.
"""

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from quik_nb.views.mime import shell

DPI = 144
"""pixels per inch of the picture in a notebook, twice as many as it is shown with, for today's screens"""


def _ipython_draws_figures() -> bool:
    formatter = getattr(shell(), "display_formatter", None)
    if formatter is None:
        return False
    return any(Figure in one.type_printers for mime, one in formatter.formatters.items() if mime != "text/plain")


class InlineFigure(Figure):
    """A Figure with an Agg canvas of its own: no pyplot, so it may be made in a thread, and draws nothing by itself.

    Args:
        shows: what it shows, in words.
        size: width and height in inches.

    >>> InlineFigure("loss curve", (6, 4))
    loss curve, 6 x 4 inches; figure.savefig("curve.png") writes it to a file
    """

    def __init__(self, shows: str, size: tuple[float, float]) -> None:
        super().__init__(figsize=size, facecolor="white", layout="constrained")
        FigureCanvasAgg(self)
        self._shows = shows

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]] | None:
        """The picture, and its width and height on the page (pixels); None where IPython draws figures by itself."""
        if _ipython_draws_figures():
            return None  # in another format, or nobody would have asked
        packed = io.BytesIO()
        self.savefig(packed, format="png", dpi=DPI)
        width, height = (round(72 * inches) for inches in self.get_size_inches())
        return packed.getvalue(), {"width": width, "height": height}

    def __repr__(self) -> str:
        width, height = self.get_size_inches()
        return f'{self._shows}, {width:g} x {height:g} inches; figure.savefig("curve.png") writes it to a file'
