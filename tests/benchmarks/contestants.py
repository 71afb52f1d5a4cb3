"""Who runs: the loop that a careful person writes by hand, and quik_nb.

Each takes a task and gives two functions: one that trains, which is what is timed, and one that tells the losses of the
last epoch (train, valid), to see that the same work was done.
"""

from collections.abc import Callable
from typing import Any

import torch
from tasks import Task

from quik_nb import QuikSession

Losses = tuple[float, float]
Contestant = tuple[Callable[[], object], Callable[[], Losses]]


def floor(task: Task, seed: int = 0) -> Contestant:
    """Slices of a permutation, no DataLoader, no `.item()` within an epoch: plain PyTorch at its leanest."""
    model, criterion = task.model(), task.criterion()
    optimizer = torch.optim.Adam(model.parameters(), lr=task.lr)
    size, rows = task.batch_size, len(task.x)
    losses: list[Losses] = []
    torch.manual_seed(seed)

    def train_epoch() -> float:
        model.train()
        total, order = torch.zeros(()), torch.randperm(rows)
        for i in range(0, rows, size):
            index = order[i : i + size]
            loss = criterion(model(task.x[index]), task.y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(index)
        return total.item() / rows

    @torch.no_grad()
    def validate() -> float:
        model.eval()
        total = torch.zeros(())
        for i in range(0, len(task.valid_x), size):
            x, y = task.valid_x[i : i + size], task.valid_y[i : i + size]
            total += criterion(model(x), y) * len(x)
        return total.item() / len(task.valid_x)

    def fit() -> None:
        losses.extend((train_epoch(), validate()) for _ in range(task.epochs))

    return fit, lambda: losses[-1]


def ours(task: Task, seed: int = 0, view: Any = False, save: bool = False, folder: str = ".") -> Contestant:
    """A session with the same parts; all of the call of `train()` is timed, checks and set-up included."""
    session = (
        QuikSession(
            epochs=task.epochs, batch_size=task.batch_size, lr=task.lr, seed=seed, view=view, save=save, base_dir=folder
        )
        .add_data(train=(task.x, task.y), valid=(task.valid_x, task.valid_y))
        .add_model(task.model())
        .set_criterion(task.criterion)
        .set_optimizer(torch.optim.Adam)
    )

    def losses() -> Losses:
        last = session.history.iloc[-1]
        return float(last.train_loss), float(last.valid_loss)

    return session.train, losses
