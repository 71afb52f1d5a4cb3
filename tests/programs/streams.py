"""Programs that read their samples as they come."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from programs.program import BATCH, SAMPLES, Columns, Means, Program, drawn, made, session_of, update
from quik_nb import QuikSession

VALID = 20


def tables(seed: int, samples: int) -> tuple[Tensor, Tensor]:
    """Inputs (samples, 4) and targets (samples, 1)."""
    x = drawn(seed, samples, 4)
    return x, x.sum(1, keepdim=True).sin()


class Lines(IterableDataset[tuple[Tensor, Tensor]]):
    """Samples one after the other, of a length that nobody knows; another order in each epoch."""

    def __init__(self, seed: int, samples: int) -> None:
        self.x, self.y = tables(seed, samples)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start = 7 * self.epoch
        yield from zip(self.x.roll(start, 0), self.y.roll(start, 0), strict=True)


class Shards(Lines):
    """Each rank, and each loading process of it, reads lines of its own, as webdataset does."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if (worker := get_worker_info()) is not None:
            rank, size = rank * worker.num_workers + worker.id, size * worker.num_workers
        yield from list(super().__iter__())[rank::size]


def network() -> nn.Module:
    return made(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)))  # type: ignore[no-any-return]


def stream(dataset: type[Lines], valid: type[Lines], **settings: Any) -> QuikSession:
    session = session_of(network(), **settings).set_criterion(nn.MSELoss).set_optimizer(optim.SGD, momentum=0.9)
    return session.add_data(train=dataset(1, SAMPLES), valid=valid(2, VALID))


def joined(**settings: Any) -> QuikSession:
    """The stream's own loader says how large its batches are; `accumulate` joins them."""
    session = session_of(network(), **settings).set_criterion(nn.MSELoss).set_optimizer(optim.SGD, momentum=0.9)
    loader = DataLoader(Lines(1, SAMPLES), batch_size=BATCH // settings.get("accumulate", 1))
    return session.add_data(train=loader, valid=DataLoader(Lines(2, VALID), batch_size=6))


def stream_by_hand() -> Columns:
    model, criterion, means = network(), nn.MSELoss(), Means()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train, valid = Lines(1, SAMPLES), tables(2, VALID)
    for epoch in range(2):
        train.set_epoch(epoch)
        for x, y in DataLoader(train, BATCH):
            loss = criterion(model(x), y)
            update(optimizer, loss)
            means.add(len(x), train_loss=loss)
        with torch.no_grad():
            means.add(1, valid_loss=criterion(model(valid[0]), valid[1]))
        means.end_epoch()
    return means.columns


PROGRAMS = {
    "stream": Program(lambda **settings: stream(Lines, Lines, **settings), stream_by_hand, script=False),
    "stream of a loader": Program(joined, stream_by_hand, script=False),
    "stream in shards": Program(
        lambda **settings: stream(Shards, Shards, **settings),
        stream_by_hand,
        script=False,
        told={"two ranks": ("own share",)},
    ),
}
