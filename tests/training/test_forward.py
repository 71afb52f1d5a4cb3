"""Criteria whose mean is not over samples: class weights and ignored labels are counted, then divided by once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness.plain import classes, distance, network, plain_loop, quiet, regression
from torch import Tensor, nn, optim

from quik_nb import QuikSession

ROUNDING = 1e-12
WEIGHT = torch.tensor([0.2, 1.0, 7.0], dtype=torch.float64)

Data = tuple[Tensor, Tensor]


def some_ignored(samples: int = 101, ignored: int = -100) -> Data:
    """Classes of which every third is not to count."""
    x, y = classes(samples)
    y[::3] = ignored
    return x, y


CRITERIA: list[tuple[dict[str, Any], Callable[..., Data]]] = [
    ({"weight": WEIGHT}, classes),
    ({}, some_ignored),
    ({"ignore_index": 2}, classes),
    ({"weight": WEIGHT, "label_smoothing": 0.1}, some_ignored),
]


def classifier(data: Data, criterion: Any = nn.CrossEntropyLoss, accumulate: int = 1, **keywords: Any) -> QuikSession:
    """A session that could train `network` on classes."""
    session = quiet(epochs=3, lr=0.1, accumulate=accumulate).add_data(train=data, valid=classes(37))
    return session.add_model(network(3)).set_criterion(criterion, **keywords).set_optimizer(optim.SGD)


@pytest.mark.parametrize("accumulate", [1, 4, 16])
@pytest.mark.parametrize(("keywords", "make"), CRITERIA)
def test_steps_are_those_of_the_plain_loop(
    keywords: dict[str, Any], make: Callable[..., Data], accumulate: int
) -> None:
    """Each optimizer step has the gradient of the criterion over its whole batch, in however many pieces."""
    by_hand = network(3)
    optimizer = optim.SGD(by_hand.parameters(), lr=0.1)
    plain_loop(by_hand, make(), nn.CrossEntropyLoss(**keywords), optimizer, epochs=3)
    session = classifier(make(), accumulate=accumulate, **keywords)
    session.train()

    assert distance(by_hand, session.model) <= ROUNDING


@pytest.mark.parametrize(("keywords", "make"), CRITERIA)
def test_history_is_the_criterion_over_the_whole_split(keywords: dict[str, Any], make: Callable[..., Data]) -> None:
    """train_loss and valid_loss are what the criterion gives on all samples at once."""
    session = classifier(make(), **keywords).add_data(train=make(), valid=make(1000))
    session.train(epochs=1, lr=1e-300)
    with torch.no_grad():
        expected = [nn.CrossEntropyLoss(**keywords)(network(3)(x), y).item() for x, y in (make(), make(1000))]

    assert expected == pytest.approx(list(session.history.loc[0, ["train_loss", "valid_loss"]]), abs=ROUNDING)


def test_the_function_is_the_class() -> None:
    """`F.cross_entropy` with weights is treated as `nn.CrossEntropyLoss` is."""
    as_class = classifier(classes(), weight=WEIGHT, accumulate=4)
    as_function = classifier(classes(), F.cross_entropy, weight=WEIGHT, accumulate=4)
    as_class.train()
    as_function.train()

    assert 0.0 == distance(as_class.model, as_function.model)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_function_that_sums(accumulate: int) -> None:
    """`reduction="sum"` is understood of a function, too."""
    as_class = classifier(classes(), nn.CrossEntropyLoss, reduction="sum", accumulate=accumulate)
    as_function = classifier(classes(), F.cross_entropy, reduction="sum", accumulate=accumulate)
    as_class.train(lr=0.001)
    as_function.train(lr=0.001)

    assert 0.0 == distance(as_class.model, as_function.model)
    assert list(as_class.history["train_loss"]) == list(as_function.history["train_loss"])


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_batch_in_which_nothing_counts(accumulate: int) -> None:
    """A batch of ignored labels moves no weight and spoils no mean."""
    x, y = classes()
    y[5:] = -100  # most batches have none of the other five
    session = classifier((x, y), accumulate=accumulate)
    session.train()

    assert session.history["train_loss"].notna().all()
    assert all(value.isfinite().all() for value in session.model.state_dict().values())


def test_class_probabilities_count_by_sample() -> None:
    """Targets that are probabilities have nothing to ignore and are averaged over samples."""
    x, y = classes()
    soft = F.one_hot(y, 3).double() * 0.8 + 0.2 / 3
    whole, cut = classifier((x, soft)), classifier((x, soft), accumulate=4)
    whole.add_data(train=(x, soft)).train()
    cut.add_data(train=(x, soft)).train()

    assert distance(whole.model, cut.model) <= ROUNDING


def test_a_stop_keeps_the_counts() -> None:
    """The sums of an unfinished epoch go on where they stood, also where they count weights."""
    session, straight = classifier(classes(), weight=WEIGHT), classifier(classes(), weight=WEIGHT)
    straight.train(epochs=1)
    seen = 0

    def stopping(model: nn.Module, inputs: Any) -> None:
        nonlocal seen
        seen += model.training
        if seen == 3 and session.run is not None:
            session.run.stop()

    handle = session.model.register_forward_pre_hook(stopping)
    session.train(epochs=1)
    handle.remove()
    session.train(epochs=1)

    assert straight.history["train_loss"][0] == session.history["train_loss"][0]


def own_step(model: nn.Module, criterion: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """What the default step does, typed by the user."""
    x, y = batch
    outputs = model(x)
    return criterion(outputs, y), outputs


def own_loop(session: Any) -> None:
    """What the default loop does, typed by the user, with a look at other samples in between."""
    for _ in session.iter_epochs():
        for x, y in session.loader("train"):
            loss = session.criterion(session.model(x), y)
            session.backward(loss)
            session.metrics.add_loss(loss)
            with torch.no_grad():
                session.criterion(session.model(x), y)
        session.end_epoch()


@pytest.mark.parametrize("ranks", [{}, {"accumulate": 4}, {"processes": 2}, {"processes": 2, "accumulate": 2}])
@pytest.mark.parametrize("how", ["step", "loop"])
def test_a_custom_step_counts_samples_like_the_default(how: str, ranks: dict[str, Any]) -> None:
    """A step or loop that calls a criterion with weights itself has the same numbers, in parts and on ranks too."""
    default, own = (classifier(some_ignored(), weight=WEIGHT).add_data(train=some_ignored(), valid=0.2) for _ in "ab")
    default.train()
    if how == "step":
        own.set_step(own_step).train(**ranks)
    else:
        own.traverse(own_loop, **ranks)

    columns = ["train_loss", "valid_loss"]
    assert default.history[columns].values == pytest.approx(own.history[columns].values, abs=1e-9)
    assert distance(default.model, own.model) <= 1e-9


def test_the_users_criterion_is_given_back() -> None:
    """An instance that was listened to has no hook of ours afterwards."""
    criterion = nn.CrossEntropyLoss(weight=WEIGHT)
    classifier(classes(), criterion).set_step(own_step).train(epochs=1)

    assert {} == dict(criterion._forward_hooks)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_knows_where_a_split_begins(accumulate: int) -> None:
    """`step` counts batches, micro-batches one by one: a state that is dropped at 0 is dropped once for each split."""
    seen: list[tuple[str, int, int]] = []

    def step(model: Any, criterion: Any, batch: Any, split: str, epoch: int, step: int) -> Any:
        seen.append((split, epoch, step))
        return criterion(model(batch[0]), batch[1])

    session = regression(epochs=2, accumulate=accumulate).set_step(step, reduction="mean")
    session.train()
    trained = [count for split, epoch, count in seen if (split, epoch) == ("train", 1)]

    assert list(range(len(trained))) == trained
    assert len(trained) >= 7 * accumulate
