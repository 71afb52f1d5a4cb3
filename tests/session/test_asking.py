"""What may be asked of a session: outputs, losses, the curve, and how it shows itself."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.plain import classes, network, numbers, quiet, regression
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from quik_nb import QuikSession, RecipeError, Settings


def test_outputs_come_in_order() -> None:
    """`predict` gives what the model gives on all samples at once, in evaluation mode, whatever holds them."""
    session = regression(network(dropout=0.5))
    x, y = numbers(1000)
    with torch.no_grad():
        expected = network()(x)
    shuffling = DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True)

    for data in (x, (x, y), (x,), TensorDataset(x, y), TensorDataset(x), shuffling):
        torch.testing.assert_close(expected, session.predict(data), rtol=0, atol=1e-12)


def test_arrays_are_predicted_in_the_models_precision() -> None:
    """A float64 array is predicted by a float32 model as its float32 copy."""
    session = quiet().add_model(nn.Linear(5, 1))
    x, _ = numbers(20)

    assert torch.equal(session.predict(x.float()), session.predict(x.numpy()))


def test_a_split_is_predicted_by_its_name() -> None:
    """`predict("valid")` gives the outputs of that split; a name that is near is suggested."""
    session = regression()
    x, _ = numbers(37)

    assert torch.equal(session.predict(x), session.predict("valid"))
    with pytest.raises(RecipeError, match="did you mean 'valid'"):
        session.predict("vaild")
    with pytest.raises(RecipeError, match=r"no split 'test' yet: use add_data\(train=..., test=...\)"):
        session.evaluate("test")


def test_evaluate_is_what_the_history_says() -> None:
    """`evaluate("valid")` equals the last row's valid_loss and metrics, bit for bit."""
    session = quiet(epochs=2).add_data(train=classes(), valid=classes(37), test=classes(50)).add_model(network(3))
    session.set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.SGD)
    session.set_metrics(accuracy=lambda outputs, targets: (outputs.argmax(1) == targets).double().mean()).train()
    row = session.history.iloc[-1]

    assert {"loss": row["valid_loss"], "accuracy": row["accuracy"]} == session.evaluate("valid")
    assert session.evaluate("test") == session.evaluate(classes(50))


def test_asking_leaves_the_model_as_it_was() -> None:
    """predict and evaluate leave mode, weights and gradients alone."""
    session = regression(network(dropout=0.5))
    session.model.train()
    session.model[1].eval()  # type: ignore[index]
    session.predict("valid")
    session.evaluate("valid")

    assert [True, True, False, True, True] == [module.training for module in session.model.modules()]
    assert all(parameter.grad is None for parameter in session.model.parameters())


def test_asking_too_early() -> None:
    """Without a model predict says what to type, and evaluate names all that is missing."""
    with pytest.raises(RecipeError, match=r"\.add_model\(Net\(\)\)"):
        quiet().predict(torch.zeros(2, 5))
    with pytest.raises(RecipeError, match=r"add_model.*set_criterion"):
        quiet().add_data(train=numbers()).evaluate("train")


def test_the_curve_is_a_figure() -> None:
    """`plot()` gives a matplotlib figure with a line for each loss, also on a logarithmic scale."""
    session = regression(epochs=3)
    session.train()
    axes = session.plot(log=True).axes[0]

    assert "log" == axes.get_yscale()
    assert list(session.history["valid_loss"]) in [list(line.get_ydata()) for line in axes.lines]


def test_a_session_says_what_is_set_and_what_is_missing() -> None:
    """The repr lists parts, parameters and steps per epoch, and what is still to type."""
    empty = repr(quiet())
    session = regression(epochs=3).set_scheduler(lr_scheduler.OneCycleLR, max_lr=0.1)
    full = repr(session)

    assert [".add_data(", ".add_model(", ".set_criterion(", ".set_optimizer("] == [
        line.split()[1][: line.split()[1].index("(") + 1] for line in empty.splitlines() if "missing" in line
    ]
    assert "missing" not in full
    assert "101 samples of (5,) float64, (1,) float64" in full
    assert "7 per epoch of 16 samples" in full
    assert "Sequential, 57 parameters" in full
    assert "SGD(lr=0.001, fused=True)" in full
    assert "OneCycleLR(max_lr=0.1), stepped per batch, total_steps=21 filled in" in full


def test_a_session_shows_all_that_was_set(tmp_path: Path) -> None:
    """Each setting that is not the default stands there, what is frozen is counted, and loaded weights are named."""
    session = regression(epochs=2, clip_norm=1.0, freeze="0", patience=3, save=True, base_dir=tmp_path, name="first")
    session.train()
    shown = repr(session.load_epoch(0))

    assert "epochs=2, seed=42, precision='fp32', clip_norm=1.0" in shown
    assert {"patience=3", "freeze='0'", "name='first'"} <= set(shown.replace("\n", ", ").split(", "))
    assert "57 parameters, 48 of them frozen" in shown
    assert "; weights of epoch 0" in shown
    session.set_scheduler(None).train()
    assert "; weights of epoch 0" not in repr(session)
    assert ["from epoch 0"] == [mark.label for mark in session.annotations]


def test_the_batch_size_of_a_loader_shows() -> None:
    """Where a loader came with a batch size, the repr counts in that."""
    session = regression().add_data(train=DataLoader(TensorDataset(*numbers()), batch_size=10))

    assert "11 per epoch of 10 samples" in repr(session)


def test_the_table_for_a_notebook_is_escaped() -> None:
    """Names of the user's that look like HTML do no harm."""
    nasty = type("<script>alert(1)</script>", (nn.Linear,), {})
    html = quiet().add_model(nasty(2, 1))._repr_html_()

    assert "&lt;script&gt;" in html
    assert "<script>" not in html


def test_frozen_parameters_are_counted() -> None:
    """The repr says how many parameters are not trained."""
    model = network()
    model[0].requires_grad_(False)

    assert "57 parameters, 48 of them frozen" in repr(quiet().add_model(model))


def test_tab_shows_the_steps() -> None:
    """`dir()` lists what is public, and Shift-Tab on the class shows the settings with their defaults."""
    names = [name for name in dir(quiet()) if not name.startswith("__")]
    parameters = inspect.signature(QuikSession).parameters

    assert [] == [name for name in names if name.startswith("_")]
    assert {"add_data", "add_model", "set_criterion", "train", "history", "load_best"} <= set(names)
    assert Settings().batch_size == parameters["batch_size"].default
    assert list(inspect.signature(Settings).parameters) == list(parameters)


def test_history_counts_from_zero_and_in_seconds() -> None:
    """The history has a row per epoch, numbered from 0, with times in seconds that are above zero."""
    session = regression(epochs=3)
    session.train()
    history = session.history

    assert [0, 1, 2] == list(history["epoch"])
    assert ["epoch", "train_loss", "valid_loss", "lr", "time"] == list(history.columns)
    assert (history["time"] > 0).all()
    assert (history["time"] < 60).all()


def test_the_history_survives_json() -> None:
    """Rows go to JSON lines and come back equal."""
    session = regression(epochs=2)
    session.train()
    from quik_nb.history import History

    lines = session.run.record.to_jsonl()  # type: ignore[union-attr]
    rows: list[Any] = [json.loads(line) for line in lines.splitlines()]

    assert [0, 1] == [row["epoch"] for row in rows]
    assert session.history.equals(History.from_jsonl(lines).frame())
