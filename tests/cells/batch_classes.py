"""Batches and errors of classes that a notebook defines."""

from dataclasses import dataclass
from typing import NamedTuple

from torch.utils.data import DataLoader, Dataset


class Named(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclass
class Data:
    x: torch.Tensor
    y: torch.Tensor


class Broken(Exception):
    pass


class Picky(Exception):
    def __init__(self, row, *, why):
        super().__init__(f"row {row}: {why}")


class Rows(Dataset):
    def __init__(self, error=None):
        self.error = error

    def __len__(self):
        return 100

    def __getitem__(self, i):
        if i == 17 and self.error is not None:
            raise self.error()
        return x[i], y[i]


def local():
    class Local(NamedTuple):
        x: torch.Tensor
        y: torch.Tensor

    return Local


kinds = {"named": Named, "data": Data, "local": local()}


def trained(processes, kind=None, error=None, background=False):
    def collate(rows):
        a, b = map(torch.stack, zip(*rows))
        return (a, b) if kind is None else kinds[kind](a, b)

    def step(model, criterion, batch):
        if kind is not None and type(batch) is not kinds[kind]:
            raise TypeError(f"{type(batch)} is another class")
        a, b = batch if kind is None else (batch.x, batch.y)
        return criterion(model(a), b)

    loader = DataLoader(Rows(error), batch_size=20, num_workers=2, collate_fn=collate)
    s = session(Net(), epochs=1, timeout=30).add_data(train=loader).set_step(step)
    return s.train(processes=processes, background=background).wait().state
