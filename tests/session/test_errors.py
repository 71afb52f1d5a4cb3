"""What goes wrong is said at once and in words, and afterwards the session trains."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness.plain import classes, distance, network, numbers, quiet, regression
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler

from quik_nb import QuikError, QuikSession, RecipeError

Change = Callable[[QuikSession], object]


def test_every_missing_step_in_one_message() -> None:
    """An empty session lists all that is still to type."""
    with pytest.raises(RecipeError) as caught:
        quiet().train()

    assert [
        "    .add_data(train=(x, y), valid=0.2)",
        "    .add_model(Net())",
        "    .set_criterion(nn.CrossEntropyLoss)",
        "    .set_optimizer(optim.AdamW)",
    ] == str(caught.value).splitlines()[1:]


def test_steps_come_in_any_order() -> None:
    """The four steps can be taken in any order."""
    steps: list[Change] = [
        lambda s: s.set_optimizer(optim.SGD),
        lambda s: s.set_criterion(nn.MSELoss),
        lambda s: s.add_model(network()),
        lambda s: s.add_data(train=numbers()),
    ]
    for order in (steps, steps[::-1]):
        session = quiet(epochs=1)
        for step in order:
            assert session is step(session)
        session.train()

        assert 1 == len(session.history)


AT_ONCE: dict[str, tuple[Change, str]] = {
    "setting": (lambda s: QuikSession(epcohs=3), "no setting 'epcohs': did you mean 'epochs'"),
    "settings": (lambda s: QuikSession(epochs=0, batch_size=-1, lr="x"), "epochs=0.*batch_size=-1.*lr='x'"),
    "change": (lambda s: s.train(epoch=3), "no setting 'epoch': did you mean 'epochs'"),
    "value": (lambda s: s.train(precision="fp61"), "precision='fp61' is not known; did you mean 'fp16'"),
    "device": (lambda s: s.train(device="cuda:77"), "device='cuda:77' was asked for, and this machine has"),
    "split of a step": (lambda s: s.set_scheduler(lr_scheduler.StepLR, per="bach"), "per='bach'"),
    "model": (lambda s: s.add_model("Net"), "takes a module such as Net"),
    "maker": (lambda s: s.add_model(lambda: 5), "gave a int, not a module|gave an int, not a module"),
    "optimizer made": (lambda s: s.set_optimizer(optim.SGD(network().parameters())), r"type set_optimizer\(SGD, ...\)"),
    "criterion made": (lambda s: s.set_criterion(nn.MSELoss(), reduction="sum"), "is made already, so reduction"),
    "criterion": (lambda s: s.set_criterion("mse"), "takes a class and its keywords, and got str 'mse'"),
    "metric": (lambda s: s.set_metrics(accuracy=0.9), "accuracy=0.9 is no function"),
    "metric class": (lambda s: s.set_metrics(loss=nn.MSELoss), "instance such as"),
    "step": (lambda s: s.set_step("step"), "takes a function"),
}

AT_TRAINING: dict[str, tuple[Change, str]] = {
    "optimizer keyword": (
        lambda s: s.set_optimizer(optim.Adam, amsgard=True),
        "Adam takes no keyword 'amsgard': did you mean 'amsgrad'",
    ),
    "criterion keyword": (
        lambda s: s.set_criterion(nn.MSELoss, reducton="sum"),
        "MSELoss takes no keyword 'reducton': did you mean 'reduction'",
    ),
    "scheduler keyword": (
        lambda s: s.set_scheduler(lr_scheduler.StepLR, step_sise=1),
        "StepLR takes no keyword 'step_sise': did you mean 'step_size'",
    ),
    "optimizer value": (lambda s: s.set_optimizer(optim.SGD, lr=-1.0), r"SGD\(lr=-1.0.*was refused: Invalid learning"),
    "scheduler without": (lambda s: s.set_scheduler(lr_scheduler.StepLR), r"StepLR\(\) was refused: .*step_size"),
    "integer target": (lambda s: s.add_data(train=classes()), r"the target is int64: pass y.float\(\)"),
    "float classes": (
        lambda s: s.add_data(train=(numbers()[0], numbers()[1][:, 0])).set_criterion(nn.CrossEntropyLoss),
        r"takes class numbers, and the target is float64: pass y.long\(\)",
    ),
    "target shape": (
        lambda s: s.add_data(train=(numbers()[0], numbers()[1][:, 0])),
        r"gives \(16, 1\) for targets of shape \(16,\): end the model with .squeeze\(1\), or pass .* y\[:, None\]",
    ),
    "precision of inputs": (lambda s: s.add_model(nn.Linear(5, 1)), r"float64 and the model's weights are float32"),
    "no target": (lambda s: s.add_data(train=numbers()[0]), r"pass \(x, y\), or set_step"),
    "loss of many": (lambda s: s.set_criterion(nn.MSELoss, reduction="none"), "not one number but shape"),
    "step without loss": (lambda s: s.set_step(lambda model, criterion, batch: 3.0), "not one number but a float"),
    "frozen": (lambda s: s.add_model(network().requires_grad_(False)), "no parameter that can be trained"),
}


@pytest.mark.parametrize("case", AT_ONCE)
def test_errors_at_once(case: str) -> None:
    """A step or a setting that cannot be used says so where it is typed, and the session keeps what it had."""
    change, message = AT_ONCE[case]
    session = regression(epochs=1)
    with pytest.raises(QuikError, match=message):
        change(session)
    session.train()

    assert 1 == len(session.history)


@pytest.mark.parametrize("case", AT_TRAINING)
def test_errors_at_training(case: str) -> None:
    """What does not fit together says so when training begins; corrected, the same session trains."""
    change, message = AT_TRAINING[case]
    session = regression(epochs=1)
    change(session)
    with pytest.raises(RecipeError, match=message):
        session.train()
    session.add_data(train=numbers()).add_model(network()).set_optimizer(optim.SGD).set_criterion(nn.MSELoss)
    session.set_scheduler(None).set_step(None).train()

    assert [0] == list(session.history["epoch"])


def test_all_faults_in_one_message() -> None:
    """Several things that do not fit come together."""
    session = regression().set_optimizer(optim.SGD, momentun=0.9).set_criterion(nn.MSELoss, reducton="sum")
    with pytest.raises(RecipeError, match=r"(?s)'momentun'.*'momentum'.*'reducton'.*'reduction'"):
        session.train()


def test_shapes_that_the_model_refuses_are_named() -> None:
    """torch's own error comes through, with the shapes of the batch."""
    session = regression(nn.Linear(4, 1).double(), epochs=1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        session.train()
    session.add_model(network()).train()

    assert ["quik_nb: this was a batch of (16, 5) float64, (16, 1) float64."] == caught.value.__notes__
    assert 1 == len(session.history)


def test_an_error_in_the_criterion_keeps_the_session() -> None:
    """Class numbers beyond the outputs raise torch's error; a model with more outputs then trains."""
    session = quiet(epochs=1).add_data(train=classes()).add_model(network(2)).set_criterion(nn.CrossEntropyLoss)
    session.set_optimizer(optim.SGD)
    with pytest.raises(IndexError, match="out of bounds"):
        session.train()
    session.add_model(network(3)).train()

    assert 1 == len(session.history)


def test_an_error_in_a_metric_costs_no_epoch() -> None:
    """A metric that fails after the second epoch leaves what was trained; replaced, the validation is made up."""
    calls = []

    def fails(outputs: Tensor, targets: Tensor) -> float:
        calls.append(1)
        return 1 / (2 - len(calls))

    straight, session = regression(epochs=2), regression(epochs=2).set_metrics(fails=fails)
    straight.train()
    with pytest.raises(ZeroDivisionError):
        session.train()
    assert [0, 1] == session.history["epoch"].tolist()
    assert 0.0 == distance(straight.model, session.model)
    session.set_metrics().train(1)

    assert list(straight.history["valid_loss"]) == list(session.history["valid_loss"])
    assert 0.0 == distance(straight.model, session.model)


def test_an_error_in_a_listener_does_not_lock_the_session() -> None:
    """Whatever raises while a run is shown or told of, the session can train again."""

    def complain(event: Any) -> None:
        raise LookupError("no such listener")

    session = regression(epochs=1).on("run_start", complain)
    with pytest.raises(LookupError):
        session.train()
    session._listeners.clear()
    session.train()

    assert [0] == list(session.history["epoch"])


def test_an_interrupt_before_the_first_step_does_not_lock_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt while the view is being opened leaves a session that trains."""

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    session = regression(epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr("quik_nb.session.choose", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.train()
    session.train()

    assert [0] == list(session.history["epoch"])


def test_data_without_samples_in_an_epoch() -> None:
    """A stream that is exhausted after its first epoch is told of."""
    from torch.utils.data import IterableDataset

    class Once(IterableDataset[Any]):
        def __init__(self) -> None:
            self.rows = zip(*numbers(), strict=True)

        def __iter__(self) -> Any:
            return self.rows

    session = regression(epochs=2).add_data(train=Once())
    with pytest.raises(RecipeError, match="Epoch 1 had no samples"):
        session.train()

    assert [0] == list(session.history["epoch"])


@pytest.mark.parametrize("scheduler", [lr_scheduler.OneCycleLR])
def test_a_stream_without_length_needs_the_total_of_a_schedule(scheduler: Any) -> None:
    """Where nobody knows the number of steps, the message says which keyword to type."""
    from torch.utils.data import IterableDataset

    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return zip(*numbers(), strict=True)

    session = regression(epochs=1).add_data(train=Endless()).set_scheduler(scheduler, max_lr=0.1)
    with pytest.raises(RecipeError, match=r"type set_scheduler\(OneCycleLR, total_steps="):
        session.train()
    session.set_scheduler(scheduler, max_lr=0.1, total_steps=7).train()

    assert 1 == len(session.history)
    assert torch.isfinite(torch.tensor(session.history["train_loss"][0]))
