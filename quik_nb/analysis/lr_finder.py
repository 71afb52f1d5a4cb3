"""The result of the learning-rate finder: learning rates and losses, a suggestion, a figure.

What is not here: the test itself (`range_test.py`).
"""

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
"""Weight of the previous average in the smoothed loss, per step."""

Point = tuple[float, float]
"""A learning rate, and the loss of the step made with it."""

MIN_STEPS = 10
"""With fewer steps, there is no suggestion."""

MIN_FALL_TO_NOISE = 4.0
"""How many times the noise of the curve the loss must fall for a suggestion."""

MIN_RELATIVE_FALL = 0.02
"""What fraction of the loss it must fall, in addition."""

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
        """The learning rate at which the loss falls fastest over log(lr); None if it does not clearly fall.

        The minimum of the curve would be too large a rate, since the loss is about to rise there. Before the fall, the
        loss varies with the batches and not with the rate, so the steepest point is searched within the fall only.
        """
        curve = self._centered_average()
        if len(curve) < MIN_STEPS or (lowest := int(np.argmin(curve))) < 2:
            return None

        start = self._start(curve)
        fall = start - curve[lowest]
        if fall < max(MIN_FALL_TO_NOISE * self._noise(curve), MIN_RELATIVE_FALL * abs(start)):
            return None

        # the fall begins after the last point that is within 10 % of the start
        high = np.flatnonzero(curve[:lowest] > start - 0.1 * fall)
        first = int(high[-1]) if len(high) else 0
        slopes = np.gradient(curve)[first : lowest + 1]  # over log(lr), which grows by the same amount each step
        return self.points[first + int(np.argmin(slopes))][0]

    @property
    def _losses(self) -> Losses:
        return np.array([loss for _, loss in self.points if np.isfinite(loss)])

    def _centered_average(self) -> Losses:
        """The losses, averaged over windows that are centered on each step, so that the curve does not lag."""
        losses = self._losses
        reach = len(losses) // 12
        windows = [
            losses[max(0, i - min(i, reach)) : i + min(i, reach, len(losses) - 1 - i) + 1] for i in range(len(losses))
        ]
        return np.array([window.mean() for window in windows])

    def _start(self, curve: Losses) -> float:
        """The loss before it falls: the median over the first fifth of the steps."""
        return float(np.median(curve[: max(1, len(curve) // 5)]))

    def _noise(self, curve: Losses) -> float:
        """The standard deviation of the averaged curve, from the median absolute deviation of the losses."""
        deviations = np.abs(self._losses - curve)[: max(3, len(curve) // 2)]
        window = 2 * (len(curve) // 12) + 1
        return float(1.48 * np.median(deviations) / np.sqrt(window))

    @property
    def frame(self) -> "pd.DataFrame":
        """A DataFrame with a line per step: lr, loss, and smoothed (moving average of the loss)."""
        import pandas as pd

        losses = [loss for _, loss in self.points]
        return pd.DataFrame({"lr": [rate for rate, _ in self.points], "loss": losses, "smoothed": smoothed(losses)})

    def figure(self) -> "Figure":
        """The loss over the learning rate as a matplotlib Figure, with the suggestion marked."""
        points = [(rate, loss) for rate, loss in self.points if np.isfinite(loss)]
        return rates_figure(points, smoothed([loss for _, loss in points]), self.suggestion)

    def __repr__(self) -> str:
        if not len(self._losses):
            return "learning-rate finder: the loss is NaN or infinite from the first step on: look for NaN in the data"
        (first, _), (last, _) = self.points[0], self.points[-1]
        steps = f"learning-rate finder: {len(self.points)} steps from {first:.2g} to {last:.2g}"
        if self.suggestion is None:
            return f"{steps}; the loss did not fall, so there is no suggestion"
        return f"{steps}; the loss falls fastest at {self.suggestion:.2g}: session.train(lr={self.suggestion:.2g})"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>\n{img(self.figure(), repr(self))}"


def smoothed(losses: list[float]) -> list[float]:
    """The exponential moving average of the losses, with bias correction.

    >>> smoothed([2.0, 2.0, 2.0])
    [2.0, 2.0, 2.0]
    """
    average, result = 0.0, []
    for step, loss in enumerate(losses, start=1):
        average = BETA * average + (1 - BETA) * loss
        result.append(average / (1 - BETA**step))
    return result
