"""The picture as a PNG on no ground, for pages that show no SVG: the same shapes in inks that read on light and dark.

matplotlib's Agg renderer draws the lines, Pillow (which matplotlib brings along) the words, and packs it all in few
colours. A figure with axes takes four times as long, most of it for words and layout.
Both are imported when first needed.
"""

import io
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from quik_nb.views.shapes import COLOURS, FONT, Dot, Line, Picture, Role, Shape, Word

DPI = 100
POINTS_PER_PIXEL = 72 / DPI
DASH = 3 * POINTS_PER_PIXEL
SHADES = 16
"""Steps from no ink to all of it: enough for smooth edges, and a third of the bytes of full colour."""
NEARLY_WHITE = 244
WHITE = (255, 255, 255)
ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}  # Pillow's names: left, middle or right, on the base line

INKS: dict[Role, str] = COLOURS | {"word": "#787878", "strong": "#787878", "grid": "#cccccc"}
"""No grey has a contrast of 4.5 on white and on near-black; this one has 4.3 on both."""


def png(picture: Picture, scale: int = 2) -> bytes:
    """The picture as a PNG; `scale` is its pixels per pixel of the picture, 2 for today's screens."""
    from PIL import Image

    size = (picture.width * scale, picture.height * scale)
    pixels = _strokes([shape for shape in picture.shapes if not isinstance(shape, Word)], size, scale)
    image = Image.frombytes("RGB", size, pixels, "raw", "RGBX")
    _write([shape for shape in picture.shapes if isinstance(shape, Word)], image, scale)

    # it was drawn on white; now each shade becomes its ink, and the paleness of the shade becomes transparency
    palette = _palette()
    few = image.quantize(palette=palette.drawn, dither=Image.Dither.NONE)
    few.putpalette(palette.inks)
    packed = io.BytesIO()
    few.save(  # run lengths: rows are long runs of one colour
        packed, format="png", compress_level=3, compress_type=zlib.Z_RLE, transparency=bytes(palette.alphas)
    )
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
        pen.set_foreground(INKS[shape.role])
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
        sheet.text(place, word.text, font=font, fill=INKS[word.role], anchor=ANCHORS[word.anchor])


class _Palette:
    """The colours of a picture: as they are drawn on white, and as they are saved.

    Attributes:
        drawn: an image whose palette holds white and the shades of every ink; Pillow notes in it what it found.
        inks: red, green, blue of the ink of each shade, one after the other.
        alphas: the share of ink in each shade, 0 to 255.
    """

    def __init__(self) -> None:
        from PIL import Image, ImageColor

        drawn = [*WHITE]
        self.inks = [*WHITE]
        self.alphas = [0]
        for name in sorted(set(INKS.values())):
            ink = ImageColor.getrgb(name)[:3]
            for step in range(1, SHADES + 1):
                shade = [round(255 + step / SHADES * (part - 255)) for part in ink]
                if min(shade) >= NEARLY_WHITE:
                    continue  # Pillow rounds before it looks for the nearest colour, and would grey the ground
                drawn += shade
                self.inks += ink
                self.alphas.append(round(255 * step / SHADES))
        self.drawn = Image.new("P", (1, 1))
        self.drawn.putpalette(drawn)


@cache
def _palette() -> _Palette:
    return _Palette()
