"""A loop of the user's own gives the same numbers as train(), and is stopped, resumed and shown the same way."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from harness.plain import distance, network, numbers, quiet, regression
from torch import nn, optim
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from quik_nb import Loop, QuikSession, QuikWarning, RecipeError


def loop(session: Loop) -> None:
    """The loop as the README writes it."""
    for _ in session.iter_epochs():
        for x, y in session.loader("train"):
            with session.autocast():
                loss = session.criterion(session.model(x), y)
            session.backward(loss)
            session.metrics.add_loss(loss)
        session.end_epoch()


def full(**settings: Any) -> QuikSession:
    """A session with everything a loop could forget: dropout, schedule, clipping, accumulation."""
    kept = {"epochs": 3, "clip_norm": 0.5, "accumulate": 2, "lr": 0.01, **settings}
    return regression(network(dropout=0.3), **kept).set_optimizer(optim.Adam).set_scheduler(OneCycleLR, max_lr=0.05)


def test_custom_loop_equals_train() -> None:
    """For the same recipe the rows and weights are those of train(), bit for bit."""
    theirs, ours = full(), full()
    theirs.traverse(loop)
    ours.train()

    assert list(ours.history.train_loss) == list(theirs.history.train_loss)
    assert list(ours.history.valid_loss) == list(theirs.history.valid_loss)
    assert 0.0 == distance(ours.model, theirs.model)


def test_custom_loop_on_two_ranks() -> None:
    """On two workers the same loop gives the numbers of one process."""
    one, two = regression(epochs=2), regression(epochs=2)
    one.traverse(loop)
    two.traverse(loop, processes=2)

    assert list(one.history.train_loss) == pytest.approx(list(two.history.train_loss), abs=1e-12)
    assert distance(one.model, two.model) <= 1e-12


def test_stopped_custom_loop_continues_at_that_step() -> None:
    """A stop in the midst of an epoch leaves a partial row; the next call ends as a loop that nobody stopped."""
    straight, stopped = full(), full()
    straight.traverse(loop)
    calls = []

    def stopping(session: Loop) -> None:
        for _ in session.iter_epochs():
            for x, y in session.loader("train"):
                loss = session.criterion(session.model(x), y)
                session.backward(loss)
                session.metrics.add_loss(loss)
                calls.append(1)
                if len(calls) == 20:
                    assert stopped.run is not None
                    stopped.run.stop()
            session.end_epoch()

    run = stopped.traverse(stopping)
    assert "stopped" == run.state
    assert 0 < stopped.history.fraction.iloc[-1] < 1
    stopped.traverse(loop, epochs=3 - int(stopped.history.epoch.iloc[-1]))

    assert list(straight.history.valid_loss) == list(stopped.history.valid_loss)
    assert 0.0 == distance(straight.model, stopped.model)


def test_a_plain_loop_needs_two_calls() -> None:
    """A plain PyTorch loop that only adds losses and ends epochs gets its rows, the exact mean and the view."""
    session = regression(epochs=2)
    x, y = numbers()

    def plain(session: Loop) -> None:
        optimizer = optim.SGD(session.model.parameters(), lr=0.1)
        for _ in range(2):
            for start in range(0, 100, 10):
                loss = nn.functional.mse_loss(session.model(x[start : start + 10]), y[start : start + 10])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                session.metrics.add_loss(loss)
            session.end_epoch()

    with pytest.warns(QuikWarning, match=r"session\.register\('main', SGD"):
        session.traverse(plain)

    assert [0.1, 0.1] == list(session.history.lr)
    assert "lr_own" not in session.history
    assert [0, 1] == list(session.history.epoch)
    assert session.history.train_loss[1] < session.history.train_loss[0]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_number_of_samples_changes_no_gradient(processes: int) -> None:
    """`add_loss(loss, samples=...)` counts towards the mean and towards nothing else."""
    kit, own = regression(epochs=2), regression(epochs=2)

    def counting(session: Loop) -> None:
        for _ in session.iter_epochs():
            for x, y in session.loader("train"):
                loss = session.criterion(session.model(x), y)
                session.metrics.add_loss(loss, samples=len(x))
                session.backward(loss)
            session.end_epoch()

    kit.train()
    own.traverse(counting, processes=processes)

    assert distance(kit.model, own.model) < 1e-12
    assert kit.history.train_loss.tolist() == pytest.approx(own.history.train_loss.tolist(), abs=1e-12)


def forgets_the_end(session: Loop) -> None:
    for _ in session.iter_epochs():
        for x, y in session.loader("train"):
            session.backward(session.criterion(session.model(x), y))


def forgets_the_losses(session: Loop) -> None:
    for _ in session.iter_epochs():
        for x, y in session.loader("train"):
            session.backward(session.criterion(session.model(x), y))
        session.end_epoch()


def gives_a_number(session: Loop) -> None:
    session.backward(3.0)  # type: ignore[arg-type]


def gives_many_numbers(session: Loop) -> None:
    session.backward(torch.ones(3))


@pytest.mark.parametrize(
    ("loop", "advice"),
    [
        (forgets_the_end, r"call session\.end_epoch\(\) after"),
        (forgets_the_losses, r"call session\.metrics\.add_loss\(loss\) for each batch"),
        (gives_a_number, "got a float"),
        (gives_many_numbers, r"got shape \(3,\): pass loss\.mean\(\)"),
    ],
)
def test_what_a_loop_forgets_is_reported(loop: Callable[[Loop], None], advice: str) -> None:
    """A loop that leaves out a call, or makes it with something else, ends with the words to type."""
    with pytest.raises(RecipeError, match=advice):
        regression(epochs=2).traverse(loop)


def test_own_columns() -> None:
    """What the loop measured itself becomes columns of the history."""
    session = regression(epochs=1)

    def measuring(session: Loop) -> None:
        for _ in session.iter_epochs():
            for x, y in session.loader("train"):
                loss = session.criterion(session.model(x), y)
                session.backward(loss)
                session.metrics.add_loss(loss)
            errors = [(session.model(x) - y).abs().max().item() for x, y in session.loader("valid")]
            session.end_epoch({"valid_loss": 0.5, "worst": max(errors)})

    session.traverse(measuring)

    assert 0.5 == session.history.valid_loss[0]
    assert session.history.worst[0] > 0


def test_error_in_a_custom_loop() -> None:
    """The user's own exception comes through, and the weights are those of the last row."""
    session = regression(epochs=3)
    good = regression(epochs=1)
    good.train()

    def failing(session: Loop) -> None:
        for epoch in session.iter_epochs():
            for x, y in session.loader("train"):
                loss = session.criterion(session.model(x), y)
                session.backward(loss)
                session.metrics.add_loss(loss)
                if epoch == 1:
                    raise KeyError("mine")
            session.end_epoch()

    with pytest.raises(KeyError, match="mine"):
        session.traverse(failing)

    assert [0] == list(session.history.epoch)
    assert 0.0 == distance(good.model, session.model)


def test_unknown_split() -> None:
    """A loader of a split that was not set says what to type."""

    def asking(session: Loop) -> None:
        next(iter(session.loader("test")))

    with pytest.raises(RecipeError, match=r"add_data\(test=\.\.\.\)"):
        regression().traverse(asking)


def test_loop_knows_its_world() -> None:
    """A loop can ask who it is: rank, world size, device, logger."""
    seen: list[Any] = []
    quiet().add_data(train=numbers()).add_model(network()).set_criterion(nn.MSELoss).set_optimizer(optim.SGD).traverse(
        lambda session: seen.append(session.world)
    )

    assert [(0, 1, True, False, torch.device("cpu"))] == [
        (w.rank, w.world_size, w.is_logger, w.is_ddp, w.device) for w in seen
    ]


def closed_by(values: Callable[[Loop, int], Any]) -> Callable[[Loop], None]:
    """The loop, with values of its own for each row, by session and epoch."""

    def measuring(session: Loop) -> None:
        for epoch in session.iter_epochs():
            for x, y in session.loader("train"):
                loss = session.criterion(session.model(x), y)
                session.backward(loss)
                session.metrics.add_loss(loss)
            session.end_epoch(values(session, epoch))

    return measuring


def another_on_each_rank(session: Loop, epoch: int) -> dict[str, Any]:
    """Measured values on which the ranks do not agree."""
    return {"valid_loss": torch.tensor(1.0 + epoch * session.world.rank), "rank": session.world.rank}


def test_ranks_agree_on_what_a_loop_measured() -> None:
    """Rates and early ends follow the mean over the ranks, on all of them, whatever each of them measured."""
    session = regression(epochs=9, lr=0.1, patience=3).set_scheduler(ReduceLROnPlateau, patience=0)
    session.traverse(closed_by(another_on_each_rank), processes=2)

    assert [1.0, 1.5, 2.0, 2.5] == list(session.history.valid_loss)
    assert [0.5] * 4 == list(session.history["rank"])
    assert 0.1 > session.history.lr.iloc[-1]


def test_values_without_a_loss() -> None:
    """Columns of the loop's own close an epoch, with a validation split as well; they need not be Python's numbers."""
    session = regression(epochs=2)

    assert "finished" == session.traverse(closed_by(lambda session, epoch: {"f1": np.float32(0.5)})).state
    assert [0.5, 0.5] == list(session.history["f1"])


def test_values_that_are_not_numbers() -> None:
    """Values that are not numbers are refused with an example of valid ones."""
    with pytest.raises(RecipeError, match=r"one number each.*end_epoch\(\{'valid_loss': 0.5\}\)"):
        regression(epochs=1).traverse(closed_by(lambda session, epoch: {"f1": "good"}))


def test_a_second_pass_in_one_epoch() -> None:
    """An epoch has one pass over the training split; a second one is refused, rather than empty."""

    def twice(session: Loop) -> None:
        for _ in session.iter_epochs():
            for _ in range(2):
                for x, y in session.loader("train"):
                    session.metrics.add_loss(session.criterion(session.model(x), y))
            session.end_epoch()

    with pytest.raises(RecipeError, match="epoch 0 a second time"):
        regression(epochs=1).traverse(twice)


def test_a_stop_in_a_custom_validation() -> None:
    """A stop while the loop validates ends the run as stopped, and keeps its steps."""

    def validated(session: Loop, epoch: int) -> dict[str, float]:
        assert one.run is not None
        one.run.stop()
        return {"valid_loss": session.validate()["valid_loss"]}

    one = regression(epochs=2)

    assert "stopped" == one.traverse(closed_by(validated)).state
    assert [0.99] == list(one.history["fraction"])
    assert "finished" == one.traverse(loop, epochs=1).state


def test_the_rate_of_a_plain_loop() -> None:
    """A loop that steps the optimizer itself has its rate in the history, too."""

    def plain(session: Loop) -> None:
        for _ in session.iter_epochs():
            for x, y in session.loader("train"):
                session.optimizer.zero_grad()
                loss = session.criterion(session.model(x), y)
                loss.backward()
                session.optimizer.step()
                session.metrics.add_loss(loss)
            session.end_epoch()

    session = regression(epochs=1, lr=0.25)
    session.traverse(plain)

    assert [0.25] == list(session.history.lr)
