"""Sums and counts, divided once: the losses of an epoch, the smoothed live loss, and metrics over all ranks.

Losses stay on the device until they are read, which is a few times a second and at an epoch's end, never once a step.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from quik_nb.recipe.recipe import Recipe
from quik_nb.training.named_metrics import NamedMetric
from quik_nb.training.outputs import Pieces, settled
from quik_nb.training.world import World

BETA = 0.98
"""Weight of the past in the smoothed loss, per step."""


class LossMeter:
    """The training losses of an epoch on this rank: sum and count, the smoothed mean, the first step that is no number.

    Args:
        total: of the losses of the epoch so far, each times what it is a mean over.
        count: what those are means over together.

    >>> meter = LossMeter()
    >>> for loss in (1.0, 3.0):
    ...     meter.add(torch.tensor(loss), count=2)
    >>> meter.read()
    >>> meter.total / meter.count, round(meter.smoothed, 3), meter.take_steps()
    (2.0, 2.01, (1.0, 3.0))
    """

    def __init__(self, total: float = 0.0, count: float = 0.0) -> None:
        self.total = total
        self.count = count
        self.smoothed = float("nan")
        self.bad: int | None = None
        """number of the first step whose loss was NaN or infinite, counted from 0"""
        self.bad_in_a_row = 0
        self.last_step = float("nan")
        """loss of the latest step that was read"""
        self._average = 0.0
        self._losses = 0
        self._new: list[tuple[Tensor, float | Tensor, bool]] = []
        """(loss, count, whether the step ends with it), not yet read, as that waits for the device"""
        self._step = (0.0, 0.0)
        """sum and count of the step under way"""
        self._steps: list[float] = []
        """losses of the steps since they were last taken"""
        self._steps_done = 0

    def add(self, loss: Tensor, count: float | Tensor, last: bool = True) -> None:
        """Take the mean loss of a micro-batch; nothing is computed yet.

        Args:
            loss: one number.
            count: what it is a mean over; of one kind, number or tensor, throughout.
            last: whether the optimizer steps after it.
        """
        self._new.append((loss.detach(), count, last))
        if len(self._new) >= 1000:
            self.read()

    def read(self) -> None:
        """Bring sum, count, smoothed loss and the first bad one up to date; waits for the device.

        One loss after the other, so that the sum does not depend on when it was read.
        """
        if not self._new:
            return
        losses, counts, ends = zip(*self._new, strict=True)
        self._new = []

        numbers = torch.stack(losses).tolist()
        amounts = torch.stack(counts).tolist() if isinstance(counts[0], Tensor) else counts
        for loss, count, last in zip(numbers, amounts, ends, strict=True):
            self._read_one(loss, count, last)
        if self._losses:
            self.smoothed = self._average / (1 - BETA**self._losses)

    def _read_one(self, loss: float, count: float, last: bool) -> None:
        """Into the sums, and into the moving average, which is divided by its total weight (Adam, algorithm 1)."""
        if count > 0:  # a placeholder's loss counts nothing, even as NaN
            self.bad_in_a_row = 0 if math.isfinite(loss) else self.bad_in_a_row + 1
            if self.bad is None and self.bad_in_a_row:
                self.bad = self._steps_done
            self.total += loss * count
            self.count += count
            self._losses += 1
            self._average = BETA * self._average + (1 - BETA) * loss
            self._step = (self._step[0] + loss * count, self._step[1] + count)
        if last:
            total, amount = self._step
            self.last_step = total / amount if amount else math.nan
            self._steps.append(self.last_step)
            self._step = (0.0, 0.0)
            self._steps_done += 1

    def leave_step(self) -> None:
        """Take out what was added of a step that is not done."""
        self.read()
        self.total -= self._step[0]
        self.count -= self._step[1]
        self._step = (0.0, 0.0)

    def take_steps(self) -> tuple[float, ...]:
        """The losses of the steps that were read since they were last taken."""
        steps, self._steps = tuple(self._steps), []
        return steps


class ValueMeans:
    """Means over samples of further numbers that a step gives, by name.

    >>> means = ValueMeans()
    >>> means.add({"kl": torch.tensor(1.0)}, samples=1)
    >>> means.add({"kl": 4.0}, samples=2)
    >>> means.compute(World())
    {'kl': 3.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Any], samples: int) -> None:
        """Take numbers of a batch, each a mean over its samples."""
        for name, value in values.items():
            number = value.detach().double() if isinstance(value, Tensor) else float(value)
            self._sums[name] = self._sums.get(name, 0.0) + number * samples if samples else self._sums.get(name, 0.0)
            self._counts[name] = self._counts.get(name, 0) + samples

    def compute(self, world: World) -> dict[str, float]:
        """The means over all ranks (all ranks participate)."""
        own = {name: (float(self._sums[name]), self._counts[name]) for name in self._sums}
        ranks = world.gather(own)
        names = dict.fromkeys(name for rank in ranks for name in rank)
        parts = {name: [rank[name] for rank in ranks if name in rank] for name in names}
        totals = {name: (sum(total for total, _ in each), sum(n for _, n in each)) for name, each in parts.items()}
        return {name: total / count for name, (total, count) in totals.items() if count}


class MetricSet:
    """The metrics of one pass over a split.

    Functions see all outputs at once; torchmetrics are updated batch by batch, and so are metrics by name.

    Args:
        recipe: with the criterion, by which metrics by name know what they count.
        metrics: by the name of their column.
        world: this rank among the others.
    """

    def __init__(self, recipe: Recipe, metrics: Mapping[str, Any], world: World) -> None:
        self.functions: dict[str, Callable[..., Any]] = {}
        self.states: dict[str, Any] = {}
        criterion = recipe.make_criterion() if any(isinstance(metric, str) for metric in metrics.values()) else None
        for name, metric in metrics.items():
            if isinstance(metric, str):
                self.states[name] = NamedMetric(metric, criterion, world)
            elif hasattr(metric, "update") and hasattr(metric, "compute"):
                self.states[name] = deepcopy(metric).to(world.device)
                self.states[name].reset()
            else:
                self.functions[name] = metric
        self.names = list(metrics)
        self.columns: tuple[str, ...] = ()
        """of the values that were computed last"""
        self.pieces = Pieces(world, recipe.ignored_label)
        self.seen = False
        """whether there was a batch to measure"""

    def update(self, outputs: Any, targets: Any, samples: int) -> None:
        """Take the outputs and targets of a batch."""
        self.seen = True
        outputs, targets = settled(outputs), settled(targets)
        for name, metric in self.states.items():
            with note_metric_name(name):
                metric.update(outputs, targets_for(metric, outputs, targets))
        if self.functions:
            self.pieces.add(outputs, targets, samples)

    def compute(self) -> dict[str, float]:
        """The values by the name of their column, over all ranks (all ranks participate)."""
        values: dict[str, Any] = {}
        for name, metric in self.states.items():
            with note_metric_name(name):
                values[name] = columns_of(name, metric.compute())
        if self.functions:
            outputs, targets = self.pieces.whole()
            for name, function in self.functions.items():
                with note_metric_name(name):
                    values[name] = columns_of(name, function(outputs, targets))
        found = {column: value for name in self.names for column, value in values[name].items()}
        self.columns = tuple(found)
        return found


def columns_of(name: str, value: Any) -> dict[str, float]:
    """What a metric gave, as one column or as several: NAME_key of a mapping, NAME_0 and so on of several numbers.

    >>> columns_of("f1", {"cat": 0.5, "dog": torch.tensor([0.1])}), columns_of("size", torch.tensor([1.0, 2.0]))
    ({'f1_cat': 0.5, 'f1_dog': 0.10000000149011612}, {'size_0': 1.0, 'size_1': 2.0})
    """
    if isinstance(value, Mapping):
        several = [columns_of(f"{name}_{key}", inner) for key, inner in value.items()]
    elif isinstance(value, Tensor) and value.numel() > 1:
        several = [{f"{name}_{i}": number} for i, number in enumerate(value.flatten().tolist())]
    elif isinstance(value, tuple | list):
        several = [columns_of(f"{name}_{i}", inner) for i, inner in enumerate(value)]
    else:
        return {name: float(value)}
    return {column: number for each in several for column, number in each.items()}


def targets_for(metric: Any, outputs: Any, targets: Any) -> Any:
    """Targets in the form that a metric takes: those of classification want whole numbers, BCE losses want floats."""
    members = [metric, *(metric.values() if isinstance(metric, nn.ModuleDict) else ())]
    classifies = all("classification" in type(member).__module__ for member in members[-1:])
    if not classifies or not isinstance(targets, Tensor) or not targets.is_floating_point():
        return targets
    are_answers = isinstance(outputs, Tensor) and outputs.shape == targets.shape
    return targets.long() if are_answers and ((targets == 0) | (targets == 1)).all() else targets


@contextmanager
def note_metric_name(name: str) -> Iterator[None]:
    """Say of an error within which metric it is of."""
    try:
        yield
    except Exception as error:
        error.add_note(f"quik_nb: this was the metric {name!r}; what was trained is kept.")
        raise
