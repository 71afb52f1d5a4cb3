"""The seam between a session and wherever it trains: a launcher starts a job and gives back the running training.

Not for how any of them does it: `in_process.py` trains in this process, `workers.py` in processes of its own, and
`start.py` has the table of them. Outside this folder one thing is asked of a launcher: whether it copies objects.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from quik_nb.events import Event
from quik_nb.launch.placement import Placement
from quik_nb.storage.checkpointer import Checkpointer
from quik_nb.training.commands import Commands
from quik_nb.training.job import Job
from quik_nb.training.progress import Snapshot


class Running(Protocol):
    """A training that was launched, as a context: within it `events` trains, and after it nothing of it runs any more.

        with launch(job, placement, saver) as running:
            running.events(emit)
        state = running.snapshot()

    A training that is not to begin after all is entered and left as well, without `events`.
    """

    @property
    def commands(self) -> Commands:
        """What may be done to it on its way, from any thread; nothing any more once it is over."""

    @property
    def undelivered(self) -> Sequence[Event]:
        """Events that were sent and not emitted, as the training was cut short; known once it is over."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End all that still runs, in the thread of `events`, and bring the state back."""

    def events(self, emit: Callable[[Event], None]) -> None:
        """Train, and emit the events as they come; an error of the training, or of `emit`, is raised here."""

    def snapshot(self) -> Snapshot | None:
        """The state of the last row, at any time.

        None before the first row, and while the user's own model is being trained in place.
        """

    def kill(self) -> None:
        """Kill what can be killed, from any thread; `events` then raises in its own."""


@dataclass(frozen=True)
class Launcher:
    """One way to train a job on the devices of a placement."""

    launch: Callable[[Job, Placement, Checkpointer | None], Running]
    """prepares a training of the job as it is now, whatever is changed in the session afterwards"""
    copies_objects: bool
    """whether steps run on copies of the notebook's objects, in other processes"""
