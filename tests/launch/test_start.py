"""The seam: each launcher trains the same way, ends with its context, and gives the state of the last row."""

import os
from pathlib import Path

import psutil
import pytest
import torch
from harness.plain import distance, network, regression
from torch import nn

from quik_nb.events import EpochEnd, Event, Row, RunEnd, RunStart
from quik_nb.launch.base import Running
from quik_nb.launch.placement import Placement
from quik_nb.launch.start import LAUNCHERS, launch
from quik_nb.training.job import Job

PLACEMENTS = {
    "in_process": Placement(("cpu",), "in_process", None, "forkserver", "for the test"),
    "workers": Placement(("cpu", "cpu"), "workers", 1, "forkserver", "for the test"),
}


def job(model: nn.Module | None = None, epochs: int = 2) -> Job:
    """A small regression, from its beginning."""
    recipe = regression(model, epochs=epochs)._recipe
    return Job(recipe, epochs, "for the test")


def launched(name: str, job: Job) -> Running:
    """A training that was launched and has not begun."""
    return launch(job, PLACEMENTS[name], None)


def ignore(event: Event) -> None:
    """Where events do not matter."""


@pytest.fixture(params=sorted(LAUNCHERS))
def name(request: pytest.FixtureRequest) -> str:
    """The name of a launcher."""
    return str(request.param)


def test_each_launcher_emits_a_run_from_beginning_to_end(name: str) -> None:
    """RunStart, a row for each epoch, RunEnd; nothing is left undelivered."""
    events: list[Event] = []
    with launched(name, job()) as running:
        running.events(events.append)

    kinds = [type(event) for event in events if isinstance(event, RunStart | EpochEnd | RunEnd)]
    assert [RunStart, EpochEnd, EpochEnd, RunEnd] == kinds
    assert [] == list(running.undelivered)


def test_each_launcher_gives_the_state_of_the_last_row(name: str) -> None:
    """After the context the snapshot has the last row and the weights that were trained to it."""
    rows: list[object] = []
    with launched(name, job()) as running:
        running.events(lambda event: rows.append(event.row) if isinstance(event, EpochEnd) else None)
    state = running.snapshot()

    assert state is not None
    assert (rows[-1], 2) == (state.row, state.progress.epoch)


def test_all_launchers_come_to_the_same_weights() -> None:
    """The numbers do not depend on who started the ranks."""
    models = []
    for name in sorted(LAUNCHERS):
        with launched(name, job()) as running:
            running.events(ignore)
        state = running.snapshot()
        assert state is not None
        models.append(network())
        models[-1].load_state_dict(state.weights)

    assert distance(models[0], models[1]) <= 1e-9


def test_launchers_say_whether_they_create_processes(name: str, tmp_path: Path) -> None:
    """Where a launcher creates none, the one rank is this process; else each rank is another one."""

    class Tells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            (tmp_path / str(os.getpid())).touch()
            return self.inner(x)

    with launched(name, job(Tells())) as running:
        running.events(ignore)
    pids = {int(path.name) for path in tmp_path.iterdir()}

    assert LAUNCHERS[name].copies_objects == (os.getpid() not in pids)
    assert len(PLACEMENTS[name].devices) == len(pids)


def test_a_training_that_never_begins_leaves_nothing(name: str) -> None:
    """A context without `events` trains nothing and starts nothing, and removes the run's private folder."""
    model = network()
    with launched(name, job(model)) as running:
        folder = getattr(running, "folder", None)

    assert 0.0 == distance(network(), model)
    assert folder is None or not folder.exists()


def test_a_training_that_is_dropped_leaves_no_folder() -> None:
    """Where an interrupt comes before anybody has hold of what was launched, its files are gone all the same."""
    running = launched("workers", job())
    folder = running.folder  # type: ignore[attr-defined]
    assert folder.exists()
    del running

    assert not folder.exists()


@pytest.mark.parametrize("at", [RunStart, EpochEnd])
def test_an_emit_that_raises_ends_the_training(name: str, at: type[Event]) -> None:
    """The error comes through, no process goes on, and what was sent and not emitted is known."""
    emitted: list[Event] = []

    def emit(event: Event) -> None:
        emitted.append(event)
        if isinstance(event, at):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), launched(name, job(epochs=50)) as running:
        running.events(emit)
    epochs = [event.row.epoch for event in (*emitted, *running.undelivered) if isinstance(event, EpochEnd)]
    servers = psutil.Process().children()

    assert list(range(len(epochs))) == epochs
    assert [] == [worker.pid for server in servers for worker in server.children()]


@pytest.mark.parametrize("sent", [2, 5])
def test_no_row_is_lost_between_two_that_were_sent_together(monkeypatch: pytest.MonkeyPatch, sent: int) -> None:
    """Where several events are received at once and the first cannot be emitted, the others are undelivered."""
    running = launched("workers", job())
    rows = [EpochEnd(Row(epoch, 0.5, None, 0.1, 0.01)) for epoch in range(sent)]
    running._inbox.extend(rows)  # type: ignore[attr-defined]

    def refuse(event: Event) -> None:
        raise KeyError("mine")

    with running, pytest.raises(KeyError, match="mine"):
        running._deliver(refuse)  # type: ignore[attr-defined]

    assert rows[1:] == list(running.undelivered)
