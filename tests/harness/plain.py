"""What the training is held against: small data, a small model, and the loop that one would write by hand."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from quik_nb import QuikSession
from quik_nb.training.rng import epoch_seed

SEED = 42


def numbers(samples: int = 101, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Inputs (samples, 5) and targets (samples, 1), always the same."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 5, dtype=dtype, generator=generator)
    return x, x.sum(1, keepdim=True).tanh() + 0.1 * torch.randn(samples, 1, dtype=dtype, generator=generator)


def classes(samples: int = 101, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Inputs (samples, 5) and unevenly frequent class numbers 0, 1, 2."""
    x, y = numbers(samples, dtype)
    return x, (y[:, 0] > 0.3).long() + (y[:, 0] > 0.9).long()


def network(outputs: int = 1, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model with always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layers = [nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, outputs)]
        return nn.Sequential(*layers).to(dtype)


def quiet(**settings: Any) -> QuikSession:
    """A session that draws nothing and writes nothing."""
    return QuikSession(**{"view": False, "save": False, "batch_size": 16, "seed": SEED, **settings})


def regression(model: nn.Module | None = None, samples: int = 101, **settings: Any) -> QuikSession:
    """A session that could train: `numbers`, `network`, mean squared error, SGD."""
    return (
        quiet(**settings)
        .add_data(train=numbers(samples), valid=numbers(37))
        .add_model(network() if model is None else model)
        .set_criterion(nn.MSELoss)
        .set_optimizer(torch.optim.SGD)
    )


def plain_loop(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    criterion: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    epochs: int,
    after_backward: Callable[[], object] = lambda: None,
    after_step: Callable[[], object] = lambda: None,
    after_epoch: Callable[[float], object] = lambda loss: None,
) -> list[float]:
    """Train by hand, in the order and with the random numbers that the session promises; the mean loss by epoch."""
    x, y = data
    means = []
    with torch.random.fork_rng():
        for epoch in range(epochs):
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch_seed(SEED, epoch)))
            torch.manual_seed(epoch_seed(SEED, epoch))
            total = 0.0
            for rows in order.split(16):
                loss = criterion(model(x[rows]), y[rows])
                loss.backward()
                after_backward()
                optimizer.step()
                optimizer.zero_grad()
                after_step()
                total += loss.item() * len(rows)
            means.append(total / len(x))
            after_epoch(means[-1])
    return means


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's weights."""
    return deepcopy(model.state_dict())


def distance(one: nn.Module | dict[str, Tensor], other: nn.Module | dict[str, Tensor]) -> float:
    """The largest difference between the weights of two models; exactly 0.0 where they are equal bit for bit."""
    a, b = (value.state_dict() if isinstance(value, nn.Module) else value for value in (one, other))
    assert list(a) == list(b)
    return max((a[key] - b[key]).abs().max().item() for key in a)
