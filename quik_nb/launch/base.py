"""The one seam between a run and wherever it trains: something that hands out events and then has an outcome."""

from collections.abc import Callable
from typing import Protocol

from quik_nb.events import Event
from quik_nb.training.commands import LocalCommands, SharedCommands
from quik_nb.training.progress import Snapshot


class Launch(Protocol):
    """A training that was started somewhere; after `close`, `outcome` is the state of the last row, in every case."""

    @property
    def commands(self) -> LocalCommands | SharedCommands: ...

    def drive(self, take: Callable[[Event], None]) -> None:
        """Train, and hand out the events as they come up; an error of the training is raised here."""

    def kill(self) -> None:
        """End it the hard way, from any thread: `drive` then raises in its own."""

    def close(self) -> list[Event]:
        """End all that still runs, in the thread of `drive`; gives the events that it did not come to hand out."""

    def peek(self) -> Snapshot | None:
        """The state of the last row while the training goes on elsewhere; None where it is at hand already."""

    def outcome(self) -> Snapshot | None:
        """The state of the last row; None where no row was finished."""
