"""What the learning-rate finder found: rates and losses, a suggestion with its reason, a figure."""

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from quik_nb.training.lr_finder import Point, smoothed
from quik_nb.views.embed import img
from quik_nb.views.rates import rates_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FEWEST = 10
"""Steps below which a curve says nothing."""


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
        """The rate at which the loss falls fastest per factor of the rate; None where it did not fall, or too briefly.

        The lowest point of the curve would be too much: there the loss is about to rise.
        """
        losses = self._level()
        lowest = int(np.argmin(losses)) if len(losses) else 0
        if len(self.points) < FEWEST or lowest < 2:
            return None
        slopes = np.gradient(losses)[: lowest + 1]  # the rate grows by the same factor from step to step
        return self.points[int(np.argmin(slopes))][0]

    def _level(self) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        """The losses, each with as many neighbours on either side averaged, so that the curve does not lag."""
        losses = np.array([loss for _, loss in self.points if np.isfinite(loss)])
        reach = len(losses) // 20
        windows = [
            losses[max(0, i - min(i, reach)) : i + min(i, reach, len(losses) - 1 - i) + 1] for i in range(len(losses))
        ]
        return np.array([window.mean() for window in windows])

    @property
    def frame(self) -> "pd.DataFrame":
        """A DataFrame: lr, loss, and smoothed, the loss averaged over the last steps."""
        import pandas as pd

        losses = [loss for _, loss in self.points]
        return pd.DataFrame({"lr": [rate for rate, _ in self.points], "loss": losses, "smoothed": smoothed(losses)})

    def figure(self) -> "Figure":
        """The losses over the rates as a matplotlib Figure, with the suggestion."""
        return rates_figure(self.points, smoothed([loss for _, loss in self.points]), self.suggestion)

    def __repr__(self) -> str:
        if not self.points:
            return "learning-rate finder: no steps"
        (first, _), (last, _) = self.points[0], self.points[-1]
        tried = f"learning-rate finder: {len(self.points)} steps from {first:.2g} to {last:.2g}"
        if self.suggestion is None:
            return f"{tried}; the loss did not fall, so there is no suggestion"
        return f"{tried}; the loss falls fastest at {self.suggestion:.2g}: session.train(lr={self.suggestion:.2g})"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>\n{img(self.figure(), repr(self))}"
