"""Several optimizers side by side, steps that yield, closures, and optimizers of a loop's own, against plain loops."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from harness.plain import SEED, distance, network, numbers, plain_loop, quiet, regression
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import ExponentialLR

from quik_nb import Loop, QuikSession, QuikWarning, RecipeError
from quik_nb.recipe.assignment import assigned
from quik_nb.training.rng import epoch_seed

EXACT = 1e-10
EVEN = 96
"""Samples of which two ranks have equal shares, as a loop that averages losses by itself needs them."""


class Together:
    """Several optimizers as one, for the plain loop."""

    def __init__(self, *optimizers: Any) -> None:
        self.optimizers = optimizers

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()


def named(model: nn.Module, ending: str) -> list[nn.Parameter]:
    """The parameters whose name ends so."""
    return [p for name, p in model.named_parameters() if name.endswith(ending)]


def without_optimizer(**settings: Any) -> QuikSession:
    """A session that lacks nothing but an optimizer."""
    session = quiet(**settings).add_data(train=numbers(), valid=numbers(37)).add_model(network())
    return session.set_criterion(nn.MSELoss)


def two(**settings: Any) -> QuikSession:
    """A session whose weights and biases have optimizers of their own, one with a schedule."""
    session = without_optimizer(**{"epochs": 2, "lr": 0.05, **settings})
    session.set_optimizer(optim.SGD, params="*.weight", name="matrices", momentum=0.9)
    session.set_optimizer(optim.Adam, name="rest", lr=0.02)
    return session.set_scheduler(ExponentialLR, optimizer="rest", gamma=0.5)


# ---------------------------------------------------------------------- side by side


@pytest.mark.parametrize("processes", [1, 2])
def test_two_optimizers_are_those_of_a_plain_loop(processes: int) -> None:
    """Each optimizer moves its part of the model, with its own schedule and its own column."""
    by_hand = network()
    matrices = optim.SGD(named(by_hand, "weight"), lr=0.05, momentum=0.9)
    rest = optim.Adam(named(by_hand, "bias"), lr=0.02)
    schedule = ExponentialLR(rest, gamma=0.5)
    both: Any = Together(matrices, rest)
    plain_loop(by_hand, numbers(), nn.MSELoss(), both, epochs=2, after_epoch=lambda loss: schedule.step())
    session = two()
    session.train(processes=processes)

    assert distance(by_hand, session.model) <= EXACT
    assert [0.05, 0.05] == list(session.history.lr)
    assert [0.02, 0.01] == list(session.history.lr_rest)


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"clip_norm": 0.1}])
def test_two_optimizers_go_on(settings: dict[str, Any]) -> None:
    """Two and two epochs equal four, with the moments and schedules of both optimizers."""
    four, parts = two(**settings), two(**settings)
    four.train(4)
    parts.train(2)
    parts.train(2)

    assert 0.0 == distance(four.model, parts.model)
    assert list(four.history.lr_rest) == list(parts.history.lr_rest)


def test_one_schedule_for_each_optimizer() -> None:
    """A scheduler that is set without a name is one of each optimizer."""
    session = without_optimizer(epochs=2).set_optimizer(optim.SGD, params="*.weight", name="a", lr=0.1)
    session.set_optimizer(optim.SGD, name="b", lr=0.3).set_scheduler(ExponentialLR, gamma=0.5).train()

    assert [0.1, 0.05] == list(session.history.lr)
    assert [0.3, 0.15] == list(session.history.lr_b)


def test_a_rate_is_set_for_all_alike() -> None:
    """A rate set on the way is that of the first optimizer, and scales those of the others."""
    session = without_optimizer(epochs=2).set_optimizer(optim.SGD, params="*.weight", name="a", lr=0.1)
    session.set_optimizer(optim.SGD, name="b", lr=0.3)

    def halving(loop: Loop) -> None:
        for _ in loop.iter_epochs():
            for batch in loop.batches("train"):
                loop.train_step(batch)
            loop.end_epoch()
            loop.set_lr(0.05)

    session.traverse(halving)

    assert [0.1, 0.05] == list(session.history.lr)
    assert [0.3, 0.15] == pytest.approx(list(session.history.lr_b))


def test_names_replace() -> None:
    """The same name replaces, another stands beside, and a call without a name replaces all."""
    session = two()
    assert {"matrices": ["0.weight", "3.weight"], "rest": ["0.bias", "3.bias"]} == assigned(session._recipe)

    session.set_optimizer(optim.RMSprop, params="0", name="matrices")
    assert {"matrices": ["0.weight", "0.bias"], "rest": ["3.weight", "3.bias"]} == assigned(session._recipe)

    session.set_optimizer(optim.SGD)
    assert [""] == list(session._recipe.optimizers)


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ([("*.weight", "a"), ("0", "b")], r"0\.weight is taken by 'a' and 'b'.*bias is trained by no optimizer"),
        ([("*.weight", "a")], r"0\.bias is trained by no optimizer and is not frozen.*freeze='0\.bias'"),
        ([(None, "a"), (None, "b")], "'a' and 'b' both take the parameters that no other takes"),
        ([("*", "a"), (None, "b")], "'b' has no parameters, as none are left for it"),
        ([("*.wait", "a"), (None, "b")], r"'\*\.wait' fits no parameter"),
    ],
)
def test_what_no_optimizer_or_two_train_is_said(calls: list[tuple[str | None, str]], words: str) -> None:
    """A parameter with two optimizers or with none is named before anything starts."""
    session = without_optimizer()
    for params, name in calls:
        session.set_optimizer(optim.SGD, params=params, name=name)
    with pytest.raises(RecipeError, match=f"(?s){words}"):
        session.train()


def test_one_rate_for_several_optimizers() -> None:
    """A rate for the call is that of all optimizers, and is refused where one has a rate of its own."""
    with pytest.raises(RecipeError, match=r"'rest' of 2 optimizers has a rate of its own.*name='rest', lr="):
        two().train(lr=0.1)

    session = without_optimizer(epochs=1).set_optimizer(optim.SGD, params="*.weight", name="a")
    session.set_optimizer(optim.SGD, name="b").train(lr=0.3)
    assert [0.3] == list(session.history.lr_b)


def test_schedule_of_an_unknown_optimizer() -> None:
    """The name of no optimizer is said, with the near one."""
    session = two().set_scheduler(ExponentialLR, optimizer="matrizes", gamma=0.5)
    with pytest.raises(RecipeError, match=r"optimizer='matrizes' .* did you mean 'matrices'"):
        session.train()


# ---------------------------------------------------------------------- made by functions


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("form", ["params", "model", "method"])
def test_functions_make_optimizers(form: str, processes: int) -> None:
    """A function of the parameters or of the model, or a method of the model, makes the optimizer where it trains."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)  # type: ignore[no-any-return]

        def configure_optimizers(self, rate: float) -> optim.Optimizer:
            return optim.SGD(self.parameters(), lr=rate)

    plain, net = regression(Net(), epochs=1, lr=0.1), Net()
    plain.train()
    session = regression(net, epochs=1)
    if form == "method":
        session.set_optimizer(net.configure_optimizers, rate=0.1)  # type: ignore[arg-type]
    elif form == "model":
        session.set_optimizer(lambda model: optim.SGD(model.parameters(), lr=0.1))  # type: ignore[arg-type]
    else:
        session.set_optimizer(lambda params: optim.SGD(params, lr=0.1))  # type: ignore[arg-type]
    session.train(processes=processes)

    assert distance(plain.model, session.model) <= EXACT


def test_optimizer_over_another_model() -> None:
    """A function that makes an optimizer over another model's weights is refused with the form that works."""
    other = network()
    session = regression().set_optimizer(lambda params: optim.SGD(other.parameters(), lr=0.1))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"4 of 4 parameters are none of this model.*lambda model"):
        session.train()


# ---------------------------------------------------------------------- steps that yield


class Gan(nn.Module):
    """Makes rows of 5 numbers out of 5, and tells them from real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = network(outputs=5)
        self.critic = network()


def gan_losses(model: Any, data: tuple[Tensor, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The losses of a batch in turn, the second of the generator that the first has stepped."""
    x, y = data
    real = x + y
    yield "generator", nn.functional.softplus(-model.critic(model.generator(x))).mean()
    fake = model.generator(x).detach()
    critic = nn.functional.softplus(model.critic(fake)) + nn.functional.softplus(-model.critic(real))
    yield "critic", critic.mean()


def gan_step(model: Any, criterion: Any, batch: Any) -> Iterator[tuple[str, Tensor]]:
    yield from gan_losses(model, batch)


def gan(**settings: Any) -> QuikSession:
    session = quiet(**{"epochs": 2, "lr": 0.05, **settings}).add_data(train=numbers(), valid=numbers(37))
    session.add_model(Gan()).set_step(gan_step)
    session.set_optimizer(optim.Adam, params="generator", name="generator", lr=0.01)
    return session.set_optimizer(optim.SGD, params="critic", name="critic")


def plain_gan(epochs: int, clip: float | None = None) -> tuple[nn.Module, list[dict[str, float]]]:
    """The same by hand: the weights, and the mean losses of each epoch."""
    model, (x, y) = Gan(), numbers()
    optimizers = {
        "generator": optim.Adam(model.generator.parameters(), lr=0.01),
        "critic": optim.SGD(model.critic.parameters(), lr=0.05),
    }
    parts = {"generator": model.generator, "critic": model.critic}
    rows = []
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch_seed(SEED, epoch)))
        sums = dict.fromkeys(optimizers, 0.0)
        for rows_of_batch in order.split(16):
            for name, loss in gan_losses(model, (x[rows_of_batch], y[rows_of_batch])):
                model.zero_grad()
                loss.backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(parts[name].parameters(), clip)
                optimizers[name].step()
                sums[name] += loss.item() * len(rows_of_batch) / len(x)
        rows.append(sums)
    return model, rows


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_gan_by_yields_is_that_of_a_plain_loop(processes: int, clip: float | None) -> None:
    """Where a step yields, that optimizer is stepped by that loss alone; each loss has a column."""
    model, rows = plain_gan(2, clip)
    session = gan(clip_norm=clip)
    session.train(processes=processes)

    assert distance(model, session.model) <= EXACT
    for name in ("generator", "critic"):
        assert [row[name] for row in rows] == pytest.approx(list(session.history[f"{name}_loss"]), abs=EXACT)
        assert f"valid_{name}_loss" in session.history
    sums = [sum(row.values()) for row in rows]
    assert sums == pytest.approx(list(session.history.train_loss), abs=EXACT)


def test_a_gan_continues() -> None:
    """Two and two epochs equal four, with the moments of both optimizers."""
    four, parts = gan(), gan()
    four.train(4)
    parts.train(2)
    parts.train(2, processes=2)

    assert distance(four.model, parts.model) <= EXACT


def test_a_step_that_yields_may_return_its_loss() -> None:
    """What a step returns at its end is its loss and its outputs."""

    def step(model: Any, criterion: Any, batch: Any) -> Any:
        yield from gan_losses(model, batch)
        return torch.tensor(2.0), model.generator(batch[0])

    session = gan(epochs=1).set_step(step).set_metrics(size=lambda outputs, targets: float(len(outputs)))
    session.train()

    assert [2.0] == list(session.history.train_loss)
    assert [37.0] == list(session.history["size"])


def without_a_name(model: Any, criterion: Any, batch: Any) -> Any:
    yield model.critic(batch[0]).mean()


def with_an_unknown_name(model: Any, criterion: Any, batch: Any) -> Any:
    yield "critik", model.critic(batch[0]).mean()


def with_many_numbers(model: Any, criterion: Any, batch: Any) -> Any:
    yield "critic", model.critic(batch[0])


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (without_a_name, r"yielded a Tensor.*yield \('name of the optimizer', loss"),
        (with_an_unknown_name, "no optimizer 'critik'.*did you mean 'critic'"),
        (with_many_numbers, r"'critic' with a loss of shape \(16, 1\).*loss\.mean"),
    ],
)
def test_what_a_step_yields_wrongly_is_said(step: Callable[..., Any], words: str) -> None:
    """A yield of something else ends with the form to use."""
    with pytest.raises(RecipeError, match=words):
        gan().set_step(step).train()


def test_yields_and_accumulate() -> None:
    """Micro-batches of a step that yields are refused with the reason."""
    with pytest.raises(
        RecipeError, match="accumulate=2 was asked for, and this step yields losses: an optimizer steps"
    ):
        gan(accumulate=2).train()


# ---------------------------------------------------------------------- closures


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"processes": 2}])
def test_lbfgs_is_that_of_a_plain_loop(settings: dict[str, Any], search: str | None) -> None:
    """LBFGS asks for the loss of the whole step again and again, over all micro-batches and ranks."""
    words: dict[str, Any] = {"lr": 0.5, "max_iter": 4, "history_size": 5, "line_search_fn": search}
    by_hand, (x, y) = network(), numbers()
    optimizer = optim.LBFGS(by_hand.parameters(), **words)
    means = []
    for epoch in range(2):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch_seed(SEED, epoch)))
        total = 0.0
        for rows in order.split(16):

            def closure(rows: Tensor = rows) -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(by_hand(x[rows]), y[rows])
                loss.backward()
                return loss

            total += optimizer.step(closure).item() * len(rows)  # type: ignore[arg-type,attr-defined]
        means.append(total / len(x))
    session = regression(epochs=2, **settings).set_optimizer(optim.LBFGS, **words)
    session.train()

    assert means == pytest.approx(list(session.history.train_loss), abs=1e-8)
    assert distance(by_hand, session.model) <= 1e-7


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"precision": "fp16"}, "fp16 scales losses"), ({"clip_norm": 1.0}, "leave out clip_norm= and clip_value=")],
)
def test_what_a_closure_cannot_be_with(settings: dict[str, Any], words: str) -> None:
    """fp16 and clipping are refused beside an optimizer that takes a closure."""
    with pytest.raises(RecipeError, match=words):
        regression(**settings).set_optimizer(optim.LBFGS).train()


def test_a_function_makes_an_optimizer_that_takes_a_closure() -> None:
    """It is the optimizer that is made which counts, not what makes it."""
    made, by_class = regression(epochs=1), regression(epochs=1)
    made.set_optimizer(lambda params: optim.LBFGS(params, lr=0.5, max_iter=3))  # type: ignore[arg-type]
    made.train()
    by_class.set_optimizer(optim.LBFGS, lr=0.5, max_iter=3).train()

    assert 0.0 == distance(made.model, by_class.model)


def test_closure_and_the_loss_of_a_loop() -> None:
    """A loop's own backward cannot be asked again, and says what to call instead."""

    def loop(session: Loop) -> None:
        for x, y in session.loader("train"):
            session.backward(session.criterion(session.model(x), y))

    with pytest.raises(RecipeError, match=r"session\.optimizer\.step\(closure\)"):
        regression().set_optimizer(optim.LBFGS).traverse(loop)


# ---------------------------------------------------------------------- loops of one's own


def registering(rate: float = 0.01) -> Callable[[Loop], None]:
    """A loop that brings its own optimizer and has it kept."""

    def loop(session: Loop) -> None:
        optimizer = session.register("main", optim.Adam(session.model.parameters(), lr=rate))
        for _ in session.iter_epochs():
            for x, y in session.loader("train"):
                loss = nn.functional.mse_loss(session.model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                session.metrics.add_loss(loss)
            session.end_epoch()

    return loop


def bare(**settings: Any) -> QuikSession:
    """A session with data and a model, and neither criterion nor optimizer."""
    return quiet(**settings).add_data(train=numbers(EVEN)).add_model(network())


@pytest.mark.parametrize("processes", [1, 2])
def test_registered_optimizers_go_on(processes: int) -> None:
    """One and two epochs equal three of the plain loop, and the rate is shown."""
    by_hand = network()
    plain_loop(by_hand, numbers(EVEN), nn.MSELoss(), optim.Adam(by_hand.parameters(), lr=0.01), epochs=3)
    session = bare()
    session.traverse(registering(), epochs=1, processes=processes)
    session.traverse(registering(), epochs=2)

    assert distance(by_hand, session.model) <= EXACT
    assert [0.01] * 3 == list(session.history.lr)


def test_a_learning_rate_that_the_loop_sets_again_counts() -> None:
    """A registered optimizer goes on with its moments, and with the rate that its loop gives now."""
    session = bare()
    session.traverse(registering(0.01), epochs=1)
    session.traverse(registering(0.002), epochs=1)

    assert [0.01, 0.002] == list(session.history.lr)
    assert [2 * EVEN // 16] == [int(s["step"]) for s in saved(session, "main")["state"].values()][:1]


def saved(session: QuikSession, name: str) -> dict[str, Any]:
    """The state of a registered object after the last row."""
    state: dict[str, Any] = session._runs.state.progress.registered[name]["state"]
    return state


@pytest.mark.parametrize("processes", [1, 2])
def test_a_gan_in_a_loop(processes: int) -> None:
    """`backward(loss, name)` does in a loop what a yield does in a step."""
    model, _ = plain_gan(2)

    def loop(session: Loop) -> None:
        net: Any = session.model
        session.register("generator", optim.Adam(net.generator.parameters(), lr=0.01))
        session.register("critic", optim.SGD(net.critic.parameters(), lr=0.05))
        for _ in session.iter_epochs():
            for batch in session.loader("train"):
                for name, loss in gan_losses(net, batch):
                    session.backward(loss, name)
                session.metrics.add_loss(loss)
            session.end_epoch()

    session = quiet(epochs=2).add_data(train=numbers()).add_model(Gan())
    session.traverse(loop, processes=processes)

    assert distance(model, session.model) <= EXACT
    assert [0.01, 0.01] == list(session.history.lr)
    assert [0.05, 0.05] == list(session.history.lr_critic)


def test_a_critic_of_the_loop_is_trained_alike_on_all_ranks() -> None:
    """What a registered optimizer trains outside of the model has the same gradients on all ranks, and is kept."""

    def loop(session: Loop) -> None:
        head = session.register("head", network())
        optimizer = session.register("main", optim.SGD(head.parameters(), lr=0.1))
        for _ in session.iter_epochs():
            for x, y in session.loader("train"):
                loss = nn.functional.mse_loss(session.model(x) + head(x), y)
                session.backward(loss, "main")
                session.metrics.add_loss(loss)
            session.end_epoch()
        assert optimizer.param_groups

    one, both = bare(epochs=2), bare(epochs=2)
    one.traverse(loop)
    both.traverse(loop, processes=2)

    assert distance(saved(one, "head"), saved(both, "head")) <= EXACT
    assert distance(network(), saved(one, "head")) > 0.01


@pytest.mark.parametrize(
    ("name", "thing", "words"),
    [
        ("a b", optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), "pass a word"),
        ("main", object(), "has no state_dict and load_state_dict"),
    ],
)
def test_what_cannot_be_registered(name: str, thing: Any, words: str) -> None:
    """A name that is no word, and an object without a state, are refused."""
    with pytest.raises(RecipeError, match=words):
        bare().traverse(lambda session: session.register(name, thing))


def test_a_loop_needs_what_it_uses() -> None:
    """A loop with its own data, loss and optimizer needs nothing but the model; what it asks for and is not there is
    named."""

    def episodes(session: Loop) -> None:
        optimizer = session.register("main", optim.SGD(session.model.parameters(), lr=0.1))
        x, y = numbers(16)
        for _ in session.iter_epochs():
            loss = nn.functional.mse_loss(session.model(x), y)
            session.backward(loss, "main")
            session.metrics.add_loss(loss)
            session.end_epoch()
        assert optimizer.param_groups

    session = quiet(epochs=3).add_model(network())
    session.traverse(episodes)

    assert session.history.train_loss[2] < session.history.train_loss[0]
    assert [0.1] * 3 == list(session.history.lr)
    for asks, words in (
        (lambda s: s.criterion, "set_criterion"),
        (lambda s: s.optimizer, r"session\.register"),
        (lambda s: s.loader("train"), r"add_data\(train="),
        (lambda s: s.backward(s.model(numbers()[0]).sum()), "set_optimizer"),
    ):
        with pytest.raises(RecipeError, match=words):
            quiet().add_model(network()).traverse(lambda s, asks=asks: list(asks(s) or ()))


def test_a_loop_takes_samples_without_a_target() -> None:
    """Inputs alone are no fault in a loop whose loss needs no target."""

    def autoencode(session: Loop) -> None:
        for _ in session.iter_epochs():
            for (x,) in session.loader("train"):
                loss = (session.model(x) - x).square().mean()
                session.backward(loss)
                session.metrics.add_loss(loss)
            session.end_epoch()

    session = quiet(epochs=2, lr=0.1).add_data(train=numbers()[0]).add_model(network(outputs=5))
    session.set_optimizer(optim.SGD).traverse(autoencode)

    assert session.history.train_loss[1] < session.history.train_loss[0]


# ---------------------------------------------------------------------- what trains nothing is told


def idle(session: Loop) -> None:
    for _ in session.iter_epochs():
        for x, y in session.loader("train"):
            session.metrics.add_loss(session.criterion(session.model(x), y))
        session.end_epoch()


def stepping_a_copy(session: Loop) -> None:
    twin = deepcopy(session.model)
    optimizer = optim.SGD(twin.parameters(), lr=0.1)
    for _ in session.iter_epochs():
        for x, y in session.loader("train"):
            loss = session.criterion(twin(x), y)
            loss.backward()
            optimizer.step()
            session.metrics.add_loss(loss)
        session.end_epoch()


@pytest.mark.parametrize(
    ("loop", "words"),
    [(idle, "No optimizer made a step in an epoch"), (stepping_a_copy, "parameters are none of session.model")],
)
def test_a_loop_that_trains_nothing_is_reported(loop: Callable[[Loop], None], words: str) -> None:
    """An epoch without a step, and steps of another model's optimizer, are told once."""
    with pytest.warns(QuikWarning, match=words) as told:
        regression(epochs=2).traverse(loop)
    assert 1 == len(told)


def test_gradients_of_zero_are_reported() -> None:
    """A loss that has no slope in any parameter is told, and trains nothing."""
    session = regression(epochs=1).set_step(lambda model, criterion, batch: (model(batch[0]) * 0.0).sum())
    with pytest.warns(QuikWarning, match="All gradients are zero"):
        session.train()


@pytest.mark.filterwarnings("error")
def test_one_gradient_is_enough() -> None:
    """Nothing is told where a part of the model has gradients, whatever the rest does."""
    regression(epochs=1).set_step(lambda model, criterion, batch: model[3].bias.square().sum()).train()


def test_sparse_gradients_are_clipped() -> None:
    """The norm of sparse gradients is that of the same model with dense ones."""

    class Rows(nn.Module):
        def __init__(self, sparse: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rows = nn.Embedding(7, 1, sparse=sparse).double()

        def forward(self, i: Tensor) -> Tensor:
            return self.rows(i)[:, 0]  # type: ignore[no-any-return]

    i, y = torch.arange(60) % 5, torch.linspace(0, 3, 60, dtype=torch.float64)
    sessions = [
        quiet(epochs=2, clip_norm=0.1, lr=0.5).add_data(train=(i, y)).add_model(Rows(sparse))
        for sparse in (True, False)
    ]
    for session in sessions:
        session.set_criterion(nn.MSELoss).set_optimizer(optim.SGD).train()

    assert distance(sessions[1].model, sessions[0].model) <= EXACT
    assert list(sessions[1].history.grad_norm) == pytest.approx(list(sessions[0].history.grad_norm))
