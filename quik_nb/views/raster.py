"""The picture as a PNG, for the saved notebook: the same shapes as the live SVG, drawn by matplotlib's Agg renderer.

A figure with axes costs twice as much as the drawing itself, and pyplot is not for threads: so the renderer is used as
it is. matplotlib is imported when the first PNG is drawn.
"""

import io
from typing import Any

from quik_nb.history import History
from quik_nb.views.picture import COLOURS, FONT, Dot, Line, Picture, Shape, Word, picture

DPI = 100
POINTS_PER_PIXEL = 72 / DPI
COLOUR_COUNT = 32
"""Shades that are kept: enough for smooth edges of four inks, and a third of the bytes of full colour."""


def png(history: History, log: bool = False, scale: int = 2) -> bytes:
    """The curve as a PNG on white; `scale` is pixels per pixel of the picture, 2 for today's screens."""
    return encode(picture(history, log=log), scale)


def encode(picture: Picture, scale: int = 2) -> bytes:
    """Draw the shapes and pack them."""
    from matplotlib.backends.backend_agg import RendererAgg
    from PIL import Image

    size = (picture.width * scale, picture.height * scale)
    renderer: Any = RendererAgg(*size, DPI * scale)  # type: ignore[no-untyped-call]
    _Brush(renderer, scale, size).draw(picture.shapes)
    image = Image.frombuffer("RGBA", size, renderer.buffer_rgba(), "raw", "RGBA", 0, 1).convert("RGB")
    packed = io.BytesIO()
    few = image.quantize(COLOUR_COUNT, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(packed, format="png", compress_level=3)
    return packed.getvalue()


class _Brush:
    """Draws shapes with one renderer; y runs upwards there, and downwards in the picture."""

    def __init__(self, renderer: Any, scale: int, size: tuple[int, int]) -> None:
        from matplotlib.font_manager import FontProperties
        from matplotlib.path import Path
        from matplotlib.transforms import Affine2D

        self._renderer, self._scale = renderer, scale
        self._pen = renderer.new_gc()
        self._pen.set_capstyle("round")
        self._page = Affine2D().scale(scale, -scale).translate(0, size[1])
        self._transform, self._path = Affine2D, Path
        self._font = FontProperties(family="sans-serif", size=FONT * POINTS_PER_PIXEL)
        self._pen.set_foreground("white")
        ground = Affine2D().scale(*size)
        renderer.draw_path(self._pen, Path.unit_rectangle(), ground, (1.0, 1.0, 1.0, 1.0))

    def draw(self, shapes: list[Shape]) -> None:
        for shape in shapes:
            self._pen.set_foreground(COLOURS[shape.role])
            match shape:
                case Line():
                    self._line(shape)
                case Dot():
                    self._dot(shape)
                case Word():
                    self._word(shape)

    def _line(self, line: Line) -> None:
        self._pen.set_linewidth(line.width * POINTS_PER_PIXEL)
        self._pen.set_dashes(0, [3 * self._scale, 3 * self._scale] if line.dashed else None)
        self._pen.set_alpha(0.45 if line.role == "live" else 1.0)
        self._renderer.draw_path(self._pen, self._path(line.points), self._page)
        self._pen.set_alpha(1.0)

    def _dot(self, dot: Dot) -> None:
        self._pen.set_linewidth(1.6 * POINTS_PER_PIXEL if not dot.filled else 0)
        self._pen.set_dashes(0, None)
        place = self._transform().scale(dot.radius).translate(dot.x, dot.y) + self._page
        inside = self._pen.get_rgb() if dot.filled else None
        self._renderer.draw_path(self._pen, self._path.unit_circle(), place, inside)

    def _word(self, word: Word) -> None:
        text = self._drawable(word.text)
        back = 0.0
        if word.anchor != "start":
            width, _, _ = self._renderer.get_text_width_height_descent(text, self._font, ismath=False)
            back = width / (2 if word.anchor == "middle" else 1)
        x, y = round(word.x * self._scale - back), round(word.y * self._scale)
        self._renderer.draw_text(self._pen, x, y, text, self._font, 0.0)

    def _drawable(self, text: str) -> str:
        """The text with a box for each character that the font lacks, about which matplotlib would warn."""
        if text.isascii():
            return text
        from matplotlib.font_manager import findfont, get_font

        font = get_font(findfont(self._font))
        return "".join(c if font.get_char_index(ord(c)) else "□" for c in text)
