"""Pictures of reports: counts as a map of squares, outputs against targets as dots."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quik_nb.views.shapes import COLOURS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

WORDED = 20
"""Classes up to which the counts are written into the squares."""

DOTS = 2000
"""Samples that are drawn; more could not be told apart."""


def confusion_figure(counts: "pd.DataFrame", title: str) -> "Figure":
    """Rows as shares of their sum in shades of blue, with the counts written in where there is room."""
    from quik_nb.views.inline_figure import InlineFigure

    values = counts.to_numpy()
    shares = values / values.sum(axis=1, keepdims=True).clip(min=1)
    height, width = values.shape
    inches = [min(9.0, 1.6 + 0.42 * count) for count in (width, height)]
    result = InlineFigure("confusion matrix", (max(3.2, inches[0]), max(2.6, inches[1])))
    axes = result.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    if height <= WORDED:
        for row in range(height):
            for column in range(width):
                colour = "white" if shares[row, column] > 0.55 else "black"
                axes.text(column, row, f"{values[row, column]:,}", ha="center", va="center", color=colour, fontsize=8)
    every = max(1, -(-height // 40))
    axes.set_xticks(range(0, width, every), [str(name) for name in counts.columns[::every]], parse_math=False)
    axes.set_yticks(range(0, height, every), [str(name) for name in counts.index[::every]], parse_math=False)
    if max(len(str(name)) for name in counts.columns) > 3:
        axes.tick_params(axis="x", labelrotation=90)
    axes.set_xlabel(str(counts.columns.name))
    axes.set_ylabel(str(counts.index.name))
    axes.set_title(title, fontsize=9, parse_math=False)
    return result


def scatter_figure(targets: Any, outputs: Any, names: Sequence[str]) -> "Figure":
    """One panel for each output, targets to the right and outputs upwards; right answers lie on the line.

    Args:
        targets: array of shape (samples, outputs).
        outputs: likewise.
        names: of the outputs.
    """
    from quik_nb.views.inline_figure import InlineFigure

    across = min(3, len(names))
    down = -(-len(names) // across)
    result = InlineFigure("outputs over targets", (0.4 + 3.0 * across, 3.0 * down))
    panels = result.subplots(down, across, squeeze=False).flat
    every = max(1, len(targets) // DOTS)
    for column, (panel, name) in enumerate(zip(panels, names, strict=False)):
        true, predicted = targets[::every, column], outputs[::every, column]
        low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
        panel.plot([low, high], [low, high], color=COLOURS["mark"], linestyle="--", linewidth=0.8)
        panel.plot(true, predicted, ".", color=COLOURS["train"], alpha=0.5, markersize=4)
        panel.set_xlabel("target")
        panel.set_ylabel(name, parse_math=False)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in list(panels):  # places that no output fills
        panel.set_axis_off()
    return result
