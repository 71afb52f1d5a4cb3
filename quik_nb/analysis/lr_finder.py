"""What the learning-rate finder found: rates and losses, a suggestion with its reason, a figure."""

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from quik_nb.views.figure_html import img
from quik_nb.views.lr_finder_figure import rates_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

BETA = 0.9
"""Weight of the past in the smoothed loss, per step."""

Point = tuple[float, float]
"""A learning rate, and the loss of the step that was made with it."""

FEWEST = 10
"""Steps below which a curve says nothing."""

CLEAR = 4.0
"""How many times the noise of the curve a fall must be."""

SMALLEST = 0.02
"""And which part of the loss."""

Losses = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, repr=False)
class RateTest:
    """The result of `session.lr_find()`.

    >>> rates = [10.0 ** (i / 10 - 4) for i in range(41)]
    >>> found = RateTest([(rate, 1 / (1 + (rate / 1e-2) ** 2)) for rate in rates])
    >>> round(found.suggestion, 3)
    0.01
    """

    points: list[Point]
    """(learning rate, loss of the step) in the order of the steps"""

    @property
    def suggestion(self) -> float | None:
        """The rate at which the loss falls fastest per factor of the rate; None where it does not clearly fall.

        The lowest point of the curve would be too much: there the loss is about to rise. Before the fall the loss goes
        up and down with the batches, which says nothing of the rate, so the steepest place is looked for in the fall.
        """
        level = self._level()
        if len(level) < FEWEST or (lowest := int(np.argmin(level))) < 2:
            return None
        fall = self._start(level) - level[lowest]
        if fall < max(CLEAR * self._noise(level), SMALLEST * abs(self._start(level))):
            return None
        high = np.flatnonzero(level[:lowest] > self._start(level) - 0.1 * fall)
        first = int(high[-1]) if len(high) else 0
        slopes = np.gradient(level)[first : lowest + 1]  # the rate grows by the same factor from step to step
        return self.points[first + int(np.argmin(slopes))][0]

    @property
    def _losses(self) -> Losses:
        return np.array([loss for _, loss in self.points if np.isfinite(loss)])

    def _level(self) -> Losses:
        """The losses, each with as many neighbours on either side averaged, so that the curve does not lag."""
        losses = self._losses
        reach = len(losses) // 12
        windows = [
            losses[max(0, i - min(i, reach)) : i + min(i, reach, len(losses) - 1 - i) + 1] for i in range(len(losses))
        ]
        return np.array([window.mean() for window in windows])

    def _start(self, level: Losses) -> float:
        """The loss before it falls: what the first, tiny rates leave it at."""
        return float(np.median(level[: max(1, len(level) // 5)]))

    def _noise(self, level: Losses) -> float:
        """How far the level goes up and down with the batches: the median deviation of a loss, over its window."""
        deviations = np.abs(self._losses - level)[: max(3, len(level) // 2)]
        return float(1.48 * np.median(deviations) / np.sqrt(2 * (len(level) // 12) + 1))

    @property
    def frame(self) -> "pd.DataFrame":
        """A DataFrame: lr, loss, and smoothed, the loss averaged over the last steps."""
        import pandas as pd

        losses = [loss for _, loss in self.points]
        return pd.DataFrame({"lr": [rate for rate, _ in self.points], "loss": losses, "smoothed": smoothed(losses)})

    def figure(self) -> "Figure":
        """The losses over the rates as a matplotlib Figure, with the suggestion."""
        points = [(rate, loss) for rate, loss in self.points if np.isfinite(loss)]
        return rates_figure(points, smoothed([loss for _, loss in points]), self.suggestion)

    def __repr__(self) -> str:
        if not len(self._losses):
            return "learning-rate finder: the loss is no number from the first step on, so look for NaN in the data"
        (first, _), (last, _) = self.points[0], self.points[-1]
        tried = f"learning-rate finder: {len(self.points)} steps from {first:.2g} to {last:.2g}"
        if self.suggestion is None:
            return f"{tried}; the loss did not fall, so there is no suggestion"
        return f"{tried}; the loss falls fastest at {self.suggestion:.2g}: session.train(lr={self.suggestion:.2g})"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>\n{img(self.figure(), repr(self))}"


def smoothed(losses: list[float]) -> list[float]:
    """The moving average of the losses, divided by its total weight, so that it has no bias towards zero.

    >>> smoothed([2.0, 2.0, 2.0])
    [2.0, 2.0, 2.0]
    """
    average, result = 0.0, []
    for step, loss in enumerate(losses, start=1):
        average = BETA * average + (1 - BETA) * loss
        result.append(average / (1 - BETA**step))
    return result
