"""What drawing may cost: a share of the wall time, a small allowance so that a short run is live too, and a frame rate.

A count of steps or epochs cannot say how often to draw, since a step may take a microsecond or a minute. Time can.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

SHARE = 0.015
"""part of the wall time that a view may spend on drawing, so that with all it does else it stays below 2 %"""
ALLOWANCE = 0.012
"""seconds that it may spend on top, for a whole run: the rows of some twenty short epochs, one by one"""
FRAME = 1 / 25
"""seconds between two drawings of one kind, as in a film: an eye follows no more of them"""


class Clock(NamedTuple):
    """Seconds from anywhere, told in two ways."""

    wall: Callable[[], float] = time.perf_counter
    work: Callable[[], float] = time.thread_time
    """of this thread, by which drawings are counted: one that had to wait for a busy machine or for another cell took
    nothing from the training, and would silence the view for long"""


CLOCK = Clock()
"""the system's"""


class Budget:
    """One account for each kind of drawing, so that what is drawn often cannot starve the rest.

    Args:
        shares: the parts that the kinds get of the whole, by name; they add up to 1.
        clock: tells the time.
        pauses: seconds before the first and between two drawings of a kind, where they are not those of a film.

    >>> budget = Budget({"table": 0.6, "curve": 0.4}, Clock(wall=iter([0.0, 10.0]).__next__))
    >>> budget.allows("curve")
    True
    """

    def __init__(
        self, shares: Mapping[str, float], clock: Clock = CLOCK, pauses: Mapping[str, float] | None = None
    ) -> None:
        self._shares = shares
        self._clock = clock
        self._pauses = dict.fromkeys(shares, FRAME) | dict(pauses or {})
        self._start = clock.wall()
        self.spent = dict.fromkeys(shares, 0.0)
        """seconds spent so far, by kind"""
        self._drawn = dict.fromkeys(shares, -math.inf) | dict.fromkeys(pauses or {}, self._start)

    def allows(self, kind: str, overdraft: float = 1.0) -> bool:
        """Whether less than `overdraft` of this kind's account is spent, and the one before was long enough ago.

        One drawing may overdraw the account, and is then paid off.
        """
        now = self._clock.wall()
        earned = ALLOWANCE + SHARE * (now - self._start)
        if now < self._drawn[kind] + self._pauses[kind]:
            return False
        return self.spent[kind] < overdraft * self._shares[kind] * earned

    @contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """Count the work within as spent on this kind."""
        start = self._clock.work()
        try:
            yield
        finally:
            self.spent[kind] += self._clock.work() - start
            self._drawn[kind] = self._clock.wall()
