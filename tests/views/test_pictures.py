"""The curve: a pure function of the rows, as SVG, as PNG and as a figure."""

import io
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from subprocess import run
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from PIL import Image, ImageColor, ImageFont

from quik_nb.events import Annotation, Row, StepEnd
from quik_nb.history import STRETCHES, History
from quik_nb.views import chart_layout, shapes
from quik_nb.views.axis import Axis, log_ticks
from quik_nb.views.chart_layout import Outlook, left_out, picture
from quik_nb.views.matplotlib_figure import figure
from quik_nb.views.png import INKS, png
from quik_nb.views.shapes import COLOURS, Dot, Line, Picture, Word
from quik_nb.views.svg import svg, svg_file

Make = Callable[..., Any]
SVG = "{http://www.w3.org/2000/svg}"


def words(drawn: Picture) -> list[str]:
    """All words of a picture."""
    return [shape.text for shape in drawn.shapes if isinstance(shape, Word)]


def lines(drawn: Picture, role: str) -> list[Line]:
    """The data lines of a role, without the sample in the legend."""
    return [
        shape for shape in drawn.shapes if isinstance(shape, Line) and shape.role == role and shape.points[0][1] > 20
    ]


def test_the_svg_is_well_formed_and_told_in_words(make_history: Make) -> None:
    """It is XML, an image to a screen reader, and its title says the last and the best value."""
    tree = ElementTree.fromstring(svg(make_history(8)))

    assert "img" == tree.get("role")
    title = tree.findtext(f"{SVG}title")
    assert "Loss curve over 8 epochs; last train loss 0.2500, valid loss 1.0700; best epoch 5 with 0.1667" == title
    assert title == tree.get("aria-label")
    assert ["quik-linear", "quik-log"] == [group.get("class") for group in tree.iter(f"{SVG}g") if group.get("class")]


def test_every_epoch_is_a_point_and_the_best_has_a_ring(make_history: Make) -> None:
    """Train and valid have a point per epoch, and the ring stands on the best one."""
    drawn = picture(make_history(8))
    (train,), (valid,) = lines(drawn, "train"), lines(drawn, "valid")[:1]
    ring = next(shape for shape in drawn.shapes if isinstance(shape, Dot) and not shape.filled)

    assert (8, 8) == (len(train.points), len(valid.points))
    assert valid.points[5] == (ring.x, ring.y)


def test_axes_and_legend_have_words(make_history: Make) -> None:
    """The axes say what they measure, and the legend names the lines and the best epoch."""
    drawn = words(picture(make_history(8)))

    assert {"loss", "epoch", "train", "valid", "best 0.1667, epoch 5", "accuracy 0.8889"} <= set(drawn)
    assert "loss (log)" in words(picture(make_history(8), log=True))


def test_the_first_epoch_is_not_empty() -> None:
    """Before the first row the live losses are drawn, half an epoch before the place of its row."""
    history = History()
    for step in range(1, 6):
        history.record(StepEnd(0, step, 10, 2.0 - step / 10, 50.0))

    (live,) = lines(picture(history, Outlook(epochs=3)), "live")

    assert 5 == len(live.points)
    assert sorted(live.points) == list(live.points)
    assert live.points[0][1] < live.points[-1][1]  # the loss falls: y runs downwards


def test_an_empty_history_is_a_picture_too() -> None:
    """With nothing to draw there are axes and a sentence."""
    assert "no epoch finished yet" in svg(History(), Outlook(epochs=5))
    assert png(picture(History())).startswith(b"\x89PNG")


def test_marks_stand_where_they_happened(make_history: Make) -> None:
    """A mark at the start of epoch 3 stands between the means of epochs 2 and 3, with its words."""
    history = make_history(8)
    history.record(Annotation(3.0, "lr 0.0003"))
    drawn = picture(history)
    (train,) = lines(drawn, "train")
    (mark,) = [shape for shape in drawn.shapes if isinstance(shape, Line) and shape.dashed]

    assert pytest.approx((train.points[2][0] + train.points[3][0]) / 2) == mark.points[0][0]
    assert "lr 0.0003" in words(drawn)


def test_many_marks_stay_few(make_history: Make) -> None:
    """A learning rate that changes each epoch does not cover the picture."""
    history = make_history(500)
    for epoch in range(500):
        history.record(Annotation(float(epoch), f"lr {epoch}"))
    drawn = picture(history)

    assert chart_layout.MARKS == len([shape for shape in drawn.shapes if isinstance(shape, Line) and shape.dashed])
    assert ["lr 496", "lr 497", "lr 498", "lr 499"] == [word for word in words(drawn) if word.startswith("lr")]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_gap_is_a_gap(make_row: Make, value: float | None) -> None:
    """A loss that is no number cuts the line, and does not move the axis."""
    rows = [make_row(epoch) for epoch in range(6)]
    rows[3] = make_row(3, valid_loss=value)
    pieces = lines(picture(History([Row(**_fields(row, metrics={})) for row in rows])), "valid")

    assert [3, 2] == [len(line.points) for line in pieces]


def _fields(row: Row, **changes: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__} | changes


def test_a_log_scale_passes_over_what_it_cannot_show(make_row: Make) -> None:
    """Losses of zero and below are left out of a logarithmic curve, which is drawn all the same."""
    history = History([make_row(epoch, train_loss=1.0 - epoch, valid_loss=None, metrics={}) for epoch in range(4)])

    assert [] == lines(picture(history, log=True), "train")
    assert 4 == len(lines(picture(history), "train")[0].points)


def test_a_constant_loss_has_an_axis(make_row: Make) -> None:
    """Values that are all the same do not divide by zero, on either scale."""
    for loss in (0.0, 3.0):
        history = History(
            [make_row(epoch, train_loss=loss, valid_loss=loss, metrics={"m": loss}) for epoch in range(3)]
        )
        ElementTree.fromstring(svg(history))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e33, -1e33, 1.25e-7, -4e-6, 54_321.0])
def test_no_number_is_cut_off(make_row: Make, scale: float, log: bool) -> None:
    """However large or small losses and metrics are, the numbers beside the axes are whole."""
    values = [scale * (1.0 + epoch / 100) for epoch in range(6)]
    rows = [make_row(i, train_loss=v, valid_loss=v, metrics={"a": v, "b": v, "c": v}) for i, v in enumerate(values)]
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", shapes.FONT)
    numbers = [
        word
        for word in picture(History(rows), log=log).shapes
        if isinstance(word, Word) and word.anchor == "end" and word.text != "epoch"
    ]

    assert len(numbers) >= 4
    assert [] == [word.text for word in numbers if word.x < font.getlength(word.text)]


def test_names_cannot_break_out(make_row: Make) -> None:
    """Metric names and marks are text in the SVG, whatever they hold."""
    history = History([make_row(epoch, metrics={"</g><b>": 0.5}) for epoch in range(3)])
    history.record(Annotation(1.0, "<script>\x00&"))

    tree = ElementTree.fromstring(svg(history))

    assert {"svg", "title", "g", "path", "circle", "text", "rect"} >= {
        element.tag.removeprefix(SVG) for element in tree.iter()
    }


def test_bytes_do_not_grow_with_the_epochs(make_history: Make) -> None:
    """10,000 rows fit into what some hundred take."""
    assert len(svg(make_history(10_000))) < 1.3 * len(svg(make_history(200)))


def test_thinning_keeps_the_peaks() -> None:
    """A single spike among 10,000 points is still seen, and so are both ends."""
    points = [(float(i), 1.0) for i in range(10_000)]
    points[7_777] = (7_777.0, 50.0)
    thinned = shapes.thin(points)

    assert len(thinned) <= shapes.POINTS
    assert {points[0], points[7_777], points[-1]} <= set(thinned)
    assert sorted(thinned) == thinned


def test_the_axis_keeps_still_while_the_run_grows(make_history: Make) -> None:
    """Of 300 epochs the axis grows in a few steps, and never beyond the end of the run; of 30 it does not grow."""
    pictures = [picture(make_history(rows), Outlook(epochs=300)) for rows in range(2, 301, 7)]
    places = [lines(drawn, "train")[0].points[0][0] for drawn in pictures]  # of epoch 0: they tell the axes apart

    assert 6 == len(set(places))  # 10, 20, 40, 80, 160, 300
    assert sorted(places, reverse=True) == places
    few = [lines(picture(make_history(rows), Outlook(epochs=30)), "train")[0].points[0] for rows in range(2, 31)]
    assert 1 == len({x for x, _ in few})


def test_ticks_are_round_and_within() -> None:
    """Ticks are multiples of 1, 2 or 5 within the axis; epochs are whole numbers."""
    assert [0.2, 0.4, 0.6, 0.8] == pytest.approx(Axis(0.13, 0.93, 0, 1).ticks())
    assert [0, 1, 2] == Axis(-0.5, 2.5, 0, 1).ticks(6, whole=True)
    assert [0.01, 0.1, 1.0] == log_ticks(0.005, 2)
    assert [1.0, 2.0, 5.0] == log_ticks(0.8, 6)
    assert [0.2, 0.4, 0.6, 0.8] == pytest.approx(Axis(0.18, 0.97, 0, 1).ticks(3))  # not 0.5 alone


def luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance of red, green, blue (0 to 255), as WCAG 2 defines it."""
    parts = [part / 255 for part in colour]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    """From 1 for the same to 21 for black on white."""
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


GROUNDS = {
    "white": (255, 255, 255),
    "JupyterLab dark": (17, 17, 17),
    "GitHub dark": (13, 17, 23),
    "VS Code": (30, 30, 30),
}


@pytest.mark.parametrize("ground", GROUNDS.values(), ids=GROUNDS)
def test_every_line_and_word_reads_on_light_and_on_dark(ground: tuple[int, int, int]) -> None:
    """Lines have a contrast of 3:1 on every ground, and so have the words of the PNG, which knows no theme."""
    roles = ["train", "valid", "live", "lr", "best"]
    inks = {role: ImageColor.getrgb(COLOURS[role])[:3] for role in roles}  # type: ignore[index]
    inks |= {role: ImageColor.getrgb(INKS[role])[:3] for role in ("word", "strong", "mark")}  # type: ignore[index]

    assert {} == {role: ink for role, ink in inks.items() if contrast(ink, ground) < 3.0}


def test_the_png_has_no_ground(make_history: Make) -> None:
    """The saved picture is clear where nothing is drawn, in the inks of the live one, and sharp on today's screens."""
    history = make_history(20)
    image = Image.open(io.BytesIO(png(picture(history)))).convert("RGBA")
    pixels = {pixel for _, pixel in image.getcolors(1 << 16) or []}

    assert (2 * shapes.WIDTH, 2 * chart_layout.HEIGHT) == image.size
    assert 0 == image.getpixel((2, 300))[3]  # type: ignore[index]
    for role in ("train", "valid"):
        assert (*ImageColor.getrgb(COLOURS[role])[:3], 255) in pixels  # type: ignore[index]


def test_the_png_takes_any_letters(make_row: Make) -> None:
    """Names in scripts that the font lacks, and dollar signs, are drawn without a warning."""
    history = History([make_row(epoch, metrics={"精度 $x": 0.5}) for epoch in range(3)])

    assert png(picture(history)).startswith(b"\x89PNG")


def test_the_svg_file_follows_the_scheme_of_the_page(make_history: Make) -> None:
    """It stands alone: a file that asks for the page's scheme, and names none of the page's variables."""
    file = svg_file(picture(make_history(8)))

    ElementTree.fromstring(file)
    assert "@media (prefers-color-scheme:dark)" in file
    assert "--jp-" not in file


def test_the_mean_stands_within_its_epoch_and_the_validation_at_its_end(make_history: Make) -> None:
    """Epoch 3's train_loss is as far from epoch 2's end as from its own, where its valid_loss stands."""
    drawn = picture(make_history(8))
    (train,), (valid,) = lines(drawn, "train"), lines(drawn, "valid")[:1]

    assert pytest.approx((valid.points[2][0] + valid.points[3][0]) / 2) == train.points[3][0]


def steps(epoch: int, losses: list[float], lrs: tuple[float, ...] = ()) -> StepEnd:
    """All steps of an epoch in one event."""
    return StepEnd(epoch, len(losses), len(losses), losses[-1], 9.0, losses=tuple(losses), lrs=lrs)


def test_the_line_of_steps_goes_on_over_epochs_and_agrees_with_the_means(make_row: Make) -> None:
    """Where an epoch's train_loss is drawn it passes by, and nothing starts anew between epochs."""
    history = History()
    for epoch in range(4):
        losses = [4.0 - epoch - step / 50 for step in range(50)]
        history.record(steps(epoch, losses))
        history.add(make_row(epoch, train_loss=sum(losses) / 50, valid_loss=None, metrics={}))
    drawn = picture(history)
    (live,), (train,) = lines(drawn, "live"), lines(drawn, "train")

    assert sorted(live.points) == list(live.points)  # to the right and downwards all the way: no cliff, no lag
    assert [y for _, y in live.points] == sorted(y for _, y in live.points)
    for x, y in train.points:
        (x0, y0), (x1, y1) = next(pair for pair in pairwise(live.points) if pair[0][0] <= x <= pair[1][0])
        assert pytest.approx(y, abs=1.0) == y0 + (y1 - y0) * (x - x0) / (x1 - x0)  # pixels
    assert "steps" in words(drawn)


def test_the_pointer_is_told_epoch_and_values(make_history: Make) -> None:
    """Each epoch is a band with its values; thousands share few bands."""
    hints = picture(make_history(8)).hints
    many = picture(make_history(5000)).hints

    assert "epoch 3: train_loss 0.5000, valid_loss 0.2500, accuracy 0.8000, lr 0.001" == hints[3].text
    assert all(one.area.right == pytest.approx(two.area.left) for one, two in pairwise(hints))
    assert chart_layout.HINTS == len(many)
    assert "<title>epoch 3: train_loss" in svg(make_history(8))


def test_the_axis_of_epochs_has_numbers_to_its_end(make_history: Make) -> None:
    """The last epoch of a few has its number; the word stands before the first."""
    drawn = picture(make_history(5))
    below = sorted((shape.x, shape.text) for shape in drawn.shapes if isinstance(shape, Word) and shape.y == 191)

    assert ["epoch", "0", "1", "2", "3", "4"] == [text for _, text in below]


def test_panels_have_whole_names_and_the_rest_is_named(make_row: Make) -> None:
    """As many metrics are drawn as have room for their names; those that are left out are known by name."""
    long = ["a_rather_long_name_of_a_metric_1", "a_rather_long_name_of_a_metric_2"]
    history = History([make_row(epoch, metrics=dict.fromkeys([*long, "f1"], 0.5)) for epoch in range(3)])
    drawn = words(picture(history))

    assert [f"{name} 0.5000" for name in long] == [word for word in drawn if "rather" in word]
    assert ["f1"] == left_out(history)


def test_the_learning_rate_has_a_panel_where_a_schedule_moves_it(make_row: Make) -> None:
    """It is drawn by steps where they are known, and its place is there before the first of them."""
    history = History()
    history.record(steps(0, [1.0] * 10, tuple(step / 1000 for step in range(10))))
    history.add(make_row(0, lr=0.009))
    moved = History([make_row(0, lr=0.1), make_row(1, lr=0.05)])

    assert "learning rate" in words(picture(History(), Outlook(lr_moves=True)))
    assert "learning rate 0.009" in words(picture(history, Outlook(lr_moves=True)))
    assert STRETCHES == len(lines(picture(history, Outlook(lr_moves=True)), "lr")[0].points)
    assert "learning rate 0.05" in words(picture(moved))
    assert [] == lines(picture(History([make_row(0), make_row(1)])), "lr")
    moved.record(Annotation(1.0, "lr 0.05"))
    assert [] == lines(picture(moved), "lr")  # by hand, which the mark says


def test_the_figure_holds_the_rows(make_row: Make) -> None:
    """The figure has a panel for the losses and one for each metric, with the values of the rows; dollars are text."""
    history = History([make_row(epoch, metrics={r"$\bad{$": 0.5}) for epoch in range(8)])
    history.record(Annotation(3.0, r"$\bad{$"))
    drawn = figure(history)
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png")

    assert ["loss", r"$\bad{$"] == [axes.get_ylabel() for axes in drawn.axes]
    assert [row.train_loss for row in history] == list(drawn.axes[0].lines[0].get_ydata())
    assert "log" == figure(history, log=True).axes[0].get_yscale()


def test_a_figure_of_nothing_says_so() -> None:
    """Before the first epoch the figure is empty and says why."""
    assert ["no epochs yet"] == [text.get_text() for text in figure(History()).axes[0].texts]


def test_pyplot_is_never_loaded() -> None:
    """Neither the PNG nor the figure loads pyplot, which is not for threads; importing views loads no heavy library.

    The one that is a kind of Figure cannot but import matplotlib; it is imported where a figure is made.
    """
    heavy = ("pandas", "matplotlib", "ipywidgets", "IPython", "torch")
    code = f"""
import sys, types, importlib, pathlib
package = types.ModuleType("quik_nb")
package.__path__ = [{str(Path(shapes.__file__).parents[1])!r}]
sys.modules["quik_nb"] = package
import quik_nb.views
for file in pathlib.Path(quik_nb.views.__path__[0]).glob("*.py"):
    if file.stem != "inline_figure":
        importlib.import_module("quik_nb.views." + file.stem)
assert not set({heavy!r}) & set(sys.modules), set({heavy!r}) & set(sys.modules)
from quik_nb.history import STRETCHES, History
from quik_nb.views.chart_layout import picture
from quik_nb.views.png import png
from quik_nb.views.matplotlib_figure import figure
png(picture(History())), figure(History())
assert "matplotlib.pyplot" not in sys.modules
"""
    finished = run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert ("", 0) == (finished.stderr, finished.returncode)
