"""What goes wrong is said at once and in words, and afterwards the session trains."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import torch
from harness.plain import classes, distance, network, numbers, quiet, regression
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import IterableDataset

from quik_nb import CheckpointError, QuikError, QuikSession, RecipeError

Change = Callable[[QuikSession], object]


def test_every_missing_step_in_one_message() -> None:
    """An empty session lists all that is missing."""
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
    "model": (lambda s: s.add_model("Net"), "cannot be trained: pass a module such as Net"),
    "factory of no module": (
        lambda s: s.add_model(lambda: 5),
        "returned a int, which cannot be trained: return an nn.Module",
    ),
    "optimizer instance": (
        lambda s: s.set_optimizer(optim.SGD(network().parameters())),
        r"use set_optimizer\(SGD, ...\)",
    ),
    "keywords of an instance": (
        lambda s: s.set_criterion(nn.MSELoss(), reduction="sum"),
        "is an instance already, so reduction",
    ),
    "criterion": (lambda s: s.set_criterion("mse"), "takes a class and its keywords, and got str 'mse'"),
    "metric": (lambda s: s.set_metrics(accuracy=0.9), "accuracy=0.9 is neither a function"),
    "metric class": (lambda s: s.set_metrics(error=nn.MSELoss), "instance such as"),
    "step": (lambda s: s.set_step("step"), "pass a function step"),
    "setting by another name": (lambda s: QuikSession(learning_rate=0.1), "'learning_rate': use lr=0.1"),
    "setting that is a keyword": (lambda s: QuikSession(momentum=0.9), r"set_optimizer\(optim.SGD, momentum=0.9\)"),
    "switch": (lambda s: s.train(save="yes"), "save='yes' must be True or False"),
    "background": (lambda s: s.train(background="no"), "background='no' must be True or False"),
    "no clipping": (lambda s: s.train(clip_norm=0), "clip_norm=0 is not a number above 0"),
    "min_delta": (lambda s: s.train(min_delta=None), "min_delta=None is not a number from 0 up"),
    "name": (lambda s: s.train(name=3), "name=3 is not a text"),
    "base_dir": (lambda s: s.train(base_dir=None), "base_dir=None is not a folder"),
    "many processes": (lambda s: s.train(processes=1000), "processes=1000 .* this machine has"),
    "rate of a schedule": (
        lambda s: s.set_scheduler(lr_scheduler.OneCycleLR, max_lr=0.1).train(lr=1e-3),
        r"OneCycleLR sets the learning rate itself: use set_scheduler\(OneCycleLR, max_lr=0.001\)",
    ),
    "setting by hand": (lambda s: setattr(s, "epochs", 3), r"use session.train\(epochs=3\) for one call"),
    "column": (lambda s: s.set_metrics(valid_loss=lambda o, t: 0.0), "'valid_loss' is a column of every history"),
    "switch of metrics": (
        lambda s: s.set_metrics(train=lambda o, t: 0.0),
        "train is a switch of set_metrics",
    ),
    "groups": (lambda s: s.set_optimizer(optim.SGD, groups=["0"]), r"groups=\['0'\] does not map parameter names"),
    "group": (lambda s: s.set_optimizer(optim.SGD, groups={"0": 0.1}), "does not map parameter names"),
    "event": (lambda s: s.on("epoch_ends", print), "no event 'epoch_ends': did you mean 'epoch_end'"),
    "listener": (lambda s: s.on("epoch_end", "print"), "'print' is not callable"),
    "split": (lambda s: s.predict("vaild"), "no split 'vaild': did you mean 'valid'"),
    "loop": (lambda s: s.traverse(3), r"3 is not callable, .*: pass a function, session.traverse\(loop\)"),
    "names of a report": (lambda s: s.report("test"), r"not 'test': use report\(split=...\)"),
    "columns of one name": (
        lambda s: s.add_data(train=pd.DataFrame([[1.0, 2.0, 3.0]], columns=["a", "a", "b"]), target="b"),
        "several columns of the name 'a'",
    ),
}


def loss_alone(model: nn.Module, criterion: Any, batch: Any) -> Tensor:
    """A step that keeps its outputs to itself."""
    return criterion(model(batch[0]), batch[1])


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
    "scheduler without": (
        lambda s: s.set_scheduler(lr_scheduler.StepLR),
        r"StepLR needs step_size: use set_scheduler\(StepLR, step_size=\.\.\.\)",
    ),
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
    "step without loss": (
        lambda s: s.set_step(lambda model, criterion, batch: 3.0),
        "a float and no tensor.*without .item",
    ),
    "frozen": (lambda s: s.add_model(network().requires_grad_(False)), "no parameter that can be trained"),
    "no parameters": (lambda s: s.add_model(nn.Flatten()), "has no parameters, so there is nothing to train"),
    "lazy": (lambda s: s.add_model(nn.LazyLinear(1)), r"lazy layers, .*call it once before, as model\(x\[:2\]\)"),
    "meta": (lambda s: s.add_model(nn.Linear(5, 1, device="meta")), "on the device 'meta', without values"),
    "group keyword": (
        lambda s: s.set_optimizer(optim.SGD, groups={"0": {"lrr": 0.5}}),
        "SGD takes no keyword 'lrr': did you mean 'lr'",
    ),
    "group rate": (lambda s: s.set_optimizer(optim.SGD, groups={"0": {"lr": -1}}), "lr=-1 is not a number from 0 up"),
    "half a group": (lambda s: s.set_optimizer(optim.SGD, groups={"0, head": {}}), "'head' fits no parameter"),
    "function of numbers": (
        lambda s: s.add_data(train=(numbers()[0], numbers()[1][:, 0])).set_criterion(nn.functional.mse_loss),
        r"gives \(16, 1\) for targets of shape \(16,\): end the model with .squeeze\(1\)",
    ),
    "metrics without outputs": (
        lambda s: s.set_metrics(error=nn.functional.l1_loss).set_step(loss_alone),
        r"the step returns the loss alone: have it return \(loss, outputs\)",
    ),
    "plateau per batch": (
        lambda s: s.set_scheduler(lr_scheduler.ReduceLROnPlateau, per="batch"),
        "watches the loss of an epoch, so it is stepped once an epoch: leave out per=",
    ),
    "function keyword": (
        lambda s: s.set_criterion(nn.functional.mse_loss, reducton="sum"),
        "mse_loss takes no keyword 'reducton': did you mean 'reduction'",
    ),
    "classes of 32 bits": (
        lambda s: s.add_data(train=(classes()[0], classes()[1].int())).set_criterion(nn.CrossEntropyLoss),
        r"takes class numbers, and the target is int32: pass y.long\(\)",
    ),
    "classes in a column": (
        lambda s: s.add_data(train=(classes()[0], classes()[1][:, None])).set_criterion(nn.CrossEntropyLoss),
        r"takes one class number for each sample, not \(101, 1\): pass y\[:, 0\]",
    ),
    "other columns": (
        lambda s: s.add_data(train=numbers(), valid=(numbers()[0][:, :4], numbers()[1])),
        "tensor 0 of valid has 4 columns, and that of train 5",
    ),
    "other tensors": (
        lambda s: s.add_data(train=numbers(), valid=(numbers()[0], *numbers())),
        "valid has 3 tensors and train 2",
    ),
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


def test_freezing_says_which_part_is_not_there() -> None:
    """Of several names the one that fits nothing is told, and what leaves nothing is not blamed on the model."""
    with pytest.raises(RecipeError, match="freeze='0, decoder': 'decoder' fits no parameter of Sequential"):
        regression(freeze=["0", "decoder"]).train()
    with pytest.raises(RecipeError, match=r"freeze='\*' freezes every parameter of Sequential"):
        regression(freeze="*").train()


def test_a_training_that_is_refused_freezes_nothing() -> None:
    """Where the optimizer refuses its keywords after parameters were frozen, they are free again."""
    session = regression(freeze="0").set_optimizer(optim.SGD, lr=-1.0)
    with pytest.raises(RecipeError, match="was refused"):
        session.train()

    assert all(parameter.requires_grad for parameter in session.model.parameters())


def test_a_session_is_shown_whatever_is_wrong_with_it() -> None:
    """Lazy layers and missing steps are no reason not to draw the session."""
    text = repr(quiet().add_model(nn.LazyLinear(1)))

    assert "LazyLinear, with lazy parameters of unknown size" in text
    assert "missing" in text


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


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_inputs_that_are_no_numbers_to_the_model(dtype: torch.dtype) -> None:
    """Integers as features raise torch's error, with the words to type."""
    session = regression(epochs=1).add_data(train=(numbers()[0].to(dtype), numbers()[1]))
    with pytest.raises(RuntimeError) as caught:
        session.train()

    assert f"The inputs are {str(dtype)[6:]}: if they are no indices, pass x.float()" in caught.value.__notes__[0]


def test_a_batch_of_one_with_batch_statistics() -> None:
    """The last batch of an epoch that is too small for BatchNorm is told as that."""
    session = regression(nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 1)).double(), epochs=1, batch_size=50)
    with pytest.raises(ValueError, match="more than 1 value per channel") as caught:
        session.train()
    session.train(batch_size=40)

    assert "this batch, the rest of an epoch, has one: use another batch_size" in caught.value.__notes__[0]


def test_an_error_in_the_criterion_keeps_the_session() -> None:
    """Class numbers beyond the outputs are told; a model with more outputs then trains."""
    session = quiet(epochs=1).add_data(train=classes()).add_model(network(2)).set_criterion(nn.CrossEntropyLoss)
    session.set_optimizer(optim.SGD)
    with pytest.raises(RecipeError, match="give its last layer one for each class"):
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
    with pytest.raises(ZeroDivisionError) as caught:
        session.train()
    assert "this was the metric 'fails'" in caught.value.__notes__[0]
    assert [0, 1] == session.history["epoch"].tolist()
    assert 0.0 == distance(straight.model, session.model)
    session.set_metrics().train(1)

    assert list(straight.history["valid_loss"]) == list(session.history["valid_loss"])
    assert 0.0 == distance(straight.model, session.model)


def test_an_error_in_a_listener_does_not_lock_the_session() -> None:
    """After any exception in a view or callback, the session can train again."""

    def complain(event: Any) -> None:
        raise LookupError("no such listener")

    session = regression(epochs=1).on("run_start", complain)
    with pytest.raises(LookupError):
        session.train()
    session.off()
    session.train()

    assert [0] == list(session.history["epoch"])


def test_an_interrupt_before_the_first_step_does_not_lock_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt while the view is being opened leaves a session that trains."""

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    session = regression(epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr("quik_nb.session.training_runs.choose", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.train()
    session.train()

    assert [0] == list(session.history["epoch"])


def test_data_without_samples_in_an_epoch() -> None:
    """A stream that is exhausted after its first epoch is an error."""
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
    """Where nobody knows the number of steps, the message says which keyword to use."""
    from torch.utils.data import IterableDataset

    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return zip(*numbers(), strict=True)

    session = regression(epochs=1).add_data(train=Endless()).set_scheduler(scheduler, max_lr=0.1)
    with pytest.raises(RecipeError, match=r"use set_scheduler\(OneCycleLR, total_steps="):
        session.train()
    session.set_scheduler(scheduler, max_lr=0.1, total_steps=7).train()

    assert 1 == len(session.history)
    assert torch.isfinite(torch.tensor(session.history["train_loss"][0]))


@dataclass
class Distance:
    """A criterion that cannot be hashed, as dataclasses cannot."""

    power: int = 2

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) ** self.power).mean()


def test_criteria_of_any_kind() -> None:
    """Any object that can be called is a criterion, also one that cannot be hashed."""
    own, torchs = regression(epochs=1).set_criterion(Distance()), regression(epochs=1)
    own.train()
    torchs.train()

    assert 0.0 == distance(own.model, torchs.model)


def test_a_schedule_made_by_a_function() -> None:
    """A function makes a schedule that takes more than keywords, by whatever name it calls the optimizer."""
    session = regression(epochs=3, lr=0.1).set_scheduler(lambda o: lr_scheduler.StepLR(o, 1, gamma=0.5))
    session.train()

    assert [0.1, 0.05, 0.025] == pytest.approx(list(session.history.lr))


def test_a_validation_split_that_comes_out_empty() -> None:
    """A stream without validation samples is an error, not a stop."""

    class Nothing(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(())

    with pytest.raises(RecipeError, match="nothing to validate with"):
        regression(epochs=1).add_data(train=numbers(), valid=Nothing()).train()


def test_a_validation_loss_that_is_no_number() -> None:
    """NaN in the validation data makes no epoch the best, and is shown as what it is."""
    x, y = numbers(37)
    session = regression(epochs=2).add_data(train=numbers(), valid=(x, y * math.nan))
    session.train()

    assert session.history.valid_loss.isna().all()
    assert "history    2 epochs, none of them the best" in repr(session)
    with pytest.raises(CheckpointError, match="no epoch has a value that can be compared"):
        session.load_best()


def test_a_schedule_that_is_shorter_than_the_training() -> None:
    """A total that is too small says which schedule it is of, and that leaving it out fills it in."""
    session = regression(epochs=1).set_scheduler(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=3)
    with pytest.raises(ValueError, match="Tried to step") as caught:
        session.train()

    (note,) = (note for note in caught.value.__notes__ if "OneCycleLR" in note)
    assert "total_steps=3); without its total it gets that of the whole training" in note
