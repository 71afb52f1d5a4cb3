"""Two and two is four, a stop is no loss, and the same seed gives the same numbers."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from harness.plain import classes, distance, network, numbers, plain_loop, quiet, regression, weights
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from quik_nb import DivergenceError, QuikSession, QuikWarning, RecipeError
from quik_nb.training.carry_over import TrainingState
from quik_nb.training.progress import Progress

STEPS = 7  # 101 samples in batches of 16


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Samples that are augmented as they are read: each reading draws from torch, NumPy and Python."""

    def __init__(self) -> None:
        self.x, self.y = numbers()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(5, dtype=torch.float64) * (random.random() + np.random.rand())
        return self.x[index] + 0.1 * noise, self.y[index]


class NoisyStream(IterableDataset[tuple[Tensor, Tensor]]):
    """The same as a stream that does not know its length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from (Noisy()[index] for index in range(101))


def adam(**settings: Any) -> QuikSession:
    """Dropout and Adam's moments: state that must be carried on."""
    return regression(network(dropout=0.3), **{"lr": 0.01, **settings}).set_optimizer(optim.Adam)


def one_cycle(**settings: Any) -> QuikSession:
    """A schedule that sets the momentum as well, spread over the session's epochs."""
    session = adam(**settings).set_optimizer(optim.SGD, momentum=0.9)
    return session.set_scheduler(lr_scheduler.OneCycleLR, max_lr=0.1)


def one_cycle_adam(**settings: Any) -> QuikSession:
    """A schedule that sets Adam's betas."""
    return adam(**settings).set_scheduler(lr_scheduler.OneCycleLR, max_lr=0.1)


def plateau(**settings: Any) -> QuikSession:
    """A schedule that remembers losses."""
    return adam(**settings).set_scheduler(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.2)


def cosine(**settings: Any) -> QuikSession:
    """A schedule over the session's epochs."""
    return adam(**settings).set_scheduler(lr_scheduler.CosineAnnealingLR)


def accumulated(**settings: Any) -> QuikSession:
    """Steps in micro-batches."""
    return adam(accumulate=3, **settings)


def noisy_samples(**settings: Any) -> QuikSession:
    """A dataset that draws random numbers, through a shuffling loader."""
    return adam(**settings).add_data(train=DataLoader(Noisy(), batch_size=16, shuffle=True), valid=numbers(37))


def weighted_samples(**settings: Any) -> QuikSession:
    """A sampler that draws random numbers."""
    sampler = WeightedRandomSampler(torch.arange(1.0, 102.0).tolist(), 101)
    loader = DataLoader(TensorDataset(*numbers()), batch_size=16, sampler=sampler)
    return adam(**settings).add_data(train=loader, valid=numbers(37))


def noisy_stream(**settings: Any) -> QuikSession:
    """A stream that draws random numbers."""
    return adam(**settings).add_data(train=NoisyStream(), valid=numbers(37))


KINDS = [
    adam,
    one_cycle,
    one_cycle_adam,
    plateau,
    cosine,
    accumulated,
    noisy_samples,
    weighted_samples,
    noisy_stream,
]


def rows(session: QuikSession) -> list[tuple[Any, ...]]:
    """The history without its times, which are never equal."""
    frame = session.history.drop(columns="time")
    return [tuple(row) for row in frame.itertuples(index=False)]


@contextmanager
def at_step(session: QuikSession, step: int, action: Callable[[], object]) -> Iterator[None]:
    """Within it, do something in the midst of the training step of this number, counted from 0 over all epochs."""
    seen = 0

    def hook(model: nn.Module, inputs: Any) -> None:
        nonlocal seen
        if model.training:
            if seen == step:
                action()
            seen += 1

    handle = session.model.register_forward_pre_hook(hook)
    yield
    handle.remove()


def stop(session: QuikSession) -> Callable[[], None]:
    """What the Stop button does."""

    def press() -> None:
        assert session.run is not None
        session.run.stop()

    return press


def interrupt() -> None:
    """What Jupyter's interrupt does, from another thread, and wait until it has arrived."""
    arrived = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))
    arrived.start()
    arrived.join()
    time.sleep(0.01)


@pytest.mark.parametrize("make", KINDS)
def test_two_and_two_is_four(make: Callable[..., QuikSession]) -> None:
    """train(2) then train(2) gives the rows and weights of train(4), bit for bit."""
    once, twice = make(epochs=4), make(epochs=4)
    once.train(4)
    twice.train(2)
    twice.train(2)

    assert rows(once) == rows(twice)
    assert 0.0 == distance(once.model, twice.model)


@pytest.mark.parametrize("step", [0, 3, STEPS - 1, STEPS, STEPS + 4])
@pytest.mark.parametrize("make", KINDS)
def test_a_stopped_epoch_continues_at_that_step(make: Callable[..., QuikSession], step: int) -> None:
    """After a stop anywhere the next train() ends with the rows and weights of a run that nobody stopped."""
    straight, stopped = make(epochs=3), make(epochs=3)
    straight.train()
    factor = 3 if make is accumulated else 1  # the hook counts micro-batches
    with at_step(stopped, step * factor, stop(stopped)):
        run = stopped.train()
    left = 3 - sum(row.fraction == 1.0 for row in stopped._runs.state.history)
    stopped.train(left)

    assert "stopped" == run.state
    assert rows(straight) == rows(stopped)
    assert 0.0 == distance(straight.model, stopped.model)


def test_a_stop_leaves_a_partial_row() -> None:
    """A stop after three of seven steps leaves a row of that share, without a validation loss."""
    session = adam(epochs=3)
    seen: list[dict[str, Tensor]] = []
    with at_step(session, STEPS + 2, stop(session)):
        session.train()
    history = session.history
    seen.append({key: value.clone() for key, value in session.model.state_dict().items()})

    assert [0, 1] == list(history["epoch"])
    assert [1.0, 3 / STEPS] == pytest.approx(list(history["fraction"]))
    assert np.isnan(history["valid_loss"][1])
    assert history["train_loss"].notna().all()


def test_stopped_again_and_again() -> None:
    """Three stops within one epoch and one in the next lose nothing."""
    straight, stopped = one_cycle_adam(epochs=2), one_cycle_adam(epochs=2)
    straight.train()
    for step in (0, 1, 1):
        with at_step(stopped, step, stop(stopped)):
            stopped.train(2)
    with at_step(stopped, 3, stop(stopped)):
        stopped.train(2)
    stopped.train(1)

    assert rows(straight) == rows(stopped)
    assert 0.0 == distance(straight.model, stopped.model)


def test_a_stop_during_validation() -> None:
    """A stop that comes while the epoch is validated keeps its steps; the next train() validates and goes on."""
    straight, stopped = plateau(epochs=2), plateau(epochs=2)
    straight.train()

    def hook(model: nn.Module, inputs: Any) -> None:
        if not model.training:
            stop(stopped)()

    handle = stopped.model.register_forward_pre_hook(hook)
    run = stopped.train()
    handle.remove()
    after_stop = list(stopped.history["fraction"])
    stopped.train(2)

    assert "stopped" == run.state
    assert after_stop[0] < 1.0
    assert rows(straight) == rows(stopped)
    assert 0.0 == distance(straight.model, stopped.model)


def test_one_interrupt_stops_and_is_raised() -> None:
    """An interrupt ends the run at the step boundary, keeps all, and is raised so that "Run all" stops, too."""
    straight, stopped = adam(epochs=2), adam(epochs=2)
    straight.train()
    handler = signal.getsignal(signal.SIGINT)
    with at_step(stopped, 2, interrupt), pytest.raises(KeyboardInterrupt):
        stopped.train()
    share = list(stopped.history["fraction"])
    assert stopped.run is not None
    state = stopped.run.state
    stopped.train(2)

    assert [3 / STEPS] == pytest.approx(share)
    assert "stopped" == state
    assert handler is signal.getsignal(signal.SIGINT)
    assert rows(straight) == rows(stopped)
    assert 0.0 == distance(straight.model, stopped.model)


def test_a_second_interrupt_ends_at_once() -> None:
    """Two interrupts within one step raise at once; the weights are those of the last row, and training goes on."""
    straight, killed = adam(epochs=3), adam(epochs=3)
    straight.train()

    def twice() -> None:
        interrupt()
        interrupt()

    with at_step(killed, STEPS + 2, twice), pytest.raises(KeyboardInterrupt):
        killed.train()
    after = [row.epoch for row in killed._runs.state.history]
    killed.train(2)

    assert [0] == after
    assert rows(straight) == rows(killed)
    assert 0.0 == distance(straight.model, killed.model)


def test_pause_and_resume_change_no_number() -> None:
    """A pause holds the run until it is told to go on, and leaves a mark on the curve."""
    straight, paused = adam(epochs=1), adam(epochs=1)
    straight.train()
    seen: list[str] = []

    def pause() -> None:
        run = paused.run
        assert run is not None
        run.pause()

        def look_and_resume() -> None:
            seen.append(run.state)
            run.resume()

        threading.Timer(0.2, look_and_resume).start()

    with at_step(paused, 2, pause):
        run = paused.train()

    assert ["paused"] == seen
    assert "finished" == run.state
    assert rows(straight) == rows(paused)
    assert ["paused 0 s"] == [mark.label for mark in paused.annotations]


def test_a_stop_ends_a_pause() -> None:
    """A paused run can be stopped, and keeps what it has."""
    session = adam(epochs=1)

    def pause() -> None:
        assert session.run is not None
        session.run.pause()
        threading.Timer(0.1, session.run.stop).start()

    with at_step(session, 2, pause):
        run = session.train()

    assert "stopped" == run.state
    assert [3 / STEPS] == pytest.approx(list(session.history["fraction"]))


@pytest.mark.parametrize("step", [0, 2, STEPS - 2])
def test_a_rate_set_on_the_way_holds_from_the_next_step(step: int) -> None:
    """`set_lr` equals a plain loop whose rate changes after that step, and the next train() keeps it."""
    by_hand, session = network(), regression(epochs=2, lr=0.1)
    optimizer = optim.SGD(by_hand.parameters(), lr=0.1)
    change = lr_scheduler.MultiStepLR(optimizer, milestones=[step + 1], gamma=0.1)
    losses = plain_loop(by_hand, numbers(), nn.MSELoss(), optimizer, epochs=2, after_step=change.step)
    with at_step(session, step, lambda: session.run.set_lr(0.01)):  # type: ignore[union-attr]
        session.train(1)
    session.train(1)

    assert losses == pytest.approx(list(session.history["train_loss"]), rel=1e-12)
    assert distance(by_hand, session.model) <= 1e-12
    assert [0.01, 0.01] == list(session.history["lr"])
    assert [((step + 1) / STEPS, "lr 0.01")] == [(m.epoch, m.label) for m in session.annotations]


@pytest.mark.parametrize(
    ("scheduler", "keywords"),
    [
        (lr_scheduler.StepLR, {"step_size": 1, "gamma": 0.5}),
        (lr_scheduler.LambdaLR, {"lr_lambda": lambda step: 0.5**step}),
        (lr_scheduler.CosineAnnealingLR, {"T_max": 8}),
    ],
)
def test_a_schedule_follows_from_a_rate_that_was_set(scheduler: Any, keywords: dict[str, Any]) -> None:
    """A tenth of the rate, set in the first epoch, makes every later rate of the schedule a tenth."""
    plain = regression(epochs=4, lr=0.1).set_scheduler(scheduler, **keywords)
    changed = regression(epochs=4, lr=0.1).set_scheduler(scheduler, **keywords)
    plain.train()
    with at_step(changed, 2, lambda: changed.run.set_lr(0.01)):  # type: ignore[union-attr]
        changed.train()

    assert [0.1 * rate for rate in plain.history["lr"]] == pytest.approx(list(changed.history["lr"]))


def test_a_cycle_follows_from_a_rate_that_was_set() -> None:
    """After `set_lr` all later rates of a one-cycle schedule are scaled by one and the same factor."""
    plain, changed = one_cycle(epochs=4), one_cycle(epochs=4)
    plain.train()
    with at_step(changed, 2, lambda: changed.run.set_lr(0.001)):  # type: ignore[union-attr]
        changed.train()
    factors = changed.history["lr"] / plain.history["lr"]

    assert factors[0] < 0.9
    assert [factors[0]] * 4 == pytest.approx(list(factors))


def test_a_learning_rate_can_be_set_while_warm_up_is_at_zero() -> None:
    """At a rate of zero there is nothing to scale: the rate that is set becomes the base of the schedule."""
    session = regression(epochs=2, lr=0.1).set_scheduler(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: float(epoch))
    with at_step(session, 2, lambda: session.run.set_lr(0.01)):  # type: ignore[union-attr]
        session.train()

    assert [0.01, 0.01] == pytest.approx(list(session.history["lr"]))


def test_same_seed_same_numbers() -> None:
    """Two sessions with one seed give the same rows and weights bit for bit, and another seed gives others."""
    one, same, other = noisy_samples(epochs=2), noisy_samples(epochs=2), noisy_samples(epochs=2, seed=7)
    for session in (one, same, other):
        torch.rand(3)  # what else the user draws does not matter
        session.train()

    assert rows(one) == rows(same)
    assert 0.0 == distance(one.model, same.model)
    assert rows(one) != rows(other)


def test_a_model_made_by_a_function_is_made_under_the_seed() -> None:
    """`add_model(Net)` makes the same weights whatever was drawn before."""
    one = quiet().add_model(lambda: nn.Linear(5, 1))
    torch.rand(3)
    same = quiet().add_model(lambda: nn.Linear(5, 1))

    assert 0.0 == distance(one.model, same.model)


def test_a_cell_with_tensors_may_be_run_again() -> None:
    """Steps done again with the same keywords, tensors among them, change nothing: the training goes on."""

    def again(session: QuikSession) -> QuikSession:
        weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        session.set_criterion(nn.CrossEntropyLoss, weight=weight).set_optimizer(optim.Adam, betas=[0.8, 0.9])
        return session.set_scheduler(lr_scheduler.OneCycleLR, max_lr=np.float64(0.1))

    def session() -> QuikSession:
        return quiet(epochs=4).add_data(train=classes(), valid=classes(37)).add_model(network(3))

    whole, parts = again(session()), again(session())
    whole.train()
    parts.train(2)
    again(parts).train(2)

    assert rows(whole) == rows(parts)
    assert 0.0 == distance(whole.model, parts.model)


OTHER_FORMS: list[tuple[type[optim.Optimizer], dict[str, Any], dict[str, Any]]] = [
    (optim.AdamW, {}, {"amsgrad": True}),
    (optim.AdamW, {"amsgrad": True}, {}),
    (optim.RMSprop, {}, {"momentum": 0.9}),
    (optim.RMSprop, {"centered": True}, {"momentum": 0.9}),
    (optim.SGD, {}, {"momentum": 0.9, "nesterov": True}),
]


@pytest.mark.parametrize(("optimizer", "before", "after"), OTHER_FORMS)
def test_an_optimizer_of_another_form_starts_from_scratch(
    optimizer: type[optim.Optimizer], before: dict[str, Any], after: dict[str, Any]
) -> None:
    """Keywords that need other moments begin with none, as a new optimizer would."""
    session, by_hand = regression(epochs=1), network()
    session.set_optimizer(optimizer, **before).train()
    by_hand.load_state_dict(session.model.state_dict())
    session.set_optimizer(optimizer, **after).train()
    fresh = regression(by_hand, epochs=1).set_optimizer(optimizer, **after)
    fresh._runs.state = TrainingState(progress=Progress(epoch=1))  # for the order of the samples
    fresh.train()

    assert distance(by_hand, session.model) < 1e-12


def test_another_criterion_restarts_the_best_loss() -> None:
    """After a change of the criterion the best epoch, for patience too, is one since then; the curve has a mark."""
    session = regression(epochs=6, lr=0.05).set_criterion(lambda o, t: 0.001 * (o - t).square().mean())
    session.train(1)
    session.set_criterion(nn.MSELoss).train(patience=2)
    history = session._runs.state.history

    assert 7 == len(history)
    assert history.best is not None
    assert history.best.epoch > 0
    assert [(1.0, "another loss")] == [(mark.epoch, mark.label) for mark in history.annotations]


def test_what_one_call_is_given_wins() -> None:
    """`train(lr=...)` holds over the optimizer's own keyword, for that call, and None switches a setting off."""
    session = regression(epochs=1, clip_norm=1.0, freeze="0").set_optimizer(optim.SGD, lr=0.1)
    session.train()
    session.train(lr=1e-5, freeze=None)
    moved = weights(session.model)
    session.train(clip_norm=None)

    assert [0.1, 1e-5, 0.1] == session.history["lr"].tolist()
    assert [False, False, True] == session.history["grad_norm"].isna().tolist()
    assert (moved["0.weight"] != network()[0].weight).any()  # type: ignore[index]


def test_patience_starts_again() -> None:
    """A training that ended by patience goes on for as long again when it is asked to."""
    session = regression(lr=1e-12, epochs=20, patience=2, min_delta=1.0)
    lengths = [len(session.train().history) for _ in range(3)]

    assert [3, 5, 7] == lengths


def test_a_listener_is_replaced_by_itself() -> None:
    """A cell with `on` that is run again leaves one function; another one is added; `off` removes them."""
    seen: list[str] = []

    def listen(session: QuikSession, word: str) -> None:
        session.on("epoch_end", lambda event: seen.append(word))

    session = regression(epochs=1)
    for word in ("a", "a", "b"):
        listen(session, word)
    session.train()
    session.off("epoch_end").train()

    assert ["a", "b"] == seen


def test_modes_are_given_back() -> None:
    """A module that was put into evaluation mode by hand is in it after training, as the rest is in training mode."""
    session = adam(epochs=1)
    session.model[2].eval()  # type: ignore[index]
    with pytest.warns(QuikWarning, match="eval_modules='2'"):
        session.train()

    assert [True, True, True, False, True] == [module.training for module in session.model.modules()]


def test_a_seed_may_be_long() -> None:
    """A seed of 63 bits, as `time.time_ns()` gives, makes models, splits and epochs."""
    session = quiet(seed=2**63 - 1, epochs=1).add_data(train=numbers(), valid=0.2, test=0.2)
    session.add_model(lambda: nn.Linear(5, 1).double()).set_criterion(nn.MSELoss).set_optimizer(torch.optim.SGD)
    session.train()

    assert 1 == len(session.history)


@pytest.mark.parametrize("ends", ["finished", "stopped", "failed"])
def test_the_users_random_numbers_are_not_disturbed(ends: str) -> None:
    """However a training ends, torch, NumPy and Python go on drawing as if it had not been."""
    session = noisy_samples(epochs=1)
    actions = {"finished": lambda: None, "stopped": stop(session), "failed": lambda: 1 / 0}

    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    expected = draw(), draw()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    first = draw()
    with at_step(session, 1, actions[ends]):
        try:
            session.train()
            session.predict("valid")
            session.evaluate("valid")
        except ZeroDivisionError:
            assert ends == "failed"

    assert expected == (first, draw())


def test_another_rate_keeps_the_moments() -> None:
    """A changed lr goes on with Adam's moments: the next epoch is that of a plain loop whose rate was changed."""
    by_hand, session = adam(epochs=1), adam(epochs=1)
    by_hand.train(2)
    session.train()
    session.train(lr=0.01)  # the same: nothing changes
    same = distance(by_hand.model, session.model)
    moments = session._runs.state.progress.optimizers[""].state
    session.set_optimizer(optim.Adam, lr=0.001).train()

    assert 0.0 == same
    assert moments is not None
    later = session._runs.state.progress.optimizers[""].state
    assert later is not None
    assert [3 * STEPS] == [int(state["step"]) for state in later["state"].values()][:1]
    assert [0.01, 0.01, 0.001] == list(session.history["lr"])


class OwnAdam(optim.Adam):
    """An optimizer of the user's own, which takes the keywords of another."""


@pytest.mark.parametrize("optimizer", [optim.RMSprop, optim.AdamW, OwnAdam])
def test_another_optimizer_starts_without_moments(optimizer: type[optim.Optimizer]) -> None:
    """Another optimizer class continues from the current weights like a new optimizer."""
    session, fresh = adam(epochs=1), adam(epochs=1).set_optimizer(optimizer)
    session.train()
    fresh.model.load_state_dict(session.model.state_dict())
    fresh._runs.state = TrainingState(progress=Progress(epoch=1))  # for the order of the samples
    session.set_optimizer(optimizer).train()
    fresh.train()

    assert rows(fresh) == rows(session)[1:]
    assert 0.0 == distance(fresh.model, session.model)


def test_another_model_starts_a_new_training() -> None:
    """`add_model` with another model empties the history, and the numbers are those of a new session."""
    session, fresh = adam(epochs=1), adam(epochs=1)
    session.train()
    session.add_model(network(dropout=0.3)).train()
    fresh.train()

    assert rows(fresh) == rows(session)
    assert 0.0 == distance(fresh.model, session.model)


def test_reset_starts_from_scratch() -> None:
    """`reset()` goes back to the first weights and an empty history; the same training comes out again."""
    session = one_cycle(epochs=2)
    session.train()
    first, weights = rows(session), {k: v.clone() for k, v in session.model.state_dict().items()}
    empty = len(session.reset().history)
    session.train()

    assert 0 == empty
    assert first == rows(session)
    assert 0.0 == distance(weights, session.model)


def test_other_data_give_up_the_unfinished_epoch() -> None:
    """With other data the steps of the unfinished epoch are others: it starts again, on the weights that are there."""
    session = adam(epochs=1)
    with at_step(session, 2, stop(session)):
        session.train()
    session.add_data(train=numbers(50), valid=numbers(37)).train()

    assert [0] == list(session.history["epoch"])
    assert "fraction" not in session.history.columns


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    """A NaN loss names epoch and step, the weights are those of the last row, and a smaller rate trains on."""
    straight, session = adam(epochs=2), adam(epochs=2)
    straight.train(1)

    def spoil() -> None:
        with torch.no_grad():
            session.model[0].weight.fill_(torch.nan)  # type: ignore[index]

    with at_step(session, STEPS + 4, spoil), pytest.raises(DivergenceError, match=r"(?s)epoch 1, step 4, .*lr"):
        session.train()
    after = rows(session)
    held = distance(straight.model, session.model)
    session.train(1)

    assert rows(straight) == after
    assert 0.0 == held
    assert [0, 1] == list(session.history["epoch"])


def test_divergence_is_raised_before_metrics_fail_on_nan() -> None:
    """A metric that refuses NaN does not hide that the training diverged."""

    def picky(outputs: Tensor, targets: Tensor) -> float:
        if not outputs.isfinite().all():
            raise ValueError("Input contains NaN.")
        return 0.0

    session = regression(epochs=1, lr=1e200).set_metrics(picky=picky)
    with pytest.raises(DivergenceError):
        session.train()


class Refusing(nn.Module):
    """A model that raises an error of the user's own in the second epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 1).double()
        self.calls, self.patience = 0, STEPS + 3

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.training and self.calls > self.patience:
            raise LookupError("not today")
        return self.layer(x)  # type: ignore[no-any-return]


def test_errors_of_the_user_propagate() -> None:
    """An error in the model comes as it is, with the shapes of the batch; the weights are those of the last row."""
    torch.manual_seed(3)
    session = regression(Refusing(), epochs=3)
    with pytest.raises(LookupError, match="not today") as caught:
        session.train()
    row = session.history.iloc[-1]
    held = session.evaluate("valid")["loss"]
    session.model.patience = 1000  # type: ignore[assignment]
    session.train(2)

    assert ["quik_nb: this was a batch of (16, 5) float64, (16, 1) float64."] == caught.value.__notes__
    assert row["valid_loss"] == held
    assert [0, 1, 2] == list(session.history["epoch"])


def test_a_session_refuses_changes_while_it_trains() -> None:
    """A second train() or another step within a running training would mix two trainings."""
    session = adam(epochs=1)

    def meddle() -> None:
        for action in (session.train, session.reset, lambda: session.set_criterion(nn.L1Loss)):
            with pytest.raises(RecipeError, match="running"):
                action()

    with at_step(session, 1, meddle):
        run = session.train()

    assert "finished" == run.state


def test_classes_train_on_after_a_stop() -> None:
    """The default step with class numbers stops and goes on as well."""
    session = quiet(epochs=1).add_data(train=classes(), valid=0.2).add_model(network(3))
    session.set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.SGD)
    with at_step(session, 1, stop(session)):
        session.train()
    session.train()

    assert [0] == list(session.history["epoch"])


def test_the_same_data_added_again_changes_nothing() -> None:
    """A data cell that is run again after a stop leaves the unfinished epoch where it stood."""
    straight, stopped = regression(epochs=2), regression(epochs=2)
    straight.train()
    with at_step(stopped, 3, stop(stopped)):
        stopped.train()
    stopped.add_data(train=numbers(), valid=numbers(37)).train(2)

    assert 0.0 == distance(straight.model, stopped.model)
