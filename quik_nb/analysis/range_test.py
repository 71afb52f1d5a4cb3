"""The learning-rate range test: one training in miniature whose rate grows at every step until the loss blows up.

The test is Leslie Smith's (Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186, section 3.3). The
rate grows by the same factor at each step, and the test stops where the smoothed loss is four times its lowest, as in
fastai's `lr_find`. It walks on the pieces of the training loop, so that whatever can be trained can be tested.
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

BLOWN_UP = 4.0
"""How many times its lowest value the smoothed loss may reach."""


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
    bare = replace(recipe, settings=settings, schedulers={}, valid=None, metrics={})
    rates = (start * (end / start) ** (i / max(1, steps - 1)) for i in count())
    points: list[Point] = []

    def walk(loop: Loop) -> None:
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
                    if len(points) == steps or blown_up([loss for _, loss in points]):
                        return
            loop.next_epoch()

    job = Job(bare, steps, "the learning-rate finder")
    with as_before(job.model), suppress(DivergenceError), loop_of(job, World(device=device), nobody_listens) as loop:
        walk(loop)
    return points


def nobody_listens(event: Event) -> None:
    """Events of the test are shown nowhere."""


@contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    """Whatever is trained inside, weights, buffers, modes and the device of a model are afterwards as they were."""
    home = next(model.parameters()).device
    state = to_cpu_copy(model.state_dict())
    loose = to_cpu_copy(unsaved_buffers(model))
    try:
        yield
    finally:
        model.zero_grad()
        model.to(home).load_state_dict(state)
        for name, value in model.named_buffers():
            if name in loose:
                value.copy_(loose[name])


def blown_up(losses: list[float]) -> bool:
    """Whether the loss is no longer a number, or the smoothed one has left its lowest value far below."""
    values = smoothed(losses)
    return not values[-1] < BLOWN_UP * max(min(values), 1e-12)
