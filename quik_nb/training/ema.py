"""Averaged weights: an exponential moving average (EMA) of a model, stored in a copy of it.

What is not here: when it is updated (`updater.py`), and where it is saved (`loop.py`).
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from quik_nb.training.pytree import tree_map


class AveragedWeights:
    """A copy of a model with averaged weights: `average = decay * average + (1 - decay) * weights` at each step.

    Floating-point parameters and buffers are averaged; integer buffers, such as BatchNorm's `num_batches_tracked`, are
    copied.

    Args:
        model: to average; the first update copies its weights.
        decay: weight of the previous average, between 0 and 1.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> average = AveragedWeights(model, decay=0.5)
    >>> for value in (0.0, 1.0):
    ...     _ = nn.init.constant_(model.weight, value)
    ...     average.update(model)
    >>> average.module.weight.item(), average.count
    (0.5, 2)
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy_module(model)
        self.module.requires_grad_(False)
        self.count = 0
        """number of updates so far"""
        self._average: Any = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the current weights."""
        averages, weights = list(_tensors(self.module)), list(_tensors(model))
        pairs = list(zip(averages, weights, strict=True))
        floating = [(average, weight) for average, weight in pairs if average.is_floating_point()]

        if self.count == 0:
            for average, weight in floating:
                average.copy_(weight)
        elif floating:
            self._average([average for average, _ in floating], [weight for _, weight in floating], self.count)

        for average, weight in pairs:
            if not average.is_floating_point():
                average.copy_(weight)
        self.count += 1


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from (parameter.detach() for parameter in model.parameters())
    yield from model.buffers()


def copy_module(model: nn.Module) -> nn.Module:
    """A deep copy of a module, even if it has attributes that are non-leaf tensors.

    torch cannot deepcopy such tensors: an activation stored on the module by a forward pass, or a weight that
    weight_norm or prune computes in each forward pass. Their values are copied without the graph.
    """
    memo: dict[int, Any] = {}

    def add_detached(value: Any) -> None:
        if isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()

    for module in model.modules():
        tree_map(add_detached, {name: value for name, value in vars(module).items() if not name.startswith("_")})
    return deepcopy(model, memo)
