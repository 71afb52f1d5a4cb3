"""Training in this process: the model is trained in place, and rolled back to its last row where the run fails."""

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

import torch

from quik_nb.events import Annotation, Emit, Event
from quik_nb.launch.batch_pickling import batches_by_value
from quik_nb.launch.placement import Placement
from quik_nb.storage.checkpointer import Checkpointer
from quik_nb.training.commands import LocalCommands
from quik_nb.training.job import Job
from quik_nb.training.progress import Snapshot, unsaved_buffers
from quik_nb.training.rank import run_rank
from quik_nb.training.world import World


class InProcess:
    """One rank in this process.

    Args:
        job: what to train; its model is trained in place.
        placement: with the one device.
        saver: writes files at each epoch's end; None for none.
    """

    undelivered: Sequence[Event] = ()
    """always empty: an event is emitted when it happens"""

    def __init__(self, job: Job, placement: Placement, saver: Checkpointer | None = None) -> None:
        self.job = job
        self.model = job.model
        self.device = torch.device(placement.devices[0])
        self.saver = saver
        self.commands = LocalCommands()

        self._last = Snapshot(
            self.model.state_dict(), replace(job.progress, unsaved_buffers=unsaved_buffers(self.model))
        ).copy()
        self._is_saving = False
        self._has_finished = False
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def events(self, emit: Emit) -> None:
        """Train, and emit the events as they happen."""
        __tracebackhide__ = True
        with batches_by_value():
            run_rank(self.job, World(device=self.device), self.commands, self, emit)
        self._has_finished = True

    def begin(self, snapshot: Snapshot) -> None:
        """Before the first step."""
        if self.saver is not None:
            self.saver.begin(snapshot)
            self._is_saving = True

    def __call__(self, snapshot: Snapshot, annotations: list[Annotation]) -> None:
        """Keep a copy of the state of a row, and write its files."""
        self._last = snapshot.copy()
        if self.saver is not None:
            self.saver(self._last, annotations)

    def kill(self) -> None:
        """Nothing: it ends with its process."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Roll a training that did not come to its end back to its last row, and write its state."""
        self._is_over = True
        if not self._has_finished:
            self._last.load_into(self.model)

        if self._is_saving and self.saver is not None:
            self.saver.close(self._last)

    def snapshot(self) -> Snapshot | None:
        """The state of the last row; None while the model is trained in place."""
        return self._last if self._is_over else None
