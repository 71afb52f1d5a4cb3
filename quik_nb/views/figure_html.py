"""A matplotlib figure as an `img` tag that carries its own picture: right in a notebook, in nbconvert, on GitHub."""

import base64
import io
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def img(figure: "Figure", words: str, dpi: int = 144) -> str:
    """The tag, at the figure's own size in inches.

    Args:
        figure: what to draw.
        words: what it shows, for those who do not see it.
        dpi: pixels per inch of the picture.
    """
    packed = io.BytesIO()
    figure.savefig(packed, format="png", dpi=dpi)
    data = base64.b64encode(packed.getvalue()).decode()
    width = round(figure.get_figwidth() * 72)
    return f'<img src="data:image/png;base64,{data}" width="{width}" alt="{escape(words)}">'
