"""What a loss of the user's own is a mean over: found out once, without a trace, and told where parts change it."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness.plain import SEED, distance, network, numbers, quiet
from torch import Tensor, nn, optim

from quik_nb import QuikSession, QuikWarning, RecipeError, StepOutput, StopTraining, WorkerError
from quik_nb.training.rng import epoch_seed

WAYS = [{}, {"accumulate": 2}, {"processes": 2}]
"""In one piece, in parts, on ranks."""

Step = Callable[..., Any]


def summed(model: nn.Module, criterion: Any, batch: Any) -> Tensor:
    """Adds up over the samples."""
    return (model(batch[0]) - batch[1]).square().sum()


def added_one_by_one(model: nn.Module, criterion: Any, batch: Any) -> Any:
    """Adds up in a loop, as one who thinks in samples does."""
    loss: Any = 0.0
    for x, y in zip(*batch, strict=True):
        loss = loss + (model(x) - y).square().sum()
    return loss


def halved(model: nn.Module, criterion: Any, batch: Any) -> Tensor:
    """A sum of two terms, of which one is weighted."""
    outputs = model(batch[0])
    return F.mse_loss(outputs, batch[1], reduction="sum") + 0.5 * outputs.square().sum()


def divided(model: nn.Module, criterion: Any, batch: Any) -> Tensor:
    """A mean by hand."""
    return (model(batch[0]) - batch[1]).square().sum() / len(batch[0])


def noisy(model: nn.Module, criterion: Any, batch: Any) -> Tensor:
    """A mean that draws random numbers."""
    outputs = model(batch[0])
    return (outputs + 0.1 * torch.randn_like(outputs) - batch[1]).square().mean()


def contrastive(model: nn.Module, criterion: Any, batch: Any) -> Tensor:
    """Compares the samples of a batch with each other."""
    z = F.normalize(model(batch[0]))
    return F.cross_entropy(z @ z.T / 0.1, torch.arange(len(z)))


def words(model: nn.Module, criterion: Any, batch: Any) -> Tensor:
    """A mean over something that is not samples: what is above zero."""
    x, y = batch
    counts = (x > 0).sum(1, keepdim=True)
    return ((model(x) - y).square() * counts).sum() / counts.sum()


def counted_words(model: nn.Module, criterion: Any, batch: Any) -> StepOutput:
    """The same, and says over what."""
    return StepOutput(words(model, criterion, batch), count=(batch[0] > 0).sum())


def session(step: Step, reduction: str | None = None, outputs: int = 1, **settings: Any) -> QuikSession:
    """A session that could train by a step."""
    made = quiet(epochs=2, lr=0.001, **settings).add_data(train=numbers(), valid=numbers(37))
    return made.add_model(network(outputs)).set_optimizer(optim.SGD).set_step(step, reduction=reduction)


def told(act: Callable[[], object]) -> list[str]:
    """What the user is told while something is done."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(each.message) for each in caught if issubclass(each.category, QuikWarning)]


def by_hand(step: Step) -> tuple[nn.Module, list[float]]:
    """The model and the mean losses of the plain loop."""
    model, (x, y) = network(), numbers()
    optimizer, means = optim.SGD(model.parameters(), lr=0.001), []
    for epoch in range(2):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch_seed(SEED, epoch)))
        total = 0.0
        for rows in order.split(16):
            loss = step(model, None, (x[rows], y[rows]))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()
        means.append(total / len(x))
    return model, means


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", [summed, halved])
def test_a_sum_is_found_out(step: Step, way: dict[str, Any]) -> None:
    """A step that adds up has the plain loop's steps, in parts too; the history shows the mean; it is told once."""
    model, means = by_hand(step)
    trained = session(step, **way)
    messages = told(trained.train)

    assert distance(model, trained.model) <= 1e-12
    assert means == pytest.approx(list(trained.history.train_loss), abs=1e-12)
    assert [True] == ["set_step(step, reduction='sum')" in message for message in messages]
    assert trained.evaluate("valid")["loss"] == pytest.approx(trained.history.valid_loss.iloc[-1], abs=1e-12)


def test_a_sum_in_a_loop_is_found_out_in_parts() -> None:
    """Where the graph does not show it, the values of parts do."""
    model, means = by_hand(summed)
    trained = session(added_one_by_one, accumulate=4)

    assert 1 == len(told(trained.train))
    assert distance(model, trained.model) <= 1e-12
    assert means == pytest.approx(list(trained.history.train_loss), abs=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_an_explicit_sum_is_not_reported(way: dict[str, Any]) -> None:
    """set_step(fn, reduction="sum") and StepOutput(reduction="sum") are the same, and no word is said."""
    said = session(summed, "sum", **way)
    as_output = session(lambda m, c, b: StepOutput(summed(m, c, b), reduction="sum"), **way)

    assert [] == told(said.train) + told(as_output.train)
    assert 0.0 == distance(said.model, as_output.model)
    assert by_hand(summed)[1] == pytest.approx(list(said.history.train_loss), abs=1e-12)


@pytest.mark.parametrize("step", [divided, noisy, counted_words])
@pytest.mark.parametrize("way", WAYS[:2])
def test_a_mean_is_not_reported(step: Step, way: dict[str, Any]) -> None:
    """A mean over samples, random numbers in it or not, and a mean over what the step says, pass without a word."""
    assert [] == told(session(step, **way).train)


@pytest.mark.parametrize(("step", "outputs"), [(contrastive, 4), (words, 1)])
@pytest.mark.parametrize("way", WAYS)
def test_a_loss_that_parts_change_is_reported(step: Step, outputs: int, way: dict[str, Any]) -> None:
    """A loss over the whole batch is told where the batch comes in parts, and nowhere else."""
    messages = told(session(step, outputs=outputs, **way).train)
    expected = [f"With {name}={value} " for name, value in way.items()]

    assert [True] * len(expected) == [part in message for part, message in zip(expected, messages, strict=True)]


def test_a_criterion_over_the_batch_is_reported() -> None:
    """The same holds for a criterion of one's own."""

    class Spread(nn.Module):
        def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
            return F.mse_loss(outputs, target) - outputs.std(correction=0)

    made = quiet(epochs=1, accumulate=2).add_data(train=numbers()).add_model(network())
    made.set_optimizer(optim.SGD).set_criterion(Spread)

    assert ["this criterion"] == [part for part in ["this criterion"] if part in told(made.train)[0]]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_counted_is_exact(way: dict[str, Any]) -> None:
    """A count makes parts equal to the whole."""
    whole, parts = session(counted_words), session(counted_words, **way)
    whole.train()
    parts.train()

    assert distance(whole.model, parts.model) <= 1e-12
    assert list(whole.history.train_loss) == pytest.approx(list(parts.history.train_loss), abs=1e-12)


def test_asking_leaves_no_trace() -> None:
    """Lists of the notebook, attributes and buffers of the model, and random numbers are as if nobody had asked."""
    seen: list[int] = []

    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm = network(), nn.BatchNorm1d(5, dtype=torch.float64)
            self.calls = 0

        def forward(self, x: Tensor) -> Any:
            self.calls += 1
            return self.inner(self.norm(x) + 0.01 * torch.rand_like(x))

    def step(model: Any, criterion: Any, batch: Any) -> Tensor:
        seen.append(len(batch[0]))
        return summed(model, criterion, batch)

    asked, said = Remembers(), Remembers()
    first = session(step, accumulate=2).add_model(asked)
    told(lambda: first.train(epochs=1))
    count, calls = len(seen), asked.calls
    second = session(step, "sum", accumulate=2).add_model(said)
    second.train(epochs=1)

    assert (len(seen) - count, said.calls) == (count, calls)
    assert first.history.train_loss[0] == second.history.train_loss[0]
    assert 0.0 == distance(asked, said)


@pytest.mark.parametrize("way", WAYS)
def test_values_are_columns(way: dict[str, Any]) -> None:
    """Further numbers of a step are columns NAME and valid_NAME, exact over samples, parts and ranks."""

    def step(model: Any, criterion: Any, batch: Any) -> StepOutput:
        x, y = batch
        return StepOutput((model(x) - y).square().mean(), values={"size": x.square().mean(), "first": float(x[0, 0])})

    trained = session(step, **way)
    trained.train(epochs=1)
    row = trained.history.iloc[0]

    assert float(numbers()[0].square().mean()) == pytest.approx(row["size"], abs=1e-12)
    assert float(numbers(37)[0].square().mean()) == pytest.approx(row.valid_size, abs=1e-12)


def test_numbers_of_a_loop_are_columns() -> None:
    """`session.metrics.add(size=...)` in a loop makes the column that `values` makes in a step."""

    def loop(session: Any) -> None:
        for _ in session.iter_epochs():
            for x, y in session.loader("train"):
                loss = (session.model(x) - y).square().mean()
                session.backward(loss)
                session.metrics.add_loss(loss)
                session.metrics.add(size=x.square().mean())
            session.end_epoch()

    made = quiet(epochs=1).add_data(train=numbers()).add_model(network())
    made.set_optimizer(optim.SGD).set_criterion(nn.MSELoss).traverse(loop)

    assert float(numbers()[0].square().mean()) == pytest.approx(made.history["size"][0], abs=1e-12)


def test_a_step_knows_where_it_is() -> None:
    """split, epoch, step and world are passed by name; `step` is 0 where a split begins."""
    seen: list[tuple[Any, ...]] = []

    def step(model: Any, criterion: Any, batch: Any, split: str, epoch: int, *, step: int, world: Any) -> Tensor:
        seen.append((split, epoch, step, world.world_size))
        return divided(model, criterion, batch)

    trained = session(step, batch_size=51)
    trained.train()
    evaluated = len(seen)
    trained.evaluate("valid")

    per_epoch = [("train", 0), ("train", 1), ("valid", 0)]
    expected = [(split, epoch, number, 1) for epoch in range(2) for split, number in per_epoch]
    assert expected == seen[:evaluated]
    assert {("valid", 0)} == {(split, number) for split, _, number, _ in seen[evaluated:]}


@pytest.mark.parametrize("way", WAYS)
def test_stop_training_in_a_step(way: dict[str, Any]) -> None:
    """It ends the run as Stop does, without this step's update; the next call goes on there."""

    def step(model: Any, criterion: Any, batch: Any, epoch: int, step: int) -> Tensor:
        if stopping and (epoch, step) == (1, 3 * way.get("accumulate", 1)):  # `step` counts micro-batches
            raise StopTraining
        return divided(model, criterion, batch)

    stopping, straight = True, session(divided, **way)
    straight.train()
    stopped = session(step, **way)
    run = stopped.train()

    assert ("stopped", 2) == (run.state, len(stopped.history))
    assert 3 / 7 == pytest.approx(stopped.history.fraction.iloc[-1])
    stopping = False
    stopped.train(epochs=1)
    assert distance(straight.model, stopped.model) <= 1e-12
    assert list(straight.history.train_loss) == pytest.approx(list(stopped.history.train_loss), abs=1e-12)


def test_stop_training_on_one_rank_only() -> None:
    """Ranks that do not stop together end within seconds, with an error that names rank and step."""

    def step(model: Any, criterion: Any, batch: Any, step: int, world: Any) -> Tensor:
        if (world.rank, step) == (1, 2):
            raise StopTraining
        return divided(model, criterion, batch)

    with pytest.raises(WorkerError, match=r"raised on rank 1 in step 2 of epoch 0, and not on rank 0"):
        session(step, processes=2).train()


def test_wrong_words_are_refused() -> None:
    """A reduction that is none, and values without names."""
    with pytest.raises(RecipeError, match="reduction='total' is not known"):
        session(divided, "total")
    with pytest.raises(RecipeError, match="use values="):
        session(lambda m, c, b: StepOutput(divided(m, c, b), values=[1.0])).train()  # type: ignore[arg-type]
