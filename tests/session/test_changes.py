"""What is changed between two calls of train(): what goes on, what starts anew, and that nothing breaks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from harness.plain import distance, numbers, quiet, regression, weights
from torch import nn, optim
from torch.optim import lr_scheduler

from quik_nb import CheckpointError, QuikSession

RANKS = [{}, {"processes": 2}]


def stopped_at(session: QuikSession, step: int, **how: Any) -> QuikSession:
    """The session, stopped after some steps of its first epoch."""
    seen = 0

    def stopping(model: nn.Module, inputs: Any) -> None:
        nonlocal seen
        seen += model.training
        if seen == step and session.run is not None:
            session.run.stop()

    handle = session.model.register_forward_pre_hook(stopping)
    assert "stopped" == session.train(**how).state
    handle.remove()
    return session


# ---------------------------------------------------------------------- the model


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}])
def test_a_layer_put_in_by_hand(ranks: dict[str, Any], settings: dict[str, Any]) -> None:
    """A layer of another shape trains on, with an optimizer that knows nothing of the one before."""
    session = regression(epochs=1, **settings).set_optimizer(optim.Adam)
    session.train()
    session.model[3] = nn.Linear(8, 1, bias=False).double()
    before = weights(session.model)
    session.train(**ranks)

    assert "finished" == session.runs["state"].iloc[-1]
    assert 0.01 > distance(before, session.model) > 0  # Adam's first steps are about as long as the rate
    with pytest.raises(CheckpointError, match="before the first epoch does not fit"):
        session.reset()


@pytest.mark.parametrize("first", [True, False])
def test_gradients_switched_by_hand(first: bool) -> None:
    """`requires_grad_()` between two calls is obeyed, on the way there and on the way back."""
    session = regression(epochs=1).set_optimizer(optim.Adam)
    session.model[0].requires_grad_(first)
    session.train()
    session.model[0].requires_grad_(not first)
    before = session.model[0].weight.detach().clone()
    session.train()

    assert first == torch.equal(before, session.model[0].weight)


def test_the_same_module_again() -> None:
    """A cell that adds the very same module again changes nothing: the training goes on."""
    session, straight = regression(epochs=2), regression(epochs=2)
    straight.train(epochs=4)
    session.train()
    session.add_model(session.model).train()

    assert list(straight.history.train_loss) == list(session.history.train_loss)
    assert 0.0 == distance(straight.model, session.model)


# ---------------------------------------------------------------------- rates and schedules


def test_weight_decay_for_one_call_leaves_the_schedule() -> None:
    """A keyword that no schedule moves takes effect, and the schedule goes on where it stood."""
    session, straight = (regression(epochs=6).set_scheduler(lr_scheduler.OneCycleLR, max_lr=0.1) for _ in range(2))
    straight.train()
    session.train(epochs=2)
    before = weights(session.model)
    session.train(epochs=2, weight_decay=0.5)
    session.train(epochs=2)

    assert list(straight.history.lr) == list(session.history.lr)
    assert straight.history.train_loss[2] != session.history.train_loss[2]
    assert distance(before, session.model) > 0


@pytest.mark.parametrize(
    ("kind", "keywords"), [(lr_scheduler.OneCycleLR, {"max_lr": 0.2}), (lr_scheduler.CosineAnnealingLR, {})]
)
def test_a_new_schedule_comes_to_its_end(kind: Any, keywords: dict[str, Any]) -> None:
    """A schedule that is set half way has a plan for what is left of the session's epochs."""
    session = regression(epochs=6, lr=0.1).set_scheduler(lr_scheduler.StepLR, step_size=1)
    session.train(epochs=3)
    session.set_scheduler(kind, **keywords).train(epochs=2)
    half_way = session.history.lr.iloc[-1]
    session.train(epochs=1)
    alone = regression(epochs=3, lr=0.1).set_scheduler(kind, **keywords)
    alone.train()

    assert list(alone.history.lr) == pytest.approx(list(session.history.lr[3:]))
    assert half_way == pytest.approx(alone.history.lr[1])


def test_a_schedule_after_a_stop_comes_to_its_end() -> None:
    """What a stop left of an epoch is counted as what it is: the last step has the last rate of the schedule."""
    session = stopped_at(regression(epochs=1).set_scheduler(lr_scheduler.OneCycleLR, max_lr=0.1), 3)
    session.train(epochs=2)

    assert session.history.lr.iloc[-1] == pytest.approx(0.1 / 25 / 1e4)  # by its two division factors


def test_lr_of_a_call_wins_over_set_lr() -> None:
    """The session's own rate, typed again, replaces the one that was set while it ran."""
    session = regression(epochs=1, lr=0.05)
    session.on("epoch_end", lambda event: session.run and session.run.set_lr(0.001))
    session.train(epochs=2)
    session.off()
    session.train()
    kept = session.history.lr.iloc[-1]
    session.train(lr=0.05)

    assert [0.001, 0.05] == [kept, session.history.lr.iloc[-1]]


CHAINED = [
    (lr_scheduler.CyclicLR, {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3}),
    (lambda optimizer: lr_scheduler.SequentialLR(optimizer, [half(optimizer), half(optimizer)], milestones=[2]), {}),
    (lambda o: lr_scheduler.ChainedScheduler([half(o), half(o)]), {}),
]


def half(optimizer: optim.Optimizer) -> lr_scheduler.LambdaLR:
    """A schedule that computes each rate from a base rate."""
    return lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)


@pytest.mark.parametrize(("scheduler", "keywords"), CHAINED)
def test_set_lr_scales_all_of_a_schedule(scheduler: Any, keywords: dict[str, Any]) -> None:
    """Twice the rate stays twice the rate in each epoch to come, also where schedules are made of others."""
    plain, changed = (
        quiet(epochs=6, lr=0.1).add_data(train=numbers(16)).add_model(nn.Linear(5, 1).double()) for _ in range(2)
    )
    for session in (plain, changed):
        session.set_criterion(nn.MSELoss).set_optimizer(optim.SGD)
        session.set_scheduler(scheduler, per="epoch", **keywords).train(epochs=1)
    changed.on("run_start", lambda event: changed.run and changed.run.set_lr(2 * rates[1]))
    plain.train(epochs=5)
    rates = list(plain.history.lr)
    changed.train(epochs=5)

    assert [2 * rate for rate in rates[1:]] == pytest.approx(list(changed.history.lr[1:]))


# ---------------------------------------------------------------------- an unfinished epoch


@pytest.mark.parametrize("load", [True, False])
def test_weights_of_before_and_an_unfinished_epoch(tmp_path: Path, load: bool) -> None:
    """With an earlier epoch's weights the next row is a whole epoch from there; without, the rest of the one begun."""
    session = regression(epochs=1, save=True, base_dir=tmp_path, clip_norm=0.1)
    session.train()
    straight = regression(epochs=2, clip_norm=0.1)
    straight.train()
    stopped_at(session, 3)
    if load:
        session.load_epoch(0)
    session.train()

    assert [0, 1] == list(session.history.epoch)
    assert straight.history.train_loss[1] == session.history.train_loss[1]
    assert straight.history.grad_norm[1] == pytest.approx(session.history.grad_norm[1])
    assert 0.0 == distance(straight.model, session.model)
    assert load == any(mark.label == "from epoch 0" for mark in session.annotations)


def test_an_epoch_in_two_parts_has_one_norm() -> None:
    """`grad_norm` of an epoch that was stopped and finished is the mean over all its steps."""
    straight, stopped = (regression(epochs=1, clip_norm=0.1) for _ in range(2))
    straight.train()
    stopped_at(stopped, 3).train()

    assert straight.history.grad_norm[0] == pytest.approx(stopped.history.grad_norm[0])


def test_metrics_of_half_an_epoch_are_left_out() -> None:
    """A metric on the training split that saw only the rest of an epoch is not shown as if it had seen all."""

    def largest(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).abs().max()

    session = stopped_at(regression(epochs=1).set_metrics(largest=largest, train=True), 3)
    session.train()

    assert ["epoch", "train_loss", "valid_loss", "largest", "lr", "time"] == list(session.history)


# ---------------------------------------------------------------------- early stopping


def test_patience_counts_from_the_latest_improvement_of_min_delta() -> None:
    """With `min_delta`, patience counts from the latest loss that was better by so much, as in ReduceLROnPlateau."""
    falling = iter([1.0, 0.95, 0.9, 0.85, 0.8, 0.75])

    def loop(session: Any) -> None:
        for _ in session.iter_epochs():
            for x, y in session.loader("train"):
                loss = session.criterion(session.model(x), y)
                session.backward(loss)
                session.metrics.add_loss(loss)
            session.end_epoch({"valid_loss": next(falling)})

    session = regression(epochs=6, patience=2, min_delta=0.08)
    session.traverse(loop)

    assert 6 == len(session.history)


# ---------------------------------------------------------------------- what was tried


def test_what_was_changed_is_listed() -> None:
    """`runs` names samples, metrics and step where they are others than in the call before."""

    def largest(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).abs().max()

    def step(model: nn.Module, criterion: Any, batch: Any) -> Any:
        outputs = model(batch[0])
        return criterion(outputs, batch[1]), outputs

    session = regression(epochs=1)
    session.train()
    session.add_data(train=numbers(40), valid=numbers(37)).train()
    session.set_metrics(largest=largest).train()
    session.set_step(step).train()
    session.set_step(None).train()

    assert ["", "train=40 samples", "metrics=largest", "step=step", "no step"] == session.runs["changed"].tolist()
