"""What was trained in workers comes home: weights, optimizer, schedule, random numbers."""

from collections.abc import Callable

import pytest
import torch
from harness.plain import distance, network, regression
from torch import optim
from torch.optim import lr_scheduler

from quik_nb import QuikSession

ROUNDING = 1e-9


def adam(epochs: int) -> QuikSession:
    """Moments to carry on."""
    return regression(epochs=epochs, lr=0.01).set_optimizer(optim.Adam)


def cosine(epochs: int) -> QuikSession:
    """Momentum and a schedule by epoch to carry on."""
    session = regression(epochs=epochs, lr=0.1).set_optimizer(optim.SGD, momentum=0.9)
    return session.set_scheduler(lr_scheduler.CosineAnnealingLR, T_max=4)


@pytest.mark.parametrize("make", [adam, cosine])
@pytest.mark.parametrize("first", [1, 2])
def test_a_training_goes_on_in_another_mode(make: Callable[[int], QuikSession], first: int) -> None:
    """Two epochs here and two in workers, or the other way round, are four epochs."""
    four, split = make(4), make(4)
    four.train()
    split.train(epochs=2, processes=first)
    split.train(epochs=2, processes=3 - first)

    assert [0, 1, 2, 3] == list(split.history.epoch)
    assert list(four.history.valid_loss) == pytest.approx(list(split.history.valid_loss), abs=ROUNDING)
    assert list(four.history.lr) == pytest.approx(list(split.history.lr))
    assert distance(four.model, split.model) <= ROUNDING


def test_the_model_stays_the_users_own() -> None:
    """After a training in workers the model is the very module that was handed in, unwrapped, where and as it was."""
    model = network().eval()
    names = list(model.state_dict())
    session = regression(model, epochs=1)
    session.train(processes=2)

    assert session.model is model
    assert names == list(session.model.state_dict())
    assert {"cpu"} == {parameter.device.type for parameter in session.model.parameters()}
    assert not any(module.training for module in session.model.modules())
    assert distance(network(), session.model) > 0


def test_the_users_random_numbers_are_left_alone() -> None:
    """A training in workers draws nothing from the random numbers of the notebook."""
    before = torch.get_rng_state()
    regression(epochs=1).train(processes=2)

    assert torch.equal(before, torch.get_rng_state())


def test_a_run_that_is_over_takes_no_orders() -> None:
    """Stop, pause and a new rate do nothing once the workers are gone."""
    run = regression(epochs=1).train(processes=2)
    run.stop()
    run.pause()
    run.resume()
    run.set_lr(0.5)

    assert "finished" == run.state


def test_interleaved_sessions_do_not_mix() -> None:
    """Two sessions that train in workers in turns come to what each comes to alone."""
    one, other = adam(1), cosine(1)
    for _ in range(2):
        one.train(processes=2)
        other.train(processes=2)

    for make, session in ((adam, one), (cosine, other)):
        alone = make(1)
        alone.train()
        alone.train()
        assert distance(alone.model, session.model) <= ROUNDING
