"""Training in this process: the generator itself, with the user's random numbers and the model's device given back."""

from collections.abc import Callable

import torch

from quik_nb.events import Event
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
        device: a torch device.
        saver: writes files at each epoch's end; None for none.
    """

    def __init__(self, job: Job, device: str, saver: Saver | None = None) -> None:
        assert job.recipe.model is not None  # Recipe.check has seen to it
        self.job, self.saver, self.model = job, saver, job.recipe.model
        self.device = torch.device(device)
        self.commands = LocalCommands()
        self.trainer: Trainer | None = None
        self._kept = Snapshot(self.model.state_dict(), job.progress).copy()
        self._finished = self._saving = False

    def drive(self, take: Callable[[Event], None]) -> None:
        """Train, and hand out the events as they come up."""
        __tracebackhide__ = True
        home = next(self.model.parameters()).device
        try:
            with rng.preserved(self.device), train_mode.kept(self.model):
                self.trainer = Trainer(self.job, World(device=self.device), self.commands, self._keep)
                if self.saver is not None:
                    self.saver.begin(self.trainer)
                    self._saving = True
                self._train(self.trainer, take)
            self._finished = True
        finally:
            if self.trainer is not None:
                self.trainer.release()
            self.model.to(home)

    def _train(self, trainer: Trainer, take: Callable[[Event], None]) -> None:
        __tracebackhide__ = True
        if self.job.loop is not None:
            run_own(trainer, self.job.loop, take)
            return
        for event in trainer.run():
            take(event)

    def _keep(self, trainer: Trainer) -> None:
        self._kept = trainer.snapshot().copy()
        if self.saver is not None:
            self.saver.take(self._kept, trainer.annotations)

    def kill(self) -> None:
        """Nothing: it ends with its process."""

    def close(self) -> list[Event]:
        """A training that did not come to its end goes back to its last row; files that wait are written."""
        self.model.zero_grad()
        if not self._finished:
            self.model.load_state_dict(self._kept.weights)
        if self._saving and self.saver is not None:
            self.saver.close(self._kept)
        return []

    def peek(self) -> None:
        """Nothing: the model is trained in place."""

    def outcome(self) -> Snapshot:
        """The state of the last row."""
        return self._kept
