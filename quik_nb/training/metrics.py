"""Sums and counts, divided once: the losses of an epoch, the smoothed live loss, and metrics over all ranks.

Losses stay on the device until they are read, which is a few times a second and at an epoch's end, never once a step.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from quik_nb.errors import RecipeError
from quik_nb.training.data.batch import to_device
from quik_nb.training.pytree import rebuild_like, tree_map
from quik_nb.training.world import World

BETA = 0.98
"""Weight of the past in the smoothed loss, per step."""


class LossMeter:
    """The training losses of an epoch on this rank: sum and count, the smoothed mean, the first step that is no number.

    >>> meter = LossMeter()
    >>> for loss in (1.0, 3.0):
    ...     meter.add(torch.tensor(loss), count=2)
    >>> meter.read()
    >>> meter.sum / meter.count, round(meter.smoothed, 3)
    (2.0, 2.01)
    """

    def __init__(self) -> None:
        self.sum = 0.0
        self.count = 0.0
        self.smoothed = float("nan")
        self.bad: int | None = None
        """number of the first loss that was NaN or infinite, counted from 0"""
        self.bad_in_a_row = 0
        self._average, self._steps = 0.0, 0
        self._losses: list[Tensor] = []
        self._counts: list[int] | list[Tensor] = []

    def add(self, loss: Tensor, count: int | Tensor) -> None:
        """Take a mean loss and what it is a mean over, which is of one kind throughout; nothing is computed yet."""
        self._losses.append(loss.detach())
        self._counts.append(count)  # type: ignore[arg-type]
        if len(self._losses) >= 1000:
            self.read()

    def read(self) -> None:
        """Bring sum, count, smoothed loss and the first bad one up to date; waits for the device.

        One loss after the other, so that the sum does not depend on when it was read.
        """
        if not self._losses:
            return
        losses = torch.stack(self._losses).tolist()
        counts = torch.stack(self._counts).tolist() if isinstance(self._counts[0], Tensor) else self._counts
        for loss, count in zip(losses, counts, strict=True):
            if count > 0:  # a placeholder's loss counts nothing, even as NaN
                self._take(loss, count)
        if self._steps:
            self.smoothed = self._average / (1 - BETA**self._steps)
        self._losses.clear()
        self._counts.clear()

    def _take(self, loss: float, count: float) -> None:
        """Into the sum, and into the moving average, which is divided by its total weight (Adam, algorithm 1)."""
        self.bad_in_a_row = 0 if math.isfinite(loss) else self.bad_in_a_row + 1
        if self.bad is None and self.bad_in_a_row:
            self.bad = self._steps
        self.sum += loss * count
        self.count += count
        self._steps += 1
        self._average = BETA * self._average + (1 - BETA) * loss


def exact(device: torch.device) -> torch.dtype:
    """The dtype of long sums on this device: float64, which Apple's GPUs lack."""
    return torch.float32 if device.type == "mps" else torch.float64


class MetricSet:
    """The metrics of one pass over a split: functions see all outputs at once, torchmetrics are updated per batch."""

    def __init__(self, metrics: Mapping[str, Any], world: World) -> None:
        self.world = world
        self.functions: dict[str, Callable[..., Any]] = {}
        self.states: dict[str, Any] = {}
        for name, metric in metrics.items():
            if hasattr(metric, "update") and hasattr(metric, "compute"):
                self.states[name] = deepcopy(metric).to(world.device)
                self.states[name].reset()
            else:
                self.functions[name] = metric
        self.names = list(metrics)
        self.outputs: list[Any] = []
        self.targets: list[Any] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """Take the outputs and targets of a batch."""
        for name, metric in self.states.items():
            with named(name):
                metric.update(outputs, targets)
        if self.functions:
            self.outputs.append(outputs)
            self.targets.append(targets)

    def compute(self) -> dict[str, float]:
        """The values by name, over all ranks (all ranks participate)."""
        values = {}
        for name, metric in self.states.items():
            with named(name):
                values[name] = float(metric.compute())
        if self.functions:
            outputs, targets = self._whole(self.outputs), self._whole(self.targets)
            for name, function in self.functions.items():
                with named(name):
                    values[name] = float(function(outputs, targets))
        return {name: values[name] for name in self.names}

    def _whole(self, parts: list[Any]) -> Any:
        """The batches of all ranks joined on this rank; order follows the ranks, equally for outputs and targets."""
        own = join(parts) if parts else None
        gathered = [part for part in self.world.gather(to_device(own, torch.device("cpu"))) if part is not None]
        if not gathered:
            raise RecipeError(
                "There are no outputs to judge: have the step return (loss, outputs), not the loss alone."
            )
        return to_device(gathered[0] if len(gathered) == 1 else join(gathered), self.world.device)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Say of an error within which metric it is of."""
    try:
        yield
    except Exception as error:
        error.add_note(f"quik_nb: this was the metric {name!r}, which is to give one number; what was trained is kept.")
        raise


def join(parts: list[Any]) -> Any:
    """Batches one after the other: tensors are concatenated, dicts and tuples element by element.

    >>> join([{"a": torch.zeros(2)}, {"a": torch.ones(1)}])
    {'a': tensor([0., 0., 1.])}
    """
    first = parts[0]
    match first:
        case Tensor():
            return torch.cat([p if p.ndim else p[None] for p in parts])
        case dict():
            return {key: join([part[key] for part in parts]) for key in first}
        case list() if not any(isinstance(value, Tensor | dict | tuple | list) for value in first):
            return [value for part in parts for value in part]  # of plain things, such as words
        case tuple() | list():
            return rebuild_like(first, (join(list(values)) for values in zip(*parts, strict=True)))
    return first


def detached(value: Any) -> Any:
    """Outputs without the graph behind them."""
    return tree_map(lambda inner: inner.detach() if isinstance(inner, Tensor) else inner, value)
