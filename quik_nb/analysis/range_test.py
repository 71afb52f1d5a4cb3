"""The learning-rate range test: one training in miniature whose rate grows at every step until the loss blows up.

The test is Leslie Smith's (Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186, section 3.3). The
rate grows by the same factor at each step, and the test stops where the smoothed loss is four times its lowest, as in
fastai's `lr_find`. It walks on the trainer's own pieces, so that whatever can be trained can be tested.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count

import torch
from torch import nn

from quik_nb.errors import DivergenceError
from quik_nb.recipe.recipe import Recipe
from quik_nb.training import rng, train_mode
from quik_nb.training.pytree import to_cpu_copy
from quik_nb.training.trainer import Job, Trainer
from quik_nb.training.world import World

BETA = 0.9
"""Weight of the past in the smoothed loss, per step."""

BLOWN_UP = 4.0
"""How many times its lowest value the smoothed loss may reach."""

Point = tuple[float, float]
"""A learning rate, and the loss of the step that was made with it."""


def range_test(recipe: Recipe, device: torch.device, start: float, end: float, steps: int) -> list[Point]:
    """Train `steps` steps from the model's present weights, with rates from `start` to `end`, in this process.

    Weights, buffers, gradients, modes and random numbers are afterwards as they were; the optimizer is a fresh one.

    Args:
        recipe: what to train; its scheduler and validation split are left aside.
        device: where to.
        start: the first rate, of the first parameter group; other groups keep their ratio to it.
        end: the last rate.
        steps: optimizer steps; they may go over several epochs. The test ends earlier where the loss blows up.
    """
    settings = replace(recipe.settings, ema=None, patience=None, compile=False, checkpoint_minutes=None)
    bare = replace(recipe, settings=settings, scheduler=None, valid=None, metrics={})
    assert bare.model is not None  # Recipe.check has seen to it
    points: list[Point] = []
    with rng.preserved(device), as_before(bare.model):
        trainer = Trainer(Job(bare, steps, "the learning-rate finder"), World(device=device))
        try:
            with suppress(DivergenceError):
                for point in _walk(trainer, start, end, steps):
                    points.append(point)
                    if len(points) == steps or blown_up([loss for _, loss in points]):
                        break
        finally:
            trainer.release()
    return points


def _walk(trainer: Trainer, start: float, end: float, steps: int) -> Iterator[Point]:
    """One point for each optimizer step."""
    rates = (start * (end / start) ** (i / max(1, steps - 1)) for i in count())
    meter = trainer.meter
    for _ in trainer.iter_epochs():
        rate, fresh = 0.0, True
        for data in trainer.loader("train"):
            if fresh:
                rate, total, samples = next(rates), meter.sum, meter.count
                trainer.updater.set_lr(rate)
            trainer.train_step(data)
            trainer.outbox.clear()
            assert trainer.batch is not None  # the loader has just set it
            fresh = trainer.batch.last
            if fresh:
                meter.read()
                yield rate, (meter.sum - total) / (meter.count - samples)
        trainer.next_epoch()


@contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    """Whatever is trained inside, weights, buffers, modes and the device of a model are afterwards as they were."""
    home = next(model.parameters()).device
    state = to_cpu_copy(model.state_dict())
    loose = {name: to_cpu_copy(b) for name, b in model.named_buffers() if name not in state}  # those that are not saved
    try:
        with train_mode.kept(model):
            yield
    finally:
        model.zero_grad()
        model.to(home).load_state_dict(state)
        for name, value in model.named_buffers():
            if name in loose:
                value.copy_(loose[name])


def smoothed(losses: list[float]) -> list[float]:
    """The moving average of the losses, divided by its total weight, so that it has no bias towards zero.

    >>> smoothed([2.0, 2.0, 2.0])
    [2.0, 2.0, 2.0]
    """
    average, result = 0.0, []
    for step, loss in enumerate(losses, start=1):
        average = BETA * average + (1 - BETA) * loss
        result.append(average / (1 - BETA**step))
    return result


def blown_up(losses: list[float]) -> bool:
    """Whether the loss is no longer a number, or the smoothed one has left its lowest value far below."""
    values = smoothed(losses)
    return not values[-1] < BLOWN_UP * max(min(values), 1e-12)
