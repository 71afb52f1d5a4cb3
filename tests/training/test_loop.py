"""The loop gives the numbers of the loop that one would write by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness.plain import distance, network, numbers, plain_loop, quiet, regression
from torch import nn, optim
from torch.optim import lr_scheduler

from quik_nb import QuikSession

ROUNDING = 1e-12
STEPS = 7  # 101 samples in batches of 16

OPTIMIZERS: list[tuple[type[optim.Optimizer], dict[str, Any]]] = [
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    (optim.Adam, {"lr": 0.01, "betas": (0.8, 0.99), "amsgrad": True}),
    (optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    (optim.RMSprop, {"lr": 0.01}),
]


def losses(session: QuikSession, column: str = "train_loss") -> list[float]:
    """A column of the history."""
    return list(session.history[column])


@pytest.mark.parametrize(("optimizer", "keywords"), OPTIMIZERS)
def test_equals_the_plain_loop(optimizer: type[optim.Optimizer], keywords: dict[str, Any]) -> None:
    """Losses and weights are those of the hand-written loop, up to rounding."""
    by_hand = network()
    expected = plain_loop(by_hand, numbers(), nn.MSELoss(), optimizer(by_hand.parameters(), **keywords), epochs=3)
    session = regression(epochs=3).set_optimizer(optimizer, **keywords)
    session.train()

    assert expected == pytest.approx(losses(session), abs=ROUNDING)
    assert distance(by_hand, session.model) <= ROUNDING


def test_equals_the_plain_loop_bit_for_bit() -> None:
    """With the same form of the optimizer the weights are those of the hand-written loop to the last bit."""
    by_hand = network(dropout=0.5)
    optimizer = optim.Adam(by_hand.parameters(), lr=0.01, fused=True)
    plain_loop(by_hand, numbers(), nn.MSELoss(), optimizer, epochs=3)
    session = regression(network(dropout=0.5), epochs=3, lr=0.01).set_optimizer(optim.Adam)
    session.train()

    assert 0.0 == distance(by_hand, session.model)


def test_settings_reach_every_optimizer_that_takes_them() -> None:
    """The session's lr, weight_decay, betas and eps go to the optimizer, and the step's own keywords win."""
    by_hand = network()
    own = optim.AdamW(by_hand.parameters(), lr=0.02, weight_decay=0.3, betas=(0.7, 0.9), eps=1e-4)
    plain_loop(by_hand, numbers(), nn.MSELoss(), own, epochs=1)
    session = regression(epochs=1, lr=0.5, weight_decay=0.3, betas=(0.7, 0.9), eps=1e-4)
    session.set_optimizer(optim.AdamW, lr=0.02).train()

    assert distance(by_hand, session.model) <= ROUNDING


def warm_up(optimizer: optim.Optimizer, num_warmup_steps: int, num_training_steps: int) -> lr_scheduler.LambdaLR:
    """A schedule as the transformers library writes them: a function that counts steps."""

    def share(step: int) -> float:
        if step < num_warmup_steps:
            return step / num_warmup_steps
        return max(0.0, (num_training_steps - step) / (num_training_steps - num_warmup_steps))

    return lr_scheduler.LambdaLR(optimizer, share)


PER_BATCH: list[tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = [
    (lr_scheduler.OneCycleLR, {"max_lr": 0.1}, {"total_steps": 3 * STEPS}),
    (lr_scheduler.CyclicLR, {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 5}, {}),
    (warm_up, {"num_warmup_steps": 4}, {"num_training_steps": 3 * STEPS}),
]
PER_EPOCH: list[tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = [
    (lr_scheduler.StepLR, {"step_size": 1, "gamma": 0.5}, {}),
    (lr_scheduler.CosineAnnealingLR, {}, {"T_max": 3}),
    (lr_scheduler.LambdaLR, {"lr_lambda": lambda epoch: 1 / (1 + epoch)}, {}),
]


@pytest.mark.parametrize(("scheduler", "keywords", "filled"), PER_BATCH)
def test_schedules_per_batch(scheduler: Callable[..., Any], keywords: dict[str, Any], filled: dict[str, Any]) -> None:
    """A schedule that counts steps is stepped after each of them, over totals that nobody had to type."""
    by_hand = network()
    optimizer = optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    schedule = scheduler(optimizer, **keywords, **filled)
    expected = plain_loop(by_hand, numbers(), nn.MSELoss(), optimizer, epochs=3, after_step=schedule.step)
    session = regression(epochs=3, lr=0.1).set_optimizer(optim.SGD, momentum=0.9).set_scheduler(scheduler, **keywords)
    session.train()

    assert expected == pytest.approx(losses(session), abs=ROUNDING)
    assert distance(by_hand, session.model) <= ROUNDING


@pytest.mark.parametrize(("scheduler", "keywords", "filled"), PER_EPOCH)
def test_schedules_per_epoch(scheduler: Callable[..., Any], keywords: dict[str, Any], filled: dict[str, Any]) -> None:
    """A schedule that counts epochs is stepped after each of them."""
    by_hand = network()
    optimizer = optim.SGD(by_hand.parameters(), lr=0.1)
    schedule = scheduler(optimizer, **keywords, **filled)
    plain_loop(by_hand, numbers(), nn.MSELoss(), optimizer, epochs=3, after_epoch=lambda loss: schedule.step())
    session = regression(epochs=3, lr=0.1).set_scheduler(scheduler, **keywords)
    session.train()

    assert distance(by_hand, session.model) <= ROUNDING


def test_a_schedule_can_be_stepped_otherwise() -> None:
    """`per="batch"` steps a schedule of epochs after each batch, and its total is counted in batches."""
    by_hand = network()
    optimizer = optim.SGD(by_hand.parameters(), lr=0.1)
    schedule = lr_scheduler.CosineAnnealingLR(optimizer, T_max=3 * STEPS)
    plain_loop(by_hand, numbers(), nn.MSELoss(), optimizer, epochs=3, after_step=schedule.step)
    session = regression(epochs=3, lr=0.1).set_scheduler(lr_scheduler.CosineAnnealingLR, per="batch")
    session.train()

    assert distance(by_hand, session.model) <= ROUNDING


def test_reduce_on_plateau_watches_the_validation_loss() -> None:
    """`ReduceLROnPlateau` is given valid_loss; a loss that does not fall by half an epoch lowers the rate."""
    session = regression(epochs=4, lr=0.01)
    session.set_scheduler(lr_scheduler.ReduceLROnPlateau, factor=0.1, patience=0, threshold=0.5)
    session.train()

    assert [0.01, 0.01, 0.001, 0.0001] == pytest.approx(losses(session, "lr"))


def test_reduce_on_plateau_watches_the_training_loss_where_there_is_no_other() -> None:
    """Without a validation split `ReduceLROnPlateau` steps with train_loss, as in the hand-written loop."""
    by_hand = network()
    optimizer = optim.SGD(by_hand.parameters(), lr=0.3)
    schedule = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
    plain_loop(by_hand, numbers(), nn.MSELoss(), optimizer, epochs=4, after_epoch=schedule.step)
    session = quiet(epochs=4, lr=0.3).add_data(train=numbers()).add_model(network()).set_criterion(nn.MSELoss)
    session.set_optimizer(optim.SGD).set_scheduler(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.5).train()

    assert distance(by_hand, session.model) <= ROUNDING


@pytest.mark.parametrize("setting", ["clip_norm", "clip_value"])
def test_clipping(setting: str) -> None:
    """Gradients are clipped after the backward pass and before the step."""
    by_hand = network()
    clip = nn.utils.clip_grad_norm_ if setting == "clip_norm" else nn.utils.clip_grad_value_
    optimizer = optim.SGD(by_hand.parameters(), lr=0.5)
    after = lambda: clip(by_hand.parameters(), 0.05)  # noqa: E731
    plain_loop(by_hand, numbers(), nn.MSELoss(), optimizer, epochs=2, after_backward=after)
    session = regression(epochs=2, lr=0.5, **{setting: 0.05})
    session.train()

    assert distance(by_hand, session.model) <= ROUNDING


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 96, 101])
@pytest.mark.parametrize("accumulate", [2, 3, 4, 100])
def test_accumulation_changes_no_number(samples: int, accumulate: int) -> None:
    """Micro-batches give the losses and weights of whole batches, whatever the length of the data."""
    whole, cut = regression(samples=samples, epochs=2), regression(samples=samples, epochs=2, accumulate=accumulate)
    whole.train()
    cut.train()

    assert losses(whole) == pytest.approx(losses(cut), abs=ROUNDING)
    assert distance(whole.model, cut.model) <= ROUNDING


def test_accumulation_clips_and_schedules_once_a_step() -> None:
    """Clipping and a schedule per batch see optimizer steps, not micro-batches."""
    sessions = [
        regression(epochs=2, accumulate=n, clip_norm=0.1).set_scheduler(lr_scheduler.OneCycleLR, max_lr=0.5)
        for n in (1, 4)
    ]
    for session in sessions:
        session.train()

    assert distance(sessions[0].model, sessions[1].model) <= ROUNDING


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_criterion_that_sums(accumulate: int) -> None:
    """With reduction="sum" the gradient is the sum's, and the history still shows the mean over samples."""
    by_hand = network()
    optimizer = optim.SGD(by_hand.parameters(), lr=0.001)
    summed = nn.MSELoss(reduction="sum")
    plain_loop(by_hand, numbers(), summed, optimizer, epochs=2)
    session = regression(epochs=2, accumulate=accumulate).set_criterion(nn.MSELoss, reduction="sum")
    session.train()
    x, y = numbers(37)
    with torch.no_grad():
        expected = (session.model(x) - y).square().mean().item()

    assert distance(by_hand, session.model) <= ROUNDING
    assert expected == pytest.approx(losses(session, "valid_loss")[-1], abs=ROUNDING)


def test_the_training_loss_is_a_mean_over_samples() -> None:
    """The short last batch counts by its samples: with a rate of (nearly) zero train_loss is the loss of the split."""
    session = regression(epochs=1, lr=1e-300)
    session.train()
    x, y = numbers()
    with torch.no_grad():
        expected = (network()(x) - y).square().mean().item()

    assert expected == pytest.approx(losses(session)[0], abs=ROUNDING)


@pytest.mark.parametrize("samples", [1, 37, 101, 5000])
def test_the_validation_loss_is_exact(samples: int) -> None:
    """valid_loss is the criterion on the whole split, for lengths that nothing divides and for several forwards."""
    x, y = numbers(samples)
    session = regression(epochs=1).add_data(train=numbers(), valid=(x.repeat(1, 1), y))
    session.train()
    with torch.no_grad():
        expected = (session.model(x) - y).square().mean().item()

    assert expected == pytest.approx(losses(session, "valid_loss")[-1], abs=ROUNDING)


def test_gradients_from_before_do_not_count() -> None:
    """A backward pass that the user tried in another cell leaves no trace in the training."""
    tried, fresh = regression(epochs=1), regression(epochs=1)
    x, y = numbers()
    (tried.model(x) - y).square().sum().backward()
    tried.train()
    fresh.train()

    assert 0.0 == distance(fresh.model, tried.model)


def test_frozen_parameters_stay() -> None:
    """Parameters without requires_grad keep their values, also with weight decay."""
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    regression(model, epochs=1, weight_decay=0.5).train()

    assert torch.equal(before, model[0].weight)


def test_the_model_is_evaluated_in_evaluation_mode() -> None:
    """Dropout is off in validation and on in training, and afterwards the model's mode is what it was."""
    session = regression(network(dropout=0.5), epochs=1, lr=1e-300)
    session.model.eval()
    session.train()
    x, y = numbers(37)
    with torch.no_grad():
        expected = (network()(x) - y).square().mean().item()

    assert expected == pytest.approx(losses(session, "valid_loss")[0], abs=ROUNDING)
    assert not session.model.training


def test_the_loss_goes_down() -> None:
    """Training teaches: the loss of the last epoch is below a tenth of the first's."""
    session = regression(epochs=30, lr=0.03).set_optimizer(optim.AdamW)
    session.train()

    assert losses(session)[-1] < losses(session)[0] / 10
