"""A history as a matplotlib figure with axes, for those who want to make it their own picture.

It never touches pyplot, so that it may be made in a thread, and draws nothing by itself.
"""

from typing import TYPE_CHECKING

from quik_nb.events import Row
from quik_nb.history import History, score
from quik_nb.views.chart_layout import LOSSES, after_training, in_training
from quik_nb.views.format import number
from quik_nb.views.shapes import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure(history: History, log: bool = False) -> "Figure":
    """Losses on top, each metric in a small panel below; the best epoch ringed, marks as dashed lines.

    As in the live view, what was measured while an epoch trained stands in its middle, what came after at its end.
    """
    from matplotlib.ticker import MaxNLocator

    from quik_nb.views.inline_figure import InlineFigure

    names = [name for name in history.columns if name not in LOSSES]
    heights = [2.6] + [1.1] * len(names)
    result = InlineFigure("loss curve", (6, 0.6 + sum(heights)))
    panels = result.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _losses(panels[0], history, log)
    for panel, name in zip(panels[1:], names, strict=True):
        _line(panel, history.rows, name, COLOURS["valid"], "")
        panel.set_ylabel(name, parse_math=False)
    for panel in panels:
        panel.grid(axis="y", color=COLOURS["grid"], linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return result


def _losses(panel: "Axes", history: History, log: bool) -> None:
    _line(panel, history.rows, "train_loss", COLOURS["train"], "train")
    if "valid_loss" in history.columns:
        _line(panel, history.rows, "valid_loss", COLOURS["valid"], "valid")
    best = history.best
    if best is not None:
        trained_only = best.valid_loss is None
        ring = COLOURS["train" if trained_only else "valid"]
        at = in_training(best) if trained_only else after_training(best)
        label = f"best {number(score(best))}, epoch {best.epoch}"
        panel.plot([at], [score(best)], "o", markersize=10, fillstyle="none", color=ring, label=label)
        panel.legend(frameon=False)
    for mark in history.annotations:
        panel.axvline(mark.epoch - 0.5, color=COLOURS["mark"], linestyle="--", linewidth=0.8)
        panel.text(
            mark.epoch - 0.5,
            0.98,
            mark.label + " ",
            transform=panel.get_xaxis_transform(),
            rotation=90,
            ha="right",
            va="top",
            fontsize=8,
            parse_math=False,
        )
    panel.set_ylabel("loss")
    if not history.rows:
        panel.set(xlim=(-0.5, 4.5), ylim=(0, 1))
        panel.text(2, 0.5, "no epochs yet", ha="center", va="center", color=COLOURS["mark"])
    if log:
        panel.set_yscale("log")


def _line(panel: "Axes", rows: list[Row], name: str, colour: str, label: str) -> None:
    place = in_training if name.startswith("train") else after_training
    values = [getattr(row, name) if name in LOSSES else row.metrics.get(name) for row in rows]
    numbers = [float("nan") if value is None else value for value in values]
    marker = "o" if name != "train_loss" and len(rows) <= 24 else ""
    panel.plot([place(row) for row in rows], numbers, color=colour, marker=marker, markersize=3.5, label=label or None)
