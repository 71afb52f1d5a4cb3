"""The plain loop is a program of its own, and does what a session does."""

import runpy
from typing import Any

import pytest
import torch
from harness.plain import quiet
from torch import nn, optim
from torch.optim import lr_scheduler

from quik_nb import QuikSession
from quik_nb.export import plain_loop

LOSSES = ["train_loss", "valid_loss"]


def as_it_stands(**settings: Any) -> QuikSession:
    """A session that trains as the file says at its top, but for these settings."""
    return (
        quiet(**{"epochs": 3, "accumulate": 2, "clip_norm": 0.5, "ema": 0.9, "patience": 2, "lr": 0.01, **settings})
        .add_data(train=plain_loop.made_up(101), valid=plain_loop.made_up(37))
        .add_model(lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1)).double())
        .set_criterion(nn.MSELoss)
        .set_optimizer(optim.AdamW)
        .set_scheduler(lr_scheduler.OneCycleLR, max_lr=0.01)
    )


def trained(session: QuikSession) -> list[float]:
    """The losses of all epochs, those of training and of validation in turn."""
    session.train()
    return [float(value) for value in session.history[LOSSES].to_numpy().ravel()]


def flat(history: list[dict[str, float]]) -> list[float]:
    """The same of a history of the plain loop."""
    return [row[name] for row in history for name in LOSSES]


def test_it_runs_as_it_stands() -> None:
    """Run as a program it has the losses of a session with the same settings."""
    with torch.random.fork_rng():
        history = runpy.run_path(plain_loop.__file__, run_name="__main__")["history"]

    assert trained(as_it_stands()) == pytest.approx(flat(history), abs=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate": 1, "ema": None, "patience": None},
        {"clip_norm": None, "clip_value": 0.01},
        {"epochs": 9, "patience": 1, "min_delta": 1.0},
        {"batch_size": 15, "seed": 1},
    ],
)
def test_its_constants_are_settings(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant means what the setting of the same name means."""
    for name, value in settings.items():
        monkeypatch.setattr(plain_loop, name.upper(), value)
    with torch.random.fork_rng():
        _, history = plain_loop.main()

    assert trained(as_it_stands(**settings)) == pytest.approx(flat(history), abs=1e-12)
