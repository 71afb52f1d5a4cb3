"""The curves of several attempts in one matplotlib figure."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from quik_nb.history import History, score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = ("#2f83cf", "#d9730d", "#2a9d8f", "#8e5ea2", "#b3263b", "#555555")
"""Colours that stay apart for every kind of colour vision, in the order of use."""

DASHES = ("-", "--", ":", "-.")
"""Beside the colours, so that lines can be told apart without them."""


def overlay(histories: Mapping[str, History], log: bool = False) -> "Figure":
    """One line for each history: its `valid_loss`, or its `train_loss` where it has none; the best is ringed."""
    from matplotlib.ticker import MaxNLocator

    from quik_nb.views.inline_figure import InlineFigure

    result = InlineFigure("loss curves of all attempts", (6, 3.4))
    axes = result.subplots()
    for number, (name, history) in enumerate(histories.items()):
        colour, dash = SERIES[number % len(SERIES)], DASHES[number // len(SERIES) % len(DASHES)]
        values = [score(row) for row in history]
        epochs = [row.epoch for row in history]
        axes.plot(epochs, values, dash, color=colour, marker="o", markersize=3, label=name)
        best = history.best
        if best is not None:
            axes.plot([best.epoch], [score(best)], "o", markersize=10, fillstyle="none", color=colour)
    validated = any("valid_loss" in history.columns for history in histories.values())
    axes.set_ylabel("valid loss" if validated else "train loss")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    if histories:
        legend = axes.legend(frameon=False, fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)
    if log:
        axes.set_yscale("log")
    return result
