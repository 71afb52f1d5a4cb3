"""How far a schedule spans, how a scheduler is stepped, and what is told of one that goes wrong."""

from typing import Any

import pytest
from harness.plain import network, regression
from torch import optim
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, ExponentialLR, OneCycleLR, ReduceLROnPlateau

from quik_nb import Loop, QuikSession, QuikWarning
from quik_nb.recipe.recipe import Scheduler
from quik_nb.training.progress import OptimizerProgress
from quik_nb.training.schedule import Span, StepArguments

STEPS = 7  # 101 samples in batches of 16
COSINE, DECAY = Scheduler(CosineAnnealingLR), Scheduler(ExponentialLR, {"gamma": 0.9})
BEGUN = OptimizerProgress(schedule_end=5, schedule_start=(1, 2))


@pytest.mark.parametrize(
    ("saved", "spec", "last", "span"),
    [
        (OptimizerProgress(), COSINE, 3, Span(5, (2, 1), fresh=True)),
        (OptimizerProgress(), COSINE, 8, Span(8, (2, 1), fresh=True)),
        (OptimizerProgress(), None, 3, Span(5, (2, 1), fresh=True)),
        (BEGUN, COSINE, 5, Span(5, (1, 2), fresh=False)),
        (BEGUN, COSINE, 7, Span(7, (2, 1), fresh=True)),
        (BEGUN, DECAY, 7, Span(7, (1, 2), fresh=False)),
        (BEGUN, None, 7, Span(7, (1, 2), fresh=False)),
        (BEGUN.without_schedule(), COSINE, 3, Span(5, (2, 1), fresh=True)),
    ],
)
def test_spans(saved: OptimizerProgress, spec: Scheduler | None, last: int, span: Span) -> None:
    """A call that begins at step 1 of epoch 2, in a session of 5 epochs, by the table of `Span`."""
    assert span == Span.of(saved, (2, 1), spec, last, epochs=5)


class TimmScheduler:
    """The face of timm's schedulers: the epoch is handed over, steps are told of, and a value may be watched."""

    def __init__(
        self, optimizer: optim.Optimizer, t_initial: int, lr_min: float = 0.0, t_in_epochs: bool = True
    ) -> None:
        self.optimizer = optimizer
        self.t_initial = t_initial
        self.lr_min = lr_min
        self.t_in_epochs = t_in_epochs
        self.calls: list[Any] = []
        self.base_values = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]

    def step(self, epoch: int, metric: float | None = None) -> None:
        self.calls.append((epoch, metric))
        if self.t_in_epochs:
            self._set(epoch)

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        self.calls.append(num_updates)
        if not self.t_in_epochs:
            self._set(num_updates)

    def _set(self, t: int) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_values, strict=True):
            group["lr"] = self.lr_min + (base - self.lr_min) * (1 - t / self.t_initial)

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "optimizer"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def calls_of(session: QuikSession) -> list[Any]:
    """What the scheduler was called with, over all calls of train()."""
    scheduler = session._runs.state.progress.optimizers[""].scheduler
    assert scheduler is not None
    calls: list[Any] = scheduler["calls"]
    return calls


def test_timm_is_handed_the_epoch_and_each_step() -> None:
    """After an epoch `step(epochs done, metric=loss)`, after a step `step_update(steps done)`, across calls."""
    session = regression(epochs=4, lr=0.1).set_scheduler(TimmScheduler)
    session.train(2)
    session.train(2)
    losses = list(session.history.valid_loss)
    expected = []
    for epoch in range(4):
        expected += [*range(epoch * STEPS + 1, (epoch + 1) * STEPS + 1), (epoch + 1, losses[epoch])]

    assert expected == calls_of(session)
    assert [0.1, 0.075, 0.05, 0.025] == pytest.approx(list(session.history.lr))


def test_timm_by_steps() -> None:
    """With `t_in_epochs=False` the total that is filled in counts steps."""
    session = regression(epochs=2, lr=0.1).set_scheduler(TimmScheduler, t_in_epochs=False)
    session.train()

    assert [0.1 * (1 - 6 / 14), 0.1 * (1 - 13 / 14)] == pytest.approx(list(session.history.lr))


def test_a_rate_set_on_the_way_stays_with_timm() -> None:
    """What `set_lr` sets is what the schedule goes on from."""
    session = regression(epochs=2, lr=0.1).set_scheduler(TimmScheduler)

    def halving(loop: Loop) -> None:
        for _ in loop.iter_epochs():
            for batch in loop.batches("train"):
                loop.train_step(batch)
            loop.end_epoch()
            loop.set_lr(loop.optimizer.param_groups[0]["lr"] / 2)

    session.traverse(halving)

    assert [0.1, 0.025] == pytest.approx(list(session.history.lr))


@pytest.mark.parametrize(
    ("scheduler", "takes"),
    [
        (lambda o: ExponentialLR(o, 0.9), StepArguments()),
        (lambda o: ReduceLROnPlateau(o), StepArguments(value=True, metric="metrics")),
        (lambda o: TimmScheduler(o, 3), StepArguments(epoch=True, metric="metric", steps=True)),
        (lambda o: None, StepArguments()),
    ],
)
def test_what_a_scheduler_is_called_with(scheduler: Any, takes: StepArguments) -> None:
    """It is read off its `step`, by the table of the module."""
    assert takes == StepArguments.of(scheduler(optim.SGD(network().parameters(), lr=0.1)))


def test_a_scheduler_that_watches_under_another_name() -> None:
    """A class of the user's own whose step needs a value gets the loss."""

    class Watching:
        def __init__(self, optimizer: optim.Optimizer) -> None:
            self.seen: list[float] = []

        def step(self, value: float) -> None:
            self.seen.append(value)

        def state_dict(self) -> dict[str, Any]:
            return {"calls": self.seen}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.seen = state["calls"]

    session = regression(epochs=2).set_scheduler(Watching)
    session.train()

    assert list(session.history.valid_loss) == calls_of(session)


@pytest.mark.parametrize("per", ["batch", "epoch"])
def test_a_scheduler_that_is_stepped_by_hand_too_is_reported(per: str) -> None:
    """A step by hand in a loop whose scheduler the session steps is told, with what to leave out."""

    def loop(session: Loop) -> None:
        for _ in session.iter_epochs():
            for x, y in session.loader("train"):
                loss = session.criterion(session.model(x), y)
                session.backward(loss)
                session.metrics.add_loss(loss)
                if per == "batch":
                    session.scheduler.step()
            if per == "epoch":
                session.scheduler.step()
            session.end_epoch()

    session = regression(epochs=2).set_scheduler(ExponentialLR, per=per, gamma=0.9)
    with pytest.warns(QuikWarning, match=r"ExponentialLR was stepped by hand.*leave scheduler\.step\(\) out") as told:
        session.traverse(loop)
    assert 1 == len(told)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (OneCycleLR, {"max_lr": 0.1}),
        (CosineAnnealingLR, {}),
        (ExponentialLR, {"gamma": 0.9, "per": "batch"}),
        (ReduceLROnPlateau, {"patience": 0}),
    ],
)
def test_nothing_is_reported_of_a_scheduler_that_the_session_steps(scheduler: Any, words: dict[str, Any]) -> None:
    """Two calls with a schedule of any kind are silent."""
    session = regression(epochs=4).set_scheduler(scheduler, **words)
    session.train(2)
    session.train(2)


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [(OneCycleLR, {"max_lr": 0.1}), (CyclicLR, {"base_lr": 0.01, "max_lr": 0.1, "cycle_momentum": False})],
)
def test_groups_that_get_one_rate_are_reported(scheduler: Any, words: dict[str, Any]) -> None:
    """A scheduler with one rate for all groups is told where they had several; a list of rates is not."""
    session = regression(epochs=1).set_optimizer(optim.SGD, groups={"3": {"lr": 0.2}}).set_scheduler(scheduler, **words)
    with pytest.warns(QuikWarning, match=r"one max_lr for all parameter groups.*max_lr=\[\.\.\.\]") as told:
        session.train()
    assert 1 == len(told)

    listed = regression(epochs=1).set_optimizer(optim.SGD, groups={"3": {"lr": 0.2}})
    lists = {key: [value, value] if isinstance(value, float) else value for key, value in words.items()}
    run = listed.set_scheduler(scheduler, **lists).train()
    assert {} == run.record.notices
