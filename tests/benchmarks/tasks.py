"""Three small tasks, the same for every contestant: tensors that are in memory, with a seeded split and seeded weights.

- digits: real pictures, a tiny model, steps so short that the loop around them shows;
- tabular: many rows, where fetching samples one by one shows;
- recsys: large batches of pairs, where little but moving data is left.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NAMES = ("digits", "tabular", "recsys")


@dataclass(frozen=True)
class Task:
    """Data, model, criterion and sizes; optimizer is Adam."""

    name: str
    x: Tensor
    y: Tensor
    valid_x: Tensor
    valid_y: Tensor
    make: Callable[[], nn.Module]
    criterion: type[nn.Module]
    batch_size: int
    epochs: int
    lr: float

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * -(-len(self.x) // self.batch_size)

    def model(self) -> nn.Module:
        """The model with the same weights for everyone."""
        torch.manual_seed(0)
        return self.make()


class Pairs(nn.Module):
    """The dot product of a user's and an item's embedding."""

    def __init__(self, users: int = 20_000, items: int = 5_000, dims: int = 16) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, dims), nn.Embedding(items, dims)
        nn.init.normal_(self.users.weight, std=0.1)
        nn.init.normal_(self.items.weight, std=0.1)

    def forward(self, pairs: Tensor) -> Tensor:  # (batch, 2) -> (batch,)
        return (self.users(pairs[:, 0]) * self.items(pairs[:, 1])).sum(1)


def load(name: str, epochs: int | None = None, rows: int | None = None) -> Task:
    """The task of this name.

    Args:
        name: one of `NAMES`.
        epochs: instead of the task's own.
        rows: only so many, to try a script out.
    """
    x, y, make, criterion, batch_size, its_epochs, lr = {"digits": digits, "tabular": tabular, "recsys": recsys}[name]()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:rows]
    cut = int(0.8 * len(order))
    train, valid = order[:cut], order[cut:]
    return Task(name, x[train], y[train], x[valid], y[valid], make, criterion, batch_size, epochs or its_epochs, lr)


Parts = tuple[Tensor, Tensor, Callable[[], nn.Module], type[nn.Module], int, int, float]


def digits() -> Parts:
    """1,797 pictures of 8 x 8 pixels, batches of 32, 20 epochs."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    return x, y, lambda: mlp(64, 64, 10), nn.CrossEntropyLoss, 32, 20, 1e-3


def tabular() -> Parts:
    """200,000 rows of 32 numbers, batches of 512, 2 epochs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, 32, generator=generator)
    weights = torch.randn(32, 8, generator=generator)
    y = torch.tanh(x @ weights).sum(1) + 0.1 * torch.randn(200_000, generator=generator)
    return x, y, lambda: nn.Sequential(mlp(32, 64, 1), nn.Flatten(0)), nn.MSELoss, 512, 2, 1e-3


def recsys() -> Parts:
    """500,000 pairs of user and item, batches of 8,192, 1 epoch."""
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(0, 20_000, (500_000,), generator=generator)
    items = torch.randint(0, 5_000, (500_000,), generator=generator)
    y = ((users * 7 + items * 13) % 5 < 2).float()
    return torch.stack([users, items], 1), y, Pairs, nn.BCEWithLogitsLoss, 8192, 1, 1e-2


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Module:
    """Two linear layers."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
