"""The picture as a PNG, for the saved notebook: the same shapes as the live SVG, on white.

matplotlib's Agg renderer draws the lines, Pillow (which matplotlib brings along) the words, and packs it all in few
colours. A figure with axes takes four times as long, most of it for words and layout.
Both are imported when first needed.
"""

import io
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from quik_nb.history import History
from quik_nb.views.chart_layout import COLOURS, FONT, Dot, Line, Picture, Shape, Word, picture

DPI = 100
POINTS_PER_PIXEL = 72 / DPI
DASH = 3 * POINTS_PER_PIXEL
SHADES = 16
"""Steps from white to each ink: enough for smooth edges, and a third of the bytes of full colour."""
NEARLY_WHITE = 244
WHITE = (255, 255, 255)
ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}  # Pillow's names: left, middle or right, on the base line


def png(history: History, log: bool = False, scale: int = 2) -> bytes:
    """The curve as a PNG; `scale` is its pixels per pixel of the picture, 2 for today's screens."""
    return encode(picture(history, log=log), scale)


def encode(picture: Picture, scale: int = 2) -> bytes:
    """Draw the shapes and pack them."""
    from PIL import Image

    size = (picture.width * scale, picture.height * scale)
    pixels = _strokes([shape for shape in picture.shapes if not isinstance(shape, Word)], size, scale)
    image = Image.frombytes("RGB", size, pixels, "raw", "RGBX")
    _write([shape for shape in picture.shapes if isinstance(shape, Word)], image, scale)
    packed = io.BytesIO()
    few = image.quantize(palette=_palette(), dither=Image.Dither.NONE)
    few.save(packed, format="png", compress_level=3, compress_type=zlib.Z_RLE)  # rows are long runs of one colour
    return packed.getvalue()


def _strokes(shapes: list[Shape], size: tuple[int, int], scale: int) -> Any:
    """Pixels (height, width, 4) with the lines and dots."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.path import Path as Curve
    from matplotlib.transforms import Affine2D

    renderer: Any = RendererAgg(*size, DPI * scale)  # type: ignore[no-untyped-call]
    page = Affine2D().scale(scale, -scale).translate(0, size[1])  # y runs upwards in Agg, downwards in the picture
    pen = renderer.new_gc()
    pen.set_foreground("white")
    renderer.draw_path(pen, Curve.unit_rectangle(), Affine2D().scale(*size), (1.0, 1.0, 1.0, 1.0))
    for shape in shapes:
        pen.set_foreground(COLOURS[shape.role])
        pen.set_alpha(0.55 if shape.role == "live" else 1.0)
        if isinstance(shape, Line):
            pen.set_linewidth(shape.width * POINTS_PER_PIXEL)
            pen.set_dashes(0, [DASH, DASH] if shape.dashed else None)
            renderer.draw_path(pen, Curve(shape.points), page)
        elif isinstance(shape, Dot):
            pen.set_linewidth(0 if shape.filled else 1.6 * POINTS_PER_PIXEL)
            pen.set_dashes(0, None)
            place = Affine2D().scale(shape.radius).translate(shape.x, shape.y) + page
            renderer.draw_path(pen, Curve.unit_circle(), place, pen.get_rgb() if shape.filled else None)
    return renderer.buffer_rgba()


def _write(words: list[Word], image: Any, scale: int) -> None:
    import matplotlib
    from PIL import ImageDraw, ImageFont

    # the file itself, and the basic layout: matplotlib's search for a font and its shaping take longer than the rest
    font_file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    font = ImageFont.truetype(str(font_file), FONT * scale, layout_engine=ImageFont.Layout.BASIC)
    sheet = ImageDraw.Draw(image)
    for word in words:
        place = (word.x * scale, word.y * scale)
        sheet.text(place, word.text, font=font, fill=COLOURS[word.role], anchor=ANCHORS[word.anchor])


@cache
def _palette() -> Any:
    """An image whose palette holds white and the shades of every ink; Pillow notes in it what it found."""
    from PIL import Image, ImageColor

    colours = list(WHITE)
    for ink in sorted(set(COLOURS.values())):
        red_green_blue = ImageColor.getrgb(ink)[:3]
        for step in range(1, SHADES + 1):
            shade = [round(255 + step / SHADES * (part - 255)) for part in red_green_blue]
            if min(shade) < NEARLY_WHITE:  # else Pillow, which rounds before it looks for the nearest, greys the ground
                colours += shade
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours)
    return palette
