"""What makes an epoch the best: the loss, or any column, which best, files, patience and a plateau then follow."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.plain import classes, network, quiet
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric

from quik_nb import QuikSession, RecipeError


def one_after_the_other(*values: float) -> Callable[[Any, Any], float]:
    """A metric that has these values, one for each epoch."""
    waiting: Iterator[float] = iter(values)
    return lambda outputs, targets: next(waiting)


def session(*values: float, name: str = "accuracy", **settings: Any) -> QuikSession:
    """A session whose losses fall, and whose metric has these values."""
    made = quiet(**{"epochs": len(values), "lr": 0.1, **settings}).add_data(train=classes(), valid=classes(37))
    made.add_model(network(3)).set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.SGD)
    return made.set_metrics(**{name: one_after_the_other(*values)})


def test_best_follows_a_column(tmp_path: Path) -> None:
    """The star, the files that are kept and load_best are those of the highest accuracy."""
    stars: list[bool] = []
    trained = session(0.2, 0.9, 0.3, monitor="accuracy", keep="best:1", save=True, base_dir=tmp_path)
    trained.on("epoch_end", lambda event: stars.append(event.best))
    trained.train()

    assert [True, True, False] == stars
    assert [1] == trained.saved_epochs
    assert "epoch 1" in repr(trained.load_best())


def test_without_a_monitor_it_is_the_loss(tmp_path: Path) -> None:
    """The lowest valid_loss is best, as ever; another column can be named afterwards."""
    trained = session(0.2, 0.9, 0.3, save=True, base_dir=tmp_path)
    trained.train()

    assert f"epoch {trained.history.valid_loss.idxmin()}" in repr(trained.load_best())
    assert "epoch 1" in repr(trained.load_best(monitor="accuracy"))
    assert "epoch 0" in repr(trained.load_best(monitor="accuracy", monitor_mode="min"))


def test_another_monitor_ranks_anew() -> None:
    """A call with another monitor compares with the best of the rows so far by it."""
    trained = session(0.9, 0.2, 0.5, 0.95, epochs=2)
    trained.train()
    stars: list[bool] = []
    trained.on("epoch_end", lambda event: stars.append(event.best)).train(monitor="accuracy")

    assert [False, True] == stars


def test_patience_follows_and_says_which_epoch_was_best() -> None:
    """Training ends when the column has not got better, though the loss has; the reason names the best epoch."""
    reasons: list[str] = []
    trained = session(0.2, 0.9, 0.3, 0.4, 0.5, monitor="accuracy", patience=2)
    trained.on("run_end", lambda event: reasons.append(event.reason))
    trained.train()

    assert ["no better accuracy for 2 epochs; the best is epoch 1 with 0.9"] == reasons
    assert 4 == len(trained.history)


def test_a_plateau_follows() -> None:
    """The rate falls with the epoch in which the accuracy does, in the direction that needs not be said."""
    trained = session(0.1, 0.2, 0.1, 0.3, 0.4, monitor="accuracy")
    trained.set_scheduler(ReduceLROnPlateau, patience=0, factor=0.1).train()

    assert [0.1, 0.1, 0.1, 0.01, 0.01] == pytest.approx(list(trained.history.lr))


class Falling(MeanMetric):
    """A metric that knows that lower is better."""

    higher_is_better = False

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        super().update(outputs.abs().mean())


def test_the_direction_is_the_metrics_own() -> None:
    """torchmetrics know whether higher is better; a name that tells nothing needs monitor_mode."""
    trained = session(1.0, name="fairness", epochs=1, monitor="fairness").set_metrics(fairness=Falling())
    trained.train()

    with pytest.raises(RecipeError, match="monitor_mode='min' or 'max'"):
        session(1.0, name="fairness", monitor="fairness").train()
    assert "best fairness 0.5" in repr(
        session(0.5, 0.7, name="fairness", monitor="fairness", monitor_mode="min").train()
    )


@pytest.mark.parametrize(
    ("settings", "mode", "words"),
    [
        ({"monitor": "acuracy", "monitor_mode": "max"}, None, "did you mean 'accuracy'"),
        ({}, "max", r"ReduceLROnPlateau\(mode='max'\)"),
        ({"monitor": "accuracy"}, "min", r"ReduceLROnPlateau\(mode='min'\)"),
    ],
)
def test_faults_are_told_before_training(settings: dict[str, Any], mode: str | None, words: str) -> None:
    """An unknown column, and a plateau that watches in the wrong direction."""
    made = session(0.1, 0.2, **settings)
    if mode is not None:
        made.set_scheduler(ReduceLROnPlateau, mode=mode)

    with pytest.raises(RecipeError, match=words):
        made.train()
    assert 0 == len(made.history)


def test_a_column_that_a_loop_does_not_give() -> None:
    """A loop of one's own may give any column: what is missing is told with its first row."""

    def loop(session: Any) -> None:
        for _ in session.iter_epochs():
            for x, y in session.loader("train"):
                loss = session.criterion(session.model(x), y)
                session.backward(loss)
                session.metrics.add_loss(loss)
            session.end_epoch({"valid_loss": 1.0, "f1": 0.5})

    session(0.1, 0.2, monitor="f1").traverse(loop)
    with pytest.raises(RecipeError, match="monitor='recall' is no column"):
        session(0.1, 0.2, monitor="recall").traverse(loop)
