"""The one seam between a run and wherever it trains: something that yields events and then has an outcome."""

from collections.abc import Callable
from typing import Protocol

from quik_nb.events import Event
from quik_nb.training.controls import Controls, SharedControls
from quik_nb.training.snapshot import Snapshot


class Launch(Protocol):
    """A training that was started somewhere.

    `drive` hands out its events; an error of the training is raised there. `close` ends all that still runs, and may be
    called at any time. After that, `outcome` is the state of the last row, in every case.
    """

    @property
    def controls(self) -> Controls | SharedControls: ...

    def drive(self, take: Callable[[Event], None]) -> None: ...

    def close(self) -> None: ...

    def peek(self) -> Snapshot | None:
        """The state of the last row while the training goes on elsewhere; None where it is at hand already."""

    def outcome(self) -> Snapshot | None: ...
