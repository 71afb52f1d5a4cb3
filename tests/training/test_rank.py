"""One rank from beginning to end: what it emits, and what it gives back."""

from typing import Any

import pytest
import torch
from harness.plain import network, regression
from torch import nn

from quik_nb.events import EpochEnd, Event, RunStart, StepEnd
from quik_nb.training.commands import LocalCommands
from quik_nb.training.job import Job
from quik_nb.training.rank import loop_of, run_rank
from quik_nb.training.train_mode import on_device
from quik_nb.training.world import World


def events_of(session: Any, epochs: int = 2) -> list[Event]:
    """All that a rank emits for the recipe of a session."""
    events: list[Event] = []
    job = Job(session._recipe, epochs, "for the test")
    run_rank(job, World(), LocalCommands(), None, events.append)
    return events


def test_every_step_is_reported_once() -> None:
    """Losses and learning rates of all steps are sent, with heartbeats or rows."""
    told = [event for event in events_of(regression()) if isinstance(event, StepEnd | EpochEnd)]

    assert 14 == sum(len(event.losses) for event in told)
    assert 14 == sum(len(event.lrs) for event in told)


def test_a_run_says_what_it_trains() -> None:
    """The first event has the names of the columns that rows will have, and what is trained how."""
    session = regression(clip_norm=1.0).set_metrics(error=lambda outputs, targets: (outputs - targets).abs().mean())
    start = events_of(session)[0]

    assert isinstance(start, RunStart)
    assert {"train_loss", "valid_loss", "error", "grad_norm"} <= set(start.columns)
    assert {"Sequential", "MSELoss()", "16"} <= {str(value) for value in start.parameters.values()}


def test_a_model_on_several_devices_goes_back_to_them() -> None:
    """Each tensor of a module is afterwards where it was, with its gradient."""
    model = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1, device="meta")])
    with on_device(model[0], torch.device("cpu")):
        pass
    homes = [parameter.device.type for parameter in model.parameters()]

    assert ["cpu", "cpu", "meta", "meta"] == homes


def test_everything_is_given_back_where_the_start_fails() -> None:
    """A loop that cannot be made leaves the model, its gradients and its frozen flags as they were."""
    session = regression(network(), freeze="0")
    session._recipe.model.train(False)  # type: ignore[union-attr]
    try:
        with loop_of(Job(session._recipe, 1, "for the test"), World(), lambda event: None):
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass

    model = session.model
    assert not model.training  # type: ignore[union-attr]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())  # type: ignore[union-attr]


def test_the_buffers_that_a_module_has_then_are_moved_back() -> None:
    """Moving a module puts new tensors in the place of its buffers, and those go back, not the ones of before."""
    norm = nn.BatchNorm1d(2)
    with pytest.raises(NotImplementedError, match="meta"), on_device(norm, torch.device("cpu")):
        norm._buffers["running_mean"] = torch.zeros(2, device="meta")  # from where nothing can be moved
