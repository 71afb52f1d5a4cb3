"""The curve of the learning-rate finder as a matplotlib figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quik_nb.views.shapes import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rates_figure(
    points: Sequence[tuple[float, float]], smoothed: Sequence[float], suggestion: float | None
) -> "Figure":
    """Losses (faint) and their moving average over the rate, on a logarithmic scale, with a line at the suggestion."""
    from quik_nb.views.inline_figure import InlineFigure

    result = InlineFigure("loss over learning rate", (6, 3.2))
    axes = result.subplots()
    rates = [rate for rate, _ in points]
    axes.plot(rates, [loss for _, loss in points], color=COLOURS["live"], alpha=0.35, label="loss")
    axes.plot(rates, smoothed, color=COLOURS["train"], label="smoothed")
    if suggestion is not None:
        axes.axvline(suggestion, color=COLOURS["best"], linestyle="--", label=f"falls fastest at {suggestion:.2g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if points:
        early = sorted(smoothed[: max(1, len(smoothed) // 5)])
        start, low = early[len(early) // 2], min(smoothed)
        room = max(start - low, 0.25 * abs(start), 1e-9)  # a curve that hardly falls looks like one
        axes.set_ylim(low - 0.1 * room, start + 0.6 * room)
        axes.legend(frameon=False)
    return result
