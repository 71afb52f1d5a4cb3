"""Training in this process: the generator itself, with the user's random numbers and the model's device given back."""

from collections.abc import Iterator

import torch

from quik_nb.events import Event
from quik_nb.launch.base import Outcome
from quik_nb.training import rng
from quik_nb.training.checkpoint import copied
from quik_nb.training.controls import Controls
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
        self._events = self._run()

    def __iter__(self) -> Iterator[Event]:
        return self._events

    def _run(self) -> Iterator[Event]:
        __tracebackhide__ = True
        home = next(self.model.parameters()).device
        training = self.model.training
        try:
            with rng.preserved():
                self.trainer = Trainer(self.job, World(device=self.device), self.controls, self._keep)
                if self.saver is not None:
                    self.saver.begin(self.trainer)
                yield from self.trainer.run()
                if self.saver is not None:
                    self.saver.checkpoint(self.trainer)
                self._finished = True
        finally:
            self.model.to(home).train(training)

    def _keep(self, trainer: Trainer) -> None:
        self._kept = Outcome(copied(trainer.model.state_dict()), copied_progress(trainer.progress()))
        if self.saver is not None:
            self.saver(trainer)

    def close(self) -> None:
        """End the generator; a training that did not come to its end goes back to its last row."""
        self._events.close()  # type: ignore[attr-defined]
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
