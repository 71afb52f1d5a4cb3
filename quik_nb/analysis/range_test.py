"""The learning-rate range test: a short training whose learning rate grows at every step until the loss diverges.

The test is Leslie Smith's (Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186, section 3.3). The
rate grows by the same factor at each step, and the test stops when the smoothed loss is four times its minimum, as in
fastai's `lr_find`. It is a custom loop on `Loop`, so that everything that can be trained can be tested.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count

import torch
from torch import nn

from quik_nb.analysis.lr_finder import Point, smoothed
from quik_nb.errors import DivergenceError
from quik_nb.events import Event
from quik_nb.recipe.recipe import Recipe
from quik_nb.training.job import Job
from quik_nb.training.loop import Loop
from quik_nb.training.progress import unsaved_buffers
from quik_nb.training.pytree import to_cpu_copy
from quik_nb.training.rank import loop_of
from quik_nb.training.world import World

MAX_RISE = 4.0
"""The smoothed loss may be at most this many times its minimum."""


def range_test(recipe: Recipe, device: torch.device, start: float, end: float, steps: int) -> list[Point]:
    """Train from the current weights with growing learning rates, with a fresh optimizer, in this process.

    Weights, buffers, gradients, modes and random number generators are restored afterwards.

    Args:
        recipe: what to train; its scheduler and validation split are ignored.
        device: to train on.
        start: the first learning rate, of the first parameter group; the others are scaled by the same factor.
        end: the last learning rate.
        steps: optimizer steps, over several epochs if needed; fewer if the loss diverges.

    Returns:
        (learning rate, loss of the step) in the order of the steps.
    """
    settings = replace(recipe.settings, ema=None, patience=None, compile=False, checkpoint_minutes=None)
    plain = replace(recipe, settings=settings, schedulers={}, valid=None, metrics={})
    rates = (start * (end / start) ** (i / max(1, steps - 1)) for i in count())
    points: list[Point] = []

    def train(loop: Loop) -> None:
        rate, at_boundary = start, True
        for _ in loop.iter_epochs():
            for batch in loop.batches("train"):
                if at_boundary:
                    rate = next(rates)
                    loop.set_lr(rate)

                loop.train_step(batch)
                at_boundary = batch.last
                if at_boundary:
                    points.append((rate, loop.step_loss()))
                    if len(points) == steps or has_diverged([loss for _, loss in points]):
                        return
            loop.next_epoch()

    job = Job(plain, steps, "the learning-rate finder")
    with restore_model(job.model), suppress(DivergenceError), loop_of(job, World(device=device), ignore_event) as loop:
        train(loop)
    return points


def ignore_event(event: Event) -> None:
    """The test has no views, so its events are ignored."""


@contextmanager
def restore_model(model: nn.Module) -> Iterator[None]:
    """Restore weights, buffers and device of a model afterwards, and drop its gradients."""
    device = next(model.parameters()).device
    state = to_cpu_copy(model.state_dict())
    buffers = to_cpu_copy(unsaved_buffers(model))
    try:
        yield
    finally:
        model.zero_grad()
        model.to(device).load_state_dict(state)
        for name, value in model.named_buffers():
            if name in buffers:
                value.copy_(buffers[name])


def has_diverged(losses: list[float]) -> bool:
    """Whether the loss is NaN, or the smoothed loss is more than `MAX_RISE` times its minimum."""
    values = smoothed(losses)
    return not values[-1] < MAX_RISE * max(min(values), 1e-12)
