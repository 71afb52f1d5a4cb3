"""The record of the epoch under way on one rank: its losses, metrics, values and clock, made into a row at its end."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from quik_nb.errors import DivergenceError, RecipeError
from quik_nb.events import Row, StepEnd
from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.samples import Source, Tensors
from quik_nb.training.data.batch import Batch
from quik_nb.training.forward import StepOutput
from quik_nb.training.metrics import LossMeter, MetricSet, ValueMeans
from quik_nb.training.progress import Progress
from quik_nb.training.world import World, exact

GIVEN_UP = 20
"""Steps in a row whose loss is no number, after which scaled training has diverged."""


class EpochRecord:
    """Sums and clock of one epoch on this rank.

    Args:
        recipe: with metrics and settings.
        world: this rank among the others.
        clock: gives seconds.
        progress: of an epoch that was begun in an earlier call; None for a new epoch.
    """

    def __init__(
        self, recipe: Recipe, world: World, clock: Callable[[], float], progress: Progress | None = None
    ) -> None:
        self.recipe = recipe
        self.world = world
        self.clock = clock
        self.first_step = 0 if progress is None else progress.step

        # the sums of an earlier call are over all ranks, so one rank carries them on
        carried = progress if progress is not None and world.is_logger else Progress()
        self.losses = LossMeter(carried.loss_sum, carried.loss_count)
        self.values = ValueMeans()

        # the outputs before a stop are gone, and those of the rest tell too little
        on_train = recipe.metrics_on_train and self.first_step == 0
        self.metrics = MetricSet(recipe, recipe.metrics if on_train else {}, world)

        self.seconds_before = 0.0 if progress is None else progress.seconds
        self.started = clock() - self.seconds_before
        self.waited = 0.0
        """seconds that were spent waiting for data in this call"""
        self.samples = 0
        """trained by all ranks in this call"""

    def start_clock(self) -> None:
        """Count the time from now on, beside that of an earlier call."""
        self.started = self.clock() - self.seconds_before

    def add(self, output: StepOutput, batch: Batch) -> None:
        """Take what a micro-batch gave."""
        self.add_loss(output.loss, batch, output.count, output.reduction)
        if output.values:
            self.values.add(output.values, batch.samples)
        if self.metrics.names and output.outputs is not None and batch.samples:
            self.metrics.update(output.outputs, output.target, batch.samples)

    def add_loss(self, loss: torch.Tensor, batch: Batch, count: Any = None, reduction: str = "mean") -> None:
        """Count a loss towards the epoch's mean.

        Args:
            loss: one number.
            batch: with its samples.
            count: what it is a mean or sum over; None for the samples.
            reduction: "mean" or "sum".
        """
        amount = batch.samples if count is None else count * (batch.samples > 0)
        if reduction == "sum" and batch.samples:
            loss = loss.detach() / (batch.samples if count is None else count)
        self.losses.add(loss, amount, batch.last)

    @property
    def seconds(self) -> float:
        """Spent in this epoch, calls before included."""
        return self.clock() - self.started

    @property
    def data_wait(self) -> float:
        """Part of the time of this call's share of the epoch that was spent waiting for data."""
        return min(1.0, self.waited / max(self.seconds - self.seconds_before, 1e-9))

    def check(self, epoch: int, lr: float, scaled: bool) -> None:
        """Bring the losses up to date, and end the training if one is no number.

        Args:
            epoch: under way, for the message.
            lr: of the latest step, for the message.
            scaled: whether losses are scaled: then single ones may overflow; such steps are left out, the scale falls.

        Raises:
            DivergenceError: one is NaN or infinite.
        """
        self.losses.read()
        if self.losses.bad is None or (scaled and self.losses.bad_in_a_row < GIVEN_UP):
            return

        weights = "those of the last row" if epoch else "as they were before"
        spoilt = not_finite(self.recipe.train)
        advice = f"In {spoilt} of train are NaN or infinite values: fill them or leave their rows out."
        raise DivergenceError(
            f"The training loss became NaN or infinite in epoch {epoch}, step {self.first_step + self.losses.bad}, "
            f"with learning rate {lr:g}.\nThe weights are {weights}. "
            f"{advice if spoilt else 'Use a smaller lr, or clip_norm=1.0.'}"
        )

    def heartbeat(self, epoch: int, step: int, steps: int | None) -> StepEnd:
        """A sign of life within the training of an epoch, without the learning rates.

        Args:
            epoch: under way.
            step: optimizer steps done in it.
            steps: of it in all; None where unknown.
        """
        seconds = max(self.seconds, 1e-9)
        device = self.world.device
        return StepEnd(
            epoch=epoch,
            step=step,
            steps=steps,
            loss=self.losses.smoothed,
            rate=step / seconds,
            samples_per_second=self.samples / max(seconds - self.seconds_before, 1e-9),
            gpu_memory=int(torch.cuda.memory_reserved(device)) if device.type == "cuda" else None,
            data_wait=self.data_wait,
            losses=self.losses.take_steps(),
        )

    def sums(self, *further: float) -> list[float]:
        """Loss and count of all ranks, and further numbers added up in the same message (all ranks participate).

        Raises:
            RecipeError: there was no sample.
        """
        self.losses.read()
        own = [self.losses.total, self.losses.count, *further]
        total = torch.tensor(own, dtype=exact(self.world.device), device=self.world.device)
        return [float(value) for value in self.world.sum(total).tolist()]

    def columns(self) -> dict[str, float]:
        """The columns that come from training itself (all ranks participate)."""
        metrics = self.metrics.compute() if self.metrics.names and self.metrics.seen else {}
        return {f"train_{name}": value for name, value in metrics.items()}

    def row(self, epoch: int, loss: float, columns: Mapping[str, float], lr: float, fraction: float = 1.0) -> Row:
        """The row of this epoch.

        Args:
            epoch: its number.
            loss: the mean over all ranks.
            columns: `valid_loss`, and all others by name.
            lr: of its last step.
            fraction: of the epoch that is trained.
        """
        others = {name: value for name, value in columns.items() if name != "valid_loss"}
        return Row(epoch, loss, columns.get("valid_loss"), self.seconds, lr, others, fraction)


def mean_loss(total: float, count: float, epoch: int, own_loop: bool) -> float:
    """The mean loss of an epoch.

    Raises:
        RecipeError: there is none.
    """
    if count:
        return total / count
    if own_loop:
        raise RecipeError(
            f"Epoch {epoch} has no loss to show: call session.metrics.add_loss(loss) for each batch of the "
            f"loop, and session.end_epoch() once, after the last one."
        )
    raise RecipeError(
        f"Epoch {epoch} had no samples: the training data came out empty; "
        f"pass a stream that starts again for each epoch (a Dataset, not an exhausted iterator)."
    )


def not_finite(source: Source | None) -> str:
    """Which of the tensors in memory hold NaN or infinite values, in words; nothing where none does."""
    tensors = source.tensors if isinstance(source, Tensors) else ()
    names = (isinstance(source, Tensors) and source.names) or [f"tensor {i}" for i in range(len(tensors))]
    spoilt = [name for name, t in zip(names, tensors, strict=True) if not torch.isfinite(t).all()]
    return " and ".join(spoilt)
