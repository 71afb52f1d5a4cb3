"""Torch's switches are read, restored, and carried to workers."""

from typing import Any

import pytest
import torch
from harness.plain import network, numbers, regression

from quik_nb.training import torch_switches
from quik_nb.training.precision import Autocast


def switch_all() -> None:
    """Set every switch to what it is not by default."""
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.autograd.set_detect_anomaly(True, check_nan=False)
    torch.set_autocast_enabled("cpu", True)


@pytest.fixture(autouse=True)
def given_back() -> Any:
    """No test leaves a switch behind for the next one."""
    before = torch_switches.capture()
    yield
    torch_switches.restore(before)


def test_switches_are_restored() -> None:
    """Whatever is switched inside, all of it is afterwards as it was."""
    before = torch_switches.capture()
    with torch_switches.preserved():
        switch_all()
        assert 6 <= sum(before[name] != value for name, value in torch_switches.capture().items())

    assert before == torch_switches.capture()


def test_a_training_leaves_no_switch_behind() -> None:
    """A step that sets anomaly detection, or leaves autocast on, changes nothing beyond the training."""

    def careless(model: Any, criterion: Any, batch: Any) -> Any:
        torch.autograd.set_detect_anomaly(True)
        torch.autocast("cpu", torch.bfloat16).__enter__()  # type: ignore[no-untyped-call]
        return criterion(model(batch[0]), batch[1])

    before = torch_switches.capture()
    regression(epochs=1).set_step(careless).train()

    assert before == torch_switches.capture()


def test_autocast_may_be_nested_in_itself() -> None:
    """One context that is entered twice, as by a caster that a loop and its model share, leaves nothing on."""
    caster = Autocast(torch.device("cpu"), "bf16")
    with caster:
        with caster:
            assert torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")

    assert not torch.is_autocast_enabled("cpu")


def test_casts_of_old_weights_are_not_used() -> None:
    """A loop within one autocast context trains as one with a context for each forward pass."""

    def around_all(session: Any) -> None:
        with session.autocast():
            for _ in session.iter_epochs():
                train(session)

    def around_each(session: Any) -> None:
        for _ in session.iter_epochs():
            train(session)

    def train(session: Any) -> None:
        for x, y in session.loader("train"):
            with session.autocast():
                loss = session.criterion(session.model(x), y)
            session.backward(loss)
            session.metrics.add_loss(loss)
        session.end_epoch()

    losses = []
    for loop in (around_each, around_all):
        session = regression(network(dtype=torch.float32), epochs=2, lr=0.05, precision="bf16")
        session.add_data(train=numbers(dtype=torch.float32)).traverse(loop)
        losses.append(list(session.history.train_loss))

    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0][1] < 0.8 * losses[0][0]


def test_workers_have_the_switches_of_the_notebook() -> None:
    """What a cell has switched holds in each rank as it does in process."""
    wanted = (torch.float64, True, "high", True)

    def check(model: Any, criterion: Any, batch: Any) -> Any:
        deterministic = torch.are_deterministic_algorithms_enabled()
        precision, anomaly = torch.get_float32_matmul_precision(), torch.is_anomaly_enabled()
        assert wanted == (torch.get_default_dtype(), deterministic, precision, anomaly)
        return criterion(model(batch[0]), batch[1])

    switch_all()
    torch.set_autocast_enabled("cpu", False)
    session = regression(epochs=1).set_step(check)

    assert "finished" == session.train(processes=2).state
