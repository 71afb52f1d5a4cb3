"""Training in this process: one rank, with the user's random numbers and the model's device given back."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import torch

from quik_nb.events import Event
from quik_nb.launch.placement import Placement
from quik_nb.storage.checkpointer import Saver
from quik_nb.training import rng, train_mode
from quik_nb.training.commands import LocalCommands
from quik_nb.training.loop import run_own
from quik_nb.training.progress import Snapshot
from quik_nb.training.trainer import Job, Trainer
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

    def __init__(self, job: Job, placement: Placement, saver: Saver | None = None) -> None:
        assert job.recipe.model is not None  # Recipe.check has seen to it
        self.job = job
        self.model = job.recipe.model
        self.device = torch.device(placement.devices[0])
        self.saver = saver
        self.commands = LocalCommands()

        self._last = Snapshot(self.model.state_dict(), job.progress).copy()
        self._is_saving = False
        self._has_finished = False
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def events(self, emit: Callable[[Event], None]) -> None:
        """Train, and emit the events as they happen."""
        __tracebackhide__ = True
        trainer: Trainer | None = None
        own_device = next(self.model.parameters()).device
        try:
            with rng.preserved(self.device), train_mode.kept(self.model):
                trainer = Trainer(self.job, World(device=self.device), self.commands, self._keep)
                if self.saver is not None:
                    self.saver.begin(trainer)
                    self._is_saving = True
                if self.job.loop is not None:
                    run_own(trainer, self.job.loop, emit)
                else:
                    for event in trainer.run():
                        emit(event)
            self._has_finished = True
        finally:
            if trainer is not None:
                trainer.release()
            self.model.to(own_device)

    def _keep(self, trainer: Trainer) -> None:
        self._last = trainer.snapshot().copy()
        if self.saver is not None:
            self.saver.take(self._last, trainer.annotations)

    def kill(self) -> None:
        """Nothing: it ends with its process."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Roll a training that did not come to its end back to its last row, and write the files that wait."""
        self._is_over = True
        self.model.zero_grad()

        if not self._has_finished:
            self.model.load_state_dict(self._last.weights)

        if self._is_saving and self.saver is not None:
            self.saver.close(self._last)

    def snapshot(self) -> Snapshot | None:
        """The state of the last row; None while the model is trained in place."""
        return self._last if self._is_over else None
