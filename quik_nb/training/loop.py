"""A loop of the user's own, on the pieces of a training: same numbers, same view, same stops as `train()`.

    def loop(session):
        for epoch in session.iter_epochs():
            for x, y in session.loader("train"):
                with session.autocast():
                    loss = session.criterion(session.model(x), y)
                session.backward(loss)
                session.metrics.add_loss(loss)
            session.end_epoch()

`backward` scales, accumulates, clips, steps and zeroes; `end_epoch` validates, steps the scheduler, saves and draws.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from quik_nb.events import Event, RunEnd
from quik_nb.recipe.settings import Settings
from quik_nb.training.trainer import Stopped, Trainer
from quik_nb.training.world import World


class Loop:
    """What a loop of the user's own is called with, on each rank.

    Attributes:
        model: the model to call; wrapped by DistributedDataParallel where there are several ranks.
        criterion: as `set_criterion` made it, on the device.
        optimizer: over the trainable parameters, for those who step it themselves.
        scheduler: or None.
        world: `rank`, `world_size`, `device`, `is_logger`, `is_ddp`.
        settings: of the session.
        metrics: `metrics.add_loss(loss)` counts a loss towards the epoch's mean.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.model = trainer.call
        self.criterion: Any = trainer.step.criterion
        self.optimizer, self.scheduler = trainer.updater.optimizer, trainer.updater.scheduler
        self.world: World = trainer.world
        self.settings: Settings = trainer.settings
        self.metrics = Losses(trainer)

    def iter_epochs(self) -> Iterator[int]:
        """The epochs still to train: a run that goes on starts where it stood."""
        return self._trainer.iter_epochs()

    def loader(self, split: str = "train") -> Iterator[Any]:
        """This rank's batches of a split, on the device; those of "train" draw the bar and obey a stop."""
        return self._trainer.loader(split)

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass; nothing where `precision` is fp32."""
        return self._trainer.autocast()

    def backward(self, loss: Tensor) -> None:
        """Scale, backward, and after the last micro-batch of a step: clip, step, zero, scheduler."""
        self._trainer.backward(loss)

    def validate(self) -> dict[str, float]:
        """`valid_loss` and the metrics of the validation split now; `end_epoch` does it by itself."""
        return self._trainer.validate()

    def end_epoch(self, values: dict[str, float] | None = None) -> None:
        """Close the epoch: row, scheduler, files, view.

        Args:
            values: `valid_loss` and further columns that the loop measured itself, of which the mean over the ranks
                counts; None to validate here.
        """
        self._trainer.end_epoch(values)


class Losses:
    """The losses of the epoch under way."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def add_loss(self, loss: Tensor, samples: int | None = None) -> None:
        """Count a loss towards the epoch's mean.

        Args:
            loss: the mean over the samples of a batch.
            samples: how many; None for those of the current batch of `loader("train")`, or 1 in a loop without it.
        """
        self._trainer.add_loss(loss.detach(), samples=samples)
        if self._trainer.batch is None:  # the loop draws its batches elsewhere, so this is all that tells of a step
            self._trainer.count_step()


def run_own(trainer: Trainer, loop: Callable[[Any], Any], emit: Callable[[Event], None]) -> None:
    """Run a loop of the user's own from beginning to end; events go out as they come up."""
    __tracebackhide__ = True
    trainer.emit = emit
    emit(trainer.start())
    try:
        loop(Loop(trainer))
    except Stopped:
        trainer.keep_partial()
        emit(RunEnd("stopped"))
        return
    trainer.keep_partial()  # a loop that ended without end_epoch
    emit(RunEnd("finished", trainer.reason))
