"""The learning-rate finder looks, and leaves everything as it was."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from harness.plain import classes, network, numbers, quiet, regression
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from quik_nb import QuikSession, RecipeError
from quik_nb.training import rng


def same(one: Any, other: Any) -> bool:
    """Whether two nested states are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def normed() -> nn.Module:
    """A model with batch statistics, a buffer that is not saved, and dropout."""
    model = network(dropout=0.2)
    model.insert(1, nn.BatchNorm1d(8).double())
    model.register_buffer("loose", torch.zeros(1), persistent=False)
    model.register_forward_pre_hook(lambda module, args: module.loose.add_(1) and None)
    return model


def test_everything_is_as_it_was() -> None:
    """Weights, buffers, modes, history and random numbers are those of before, and training goes on as if unasked."""
    asked, unasked = regression(normed(), epochs=2), regression(normed(), epochs=2)
    for session in (asked, unasked):
        session.set_optimizer(optim.AdamW).train(epochs=1)
    asked.model.eval()
    states = rng.capture()
    before = {name: value.clone() for name, value in [*asked.model.named_parameters(), *asked.model.named_buffers()]}
    asked.lr_find(steps=30)
    after = dict([*asked.model.named_parameters(), *asked.model.named_buffers()])

    assert same(before, after)
    assert not any(module.training for module in asked.model.modules())
    assert all(parameter.grad is None for parameter in asked.model.parameters())
    assert same(states, rng.capture())
    for session in (asked, unasked):
        session.train(epochs=1)
    assert list(unasked.history.train_loss) == list(asked.history.train_loss)
    assert same(dict(unasked.model.state_dict()), dict(asked.model.state_dict()))


def test_rates_and_losses_are_those_of_a_loop_by_hand() -> None:
    """The rate grows by one factor from step to step, and each loss is that of its batch before its step."""
    found = regression().lr_find(start=1e-4, end=1e-1, steps=10)
    model, (x, y) = network(), numbers()
    expected, rates = [], [1e-4 * 1000 ** (i / 9) for i in range(10)]
    for epoch, count in ((0, 7), (1, 3)):
        order = torch.randperm(101, generator=torch.Generator().manual_seed(rng.epoch_seed(42, epoch)))
        for rows in order.split(16)[:count]:
            loss = nn.functional.mse_loss(model(x[rows]), y[rows])
            model.zero_grad()
            loss.backward()
            expected.append(loss.item())
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= rates[len(expected) - 1] * parameter.grad

    assert rates == pytest.approx(list(found.frame.lr))
    assert expected == pytest.approx(list(found.frame.loss), abs=1e-12)


def test_it_stops_when_the_loss_blows_up() -> None:
    """With rates up to a million the test ends early, and the model still has its weights."""
    session = regression()
    found = session.lr_find(start=1e-3, end=1e6, steps=200)

    assert len(found.points) < 150
    assert same(dict(network().state_dict()), dict(session.model.state_dict()))


def test_the_suggestion_teaches() -> None:
    """The suggestion lies where the loss falls, below the rate of its lowest point, and an epoch with it helps."""
    session = quiet(batch_size=8).add_data(train=numbers(1000)).add_model(network()).set_criterion(nn.MSELoss)
    found = session.set_optimizer(optim.SGD).lr_find(start=1e-5, end=10.0)
    frame = found.frame
    assert found.suggestion is not None
    session.train(epochs=2, lr=found.suggestion)

    assert 1e-3 < found.suggestion <= frame.lr[frame.smoothed.idxmin()]
    assert list(session.history.train_loss)[-1] < 0.5 * frame.loss[0]
    assert f"session.train(lr={found.suggestion:.2g})" in repr(found)


@pytest.mark.parametrize("seed", range(6))
def test_the_noise_of_batches_is_no_fall(seed: int) -> None:
    """What goes up and down while the rate is tiny is not taken for a fall: the suggestion is one that trains."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1000, 5, generator=generator)
    y = x @ torch.randn(5, 1, generator=generator) + 0.1 * torch.randn(1000, 1, generator=generator)
    session = quiet(batch_size=100, seed=seed).add_data(train=(x, y)).add_model(lambda: nn.Linear(5, 1))
    session.set_criterion(nn.MSELoss).set_optimizer(optim.SGD, momentum=0.9)
    suggestion = session.lr_find().suggestion

    assert suggestion is not None
    assert 3e-4 < suggestion < 3e-2


def test_nan_in_the_data_is_told() -> None:
    """Where no loss is a number the words say so, and the picture can be drawn."""
    x, y = numbers()
    found = regression().add_data(train=(x * torch.nan, y)).lr_find()

    assert "look for NaN in the data" in repr(found)
    assert "<img" in found._repr_html_()


def test_no_fall_no_suggestion() -> None:
    """Where the loss only rises there is no suggestion, and the words say so."""
    found = regression().lr_find(start=5.0, end=50.0, steps=50)

    assert found.suggestion is None
    assert "no suggestion" in repr(found)


SOURCES = {
    "tensors": classes,
    "loader": lambda: DataLoader(TensorDataset(*classes()), batch_size=10),
    "dataset": lambda: TensorDataset(*classes()),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_any_data_and_step(kind: str, accumulate: int) -> None:
    """Tensors, loaders and steps of one's own are walked alike; micro-batches make one point a step."""

    def step(model: nn.Module, criterion: Any, batch: Any) -> torch.Tensor:
        x, y = batch
        return criterion(model(x), y)

    session = quiet(accumulate=accumulate).add_data(train=SOURCES[kind]()).add_model(network(3))
    session.set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.SGD).set_step(step)

    assert 20 == len(session.lr_find(end=1e-2, steps=20).points)


def test_groups_keep_their_ratio() -> None:
    """With groups of parameters the rate is that of the first, and a frozen part stays trainable afterwards."""
    session = regression(freeze="0").set_optimizer(optim.SGD, groups={"3": {"lr": 0.1}})
    session.lr_find(steps=5)

    assert all(parameter.requires_grad for parameter in session.model.parameters())


def test_it_shows() -> None:
    """In a notebook the result is a sentence and a picture; the figure has a logarithmic axis."""
    found = regression().lr_find(steps=20)

    assert "log" == found.figure().axes[0].get_xscale()
    assert '<img src="data:image/png;base64,' in found._repr_html_()


def test_faults_are_told() -> None:
    """Rates that do not grow are refused, and what is missing is named."""
    with pytest.raises(RecipeError, match=r"lr_find\(start=1.0, end=0.1"):
        regression().lr_find(start=1.0, end=0.1)
    with pytest.raises(RecipeError, match="set_optimizer"):
        QuikSession(view=False).add_data(train=numbers()).add_model(network()).set_criterion(nn.MSELoss).lr_find()


def test_an_interrupt_leaves_the_model() -> None:
    """An error in the midst of it, such as an interrupt, goes up, and the model has its weights."""
    calls = []

    def step(model: nn.Module, criterion: Any, batch: Any) -> torch.Tensor:
        calls.append(random.random() + np.random.rand())
        if len(calls) == 5:
            raise KeyboardInterrupt
        return criterion(model(batch[0]), batch[1])

    session = regression().set_step(step)
    with pytest.raises(KeyboardInterrupt):
        session.lr_find(start=0.1)

    assert same(dict(network().state_dict()), dict(session.model.state_dict()))
