"""What drawing may cost: a share of the wall time, and a small allowance so that a short run is live too.

A count of steps or epochs cannot say how often to draw, since a step may take a microsecond or a minute. Time can.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHARE = 0.02
"""part of the wall time that a view may spend"""
ALLOWANCE = 0.012
"""seconds that it may spend on top: the table of some twenty epochs of any length, drawn row by row"""

Clock = Callable[[], float]


class Budget:
    """Says whether a drawing is affordable now, from what its kind cost the last time.

    >>> budget = Budget(clock=iter([0.0, 10.0]).__next__)
    >>> budget.allows("curve")
    True
    """

    def __init__(self, share: float = SHARE, allowance: float = ALLOWANCE, clock: Clock = time.perf_counter) -> None:
        self._share, self._allowance, self._clock = share, allowance, clock
        self._start = clock()
        self._last: dict[str, float] = {}
        self.spent = 0.0
        """seconds spent on drawing so far"""

    def allows(self, kind: str, depth: float = 1.0) -> bool:
        """Whether one more drawing of this kind fits; a `depth` below 1 leaves part of the allowance to other kinds."""
        earned = self._share * (self._clock() - self._start)
        return self.spent + self._last.get(kind, 0.0) <= earned + depth * self._allowance

    @contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """Count the time within as spent on this kind."""
        start = self._clock()
        try:
            yield
        finally:
            self._last[kind] = self._clock() - start
            self.spent += self._last[kind]
