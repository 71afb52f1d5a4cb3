"""1, 2, 3 and 4 workers report the same losses and end with the same weights, up to rounding."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from harness.plain import classes, distance, network, numbers, quiet, regression
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler

from quik_nb import QuikSession

ROUNDING = 1e-9
LENGTHS = [101, 1000, 1797]


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """The numbers as a dataset that is read one by one."""

    def __init__(self, samples: int) -> None:
        self.x, self.y = numbers(samples)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class Flow(IterableDataset[tuple[Tensor, Tensor]]):
    """The numbers as a stream that does not know its length."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(*numbers(self.samples), strict=True)


class FromDict(nn.Module):
    """A model that takes a batch by name, as Hugging Face models do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.inner(inputs)
        return nn.functional.mse_loss(outputs, labels), outputs


def error(outputs: Tensor, targets: Tensor) -> Tensor:
    """A metric: the mean absolute error."""
    return (outputs - targets).abs().mean()


def plain(samples: int, **settings: Any) -> QuikSession:
    """Tensors and SGD; some ten steps an epoch, the last one short."""
    return regression(
        samples=samples, **{"epochs": 2, "lr": 0.1, "batch_size": 16 if samples < 1000 else 128, **settings}
    )


def adam(samples: int, **settings: Any) -> QuikSession:
    """An optimizer with state."""
    return plain(samples, lr=0.01, **settings).set_optimizer(optim.Adam)


def one_cycle(samples: int) -> QuikSession:
    """A schedule by batch, which sets the momentum too."""
    session = plain(samples).set_optimizer(optim.SGD, momentum=0.9)
    return session.set_scheduler(lr_scheduler.OneCycleLR, max_lr=0.1)


def plateau(samples: int) -> QuikSession:
    """A schedule by epoch, which looks at the loss."""
    return adam(samples).set_scheduler(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.5)


def clipped(samples: int) -> QuikSession:
    """Gradients cut by their norm."""
    return adam(samples, clip_norm=0.1)


def clipped_values(samples: int) -> QuikSession:
    """Gradients cut one by one."""
    return adam(samples, clip_value=0.01)


def accumulated(samples: int) -> QuikSession:
    """Three micro-batches a step."""
    return adam(samples, accumulate=3)


def measured(samples: int) -> QuikSession:
    """A metric on both splits."""
    return adam(samples).set_metrics(train=True, error=error)


def everything(samples: int) -> QuikSession:
    """Schedule, clipping, accumulation and metrics together."""
    session = adam(samples, accumulate=3, clip_norm=0.1).set_metrics(train=True, error=error)
    return session.set_scheduler(lr_scheduler.OneCycleLR, max_lr=0.1)


def dataset(samples: int) -> QuikSession:
    """A dataset that is not in memory."""
    return adam(samples).add_data(train=Rows(samples), valid=Rows(37))


def loader(samples: int) -> QuikSession:
    """A loader with a batch size of its own."""
    return adam(samples).add_data(train=DataLoader(Rows(samples), batch_size=25, shuffle=True), valid=Rows(37))


def sampled(samples: int) -> QuikSession:
    """A loader whose sampler draws."""
    sampler = WeightedRandomSampler(torch.linspace(0, 1, samples).tolist(), samples)
    return adam(samples).add_data(train=DataLoader(Rows(samples), batch_size=16, sampler=sampler), valid=numbers(37))


def stream(samples: int) -> QuikSession:
    """A stream."""
    return adam(samples).add_data(train=Flow(samples), valid=Flow(37))


def named(samples: int) -> QuikSession:
    """Tensors by name."""
    train, valid = (dict(zip(("inputs", "labels"), numbers(n), strict=True)) for n in (samples, 37))
    session = quiet(epochs=2).add_data(train=train, valid=valid).add_model(FromDict()).set_optimizer(optim.Adam)
    return session.set_step(lambda model, criterion, batch: model(**batch))


def weighted(samples: int) -> QuikSession:
    """Classes that count differently, and one label that does not count at all."""
    x, y = classes(samples)
    y[::7] = -100
    session = quiet(epochs=2, accumulate=2).add_data(train=(x, y), valid=classes(37)).add_model(network(outputs=3))
    weights = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    return session.set_criterion(nn.CrossEntropyLoss, weight=weights).set_optimizer(optim.Adam)


CASES = [
    adam,
    one_cycle,
    plateau,
    clipped,
    clipped_values,
    accumulated,
    measured,
    dataset,
    loader,
    sampled,
    stream,
    named,
    weighted,
]


@cache
def trained(make: Callable[[int], QuikSession], samples: int, processes: int) -> QuikSession:
    """A session after its training."""
    session = make(samples)
    session.train(processes=processes)
    return session


def numbers_of(session: QuikSession) -> list[float]:
    """The history without its times, row by row."""
    return list(session.history.drop(columns="time").to_numpy(dtype=float).ravel())


def assert_equal(expected: QuikSession, actual: QuikSession) -> None:
    """Both have the same history and the same weights."""
    assert len(expected.history) == len(actual.history)
    assert numbers_of(expected) == pytest.approx(numbers_of(actual), abs=ROUNDING, rel=0)
    assert distance(expected.model, actual.model) <= ROUNDING


@pytest.mark.parametrize("samples", LENGTHS)
@pytest.mark.parametrize("make", [plain, everything])
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_ranks_agree(make: Callable[[int], QuikSession], samples: int, processes: int) -> None:
    """Whatever the length of the data, workers give the history and the weights of one process."""
    assert_equal(trained(make, samples, 1), trained(make, samples, processes))


@pytest.mark.parametrize("make", CASES)
def test_ranks_agree_on_all_that_a_session_has(make: Callable[[int], QuikSession]) -> None:
    """Schedules, clipping, accumulation, metrics and every kind of data give the same with three workers."""
    assert_equal(trained(make, 101, 1), trained(make, 101, 3))


@pytest.mark.slow
@pytest.mark.parametrize("samples", LENGTHS)
@pytest.mark.parametrize("make", CASES)
def test_ranks_agree_in_every_case(make: Callable[[int], QuikSession], samples: int) -> None:
    """All of these with all numbers of workers and all lengths."""
    for processes in (2, 3, 4):
        assert_equal(trained(make, samples, 1), trained(make, samples, processes))


def test_a_rank_without_a_sample_takes_part() -> None:
    """Batches of two samples on four workers leave two of them idle, and change nothing."""
    alone, four = (regression(samples=11, batch_size=2, epochs=2) for _ in range(2))
    alone.train()
    four.train(processes=4)

    assert_equal(alone, four)


def test_uneven_streams_do_not_hang() -> None:
    """A stream that gives less on one rank than on the others ends the epoch for all."""
    session = adam(101, timeout=20).add_data(train=Uneven(), valid=numbers(37))
    session.train(processes=2)

    assert [0, 1] == list(session.history.epoch)


class Uneven(IterableDataset[tuple[Tensor, Tensor]]):
    """A stream that breaks off early on rank 1."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rows = zip(*numbers(101), strict=True)
        yield from rows if torch.distributed.get_rank() == 0 else list(rows)[:60]
