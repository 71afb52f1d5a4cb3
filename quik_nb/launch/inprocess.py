"""Training in this process: the generator itself, with the user's random numbers and the model's device given back."""

from collections.abc import Callable

import torch

from quik_nb.events import Event
from quik_nb.launch.base import Outcome
from quik_nb.training import rng
from quik_nb.training.checkpoint import copied
from quik_nb.training.controls import Controls
from quik_nb.training.own_loop import run_own
from quik_nb.training.saver import Saver
from quik_nb.training.trainer import Job, Progress, Trainer
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
        self.controls = Controls()
        self.trainer: Trainer | None = None
        self._kept: Outcome = Outcome(copied(self.model.state_dict()), copied_progress(job.progress))
        self._finished = False

    def drive(self, take: Callable[[Event], None]) -> None:
        """Train, and hand out the events as they come up."""
        __tracebackhide__ = True
        home = next(self.model.parameters()).device
        training = self.model.training
        try:
            with rng.preserved():
                self.trainer = Trainer(self.job, World(device=self.device), self.controls, self._keep)
                if self.saver is not None:
                    self.saver.begin(self.trainer)
                if self.job.loop is not None:
                    run_own(self.trainer, self.job.loop, take)
                else:
                    for event in self.trainer.run():
                        take(event)
                if self.saver is not None:
                    self.saver.checkpoint(self.trainer)
                self._finished = True
        finally:
            if self.trainer is not None:
                self.trainer.release()
            self.model.to(home).train(training)

    def _keep(self, trainer: Trainer) -> None:
        self._kept = Outcome(copied(trainer.weights()), copied_progress(trainer.progress()), trainer.row)
        if self.saver is not None:
            self.saver(trainer)

    def close(self) -> None:
        """A training that did not come to its end goes back to its last row."""
        self.model.zero_grad()
        if not self._finished:
            self.model.load_state_dict(self._kept.weights)

    def peek(self) -> None:
        """Nothing: the model is trained in place."""

    def outcome(self) -> Outcome:
        """The state of the last row."""
        return self._kept


def copied_progress(progress: Progress) -> Progress:
    """A copy that later training does not change."""
    return Progress(**{name: copied(getattr(progress, name)) for name in Progress.__dataclass_fields__})
