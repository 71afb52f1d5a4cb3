"""A call that failed before its first row leaves no trace: failed, corrected and trained equals never failed."""

import json
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import torch
from harness.plain import network, numbers, regression
from torch import nn, optim

from quik_nb import QuikError, QuikSession
from quik_nb.recipe.equality import same
from quik_nb.storage.run_folder import read_run

Change = Callable[[QuikSession], object]

# ---------------------------------------------------------------------- the story before the call that fails


def trained(base_dir: Path) -> QuikSession:
    """A session of two epochs, with all that is to be carried on: dropout, moments, files, the best loss."""
    session = regression(network(dropout=0.3), epochs=4, lr=0.01, save=True, base_dir=base_dir)
    session.set_optimizer(optim.SGD, momentum=0.9).train(epochs=2)
    return session


def stop_within(session: QuikSession) -> None:
    """Stop in the third step of the next epoch."""
    steps = []

    def count(model: nn.Module, inputs: Any) -> None:
        steps.append(model)
        if len(steps) == 3 and session.run is not None:
            session.run.stop()

    handle = session.model.register_forward_pre_hook(count)
    session.train(epochs=1)
    handle.remove()
    assert session.history["fraction"].iloc[-1] < 1.0


def load_within(session: QuikSession) -> None:
    """Load an earlier epoch in the midst of another."""
    stop_within(session)
    session.load_epoch(0)


CHANGES: dict[str, Change] = {
    "nothing": lambda session: None,
    "loaded epoch": lambda session: session.load_epoch(0),
    "other criterion": lambda session: session.set_criterion(nn.L1Loss),
    "other optimizer": lambda session: session.set_optimizer(optim.Adam),
    "other data": lambda session: session.add_data(train=numbers(60), valid=numbers(37)),
    "stopped within an epoch": stop_within,
    "loaded within an epoch": load_within,
}

# ---------------------------------------------------------------------- the call


def own_loop(fails: bool = False) -> Callable[[Any], None]:
    """A loop that trains, or raises in its first step."""

    def loop(session: Any) -> None:
        for _ in session.iter_epochs():
            for x, y in session.loader("train"):
                loss = session.criterion(session.model(x), y)
                if fails:
                    raise LookupError("in the first step")
                session.backward(loss)
                session.metrics.add_loss(loss)
            session.end_epoch()

    return loop


def call(session: QuikSession, way: str, fails: bool = False, **settings: Any) -> None:
    """Train an epoch by one of the two ways."""
    if way == "train":
        session.train(epochs=1, **settings)
    else:
        session.traverse(own_loop(fails), epochs=1, **settings)


def refused_by_a_check(session: QuikSession, way: str, processes: int) -> None:
    """No parameter is left to train, which is seen before anything starts."""
    with pytest.raises(QuikError, match="freeze"):
        call(session, way, freeze="*", processes=processes)


def refused_at_launch(session: QuikSession, way: str, processes: int) -> None:
    """A part cannot be sent to a worker, which is seen when the job is written."""
    lock = threading.Lock()
    session.set_metrics(locked=lambda outputs, targets: float(lock.locked()))
    with pytest.warns(UserWarning, match="cannot be resumed"), pytest.raises(QuikError, match="cannot be sent"):
        call(session, way, processes=processes)
    session.set_metrics()


def raising_in_the_first_step(session: QuikSession, way: str, processes: int) -> None:
    """The user's own code raises before the first step is done."""

    def fails(model: nn.Module, criterion: Any, batch: Any) -> Any:
        raise LookupError("in the first step")

    session.set_step(fails)
    with pytest.raises(Exception, match="in the first step"):
        call(session, way, fails=True, processes=processes)
    session.set_step(None)


FAILURES = [
    *((fails, 1) for fails in (refused_by_a_check, raising_in_the_first_step)),
    *((fails, 2) for fails in (refused_by_a_check, refused_at_launch, raising_in_the_first_step)),
]

# ---------------------------------------------------------------------- what is compared


class Traces(NamedTuple):
    """What a session and its run folder hold, without times and places."""

    rows: list[tuple[Any, ...]]
    annotations: list[tuple[float, str]]
    best: int | None
    saved_epochs: list[int]
    weights: dict[str, torch.Tensor]
    files: list[str]
    lines: list[dict[str, Any]]
    saved: Any


def traces(session: QuikSession) -> Traces:
    """What a session holds now."""
    assert session.folder is not None
    best = session._runs.history.best
    saved = read_run(session.folder)
    lines = [json.loads(line) for line in (session.folder / "history.jsonl").read_text().splitlines()]
    frame = session.history.drop(columns="time").fillna(-1.0)
    return Traces(
        rows=[tuple(row) for row in frame.itertuples(index=False)],
        annotations=[(mark.epoch, mark.label) for mark in session.annotations],
        best=None if best is None else best.epoch,
        saved_epochs=session.saved_epochs,
        weights={name: value.clone() for name, value in session.model.state_dict().items()},
        files=sorted(path.name for path in session.folder.iterdir()),
        lines=[{name: value for name, value in line.items() if name != "time"} for line in lines],
        saved=(
            saved.weights,
            saved.state.progress.optimizers[""].state,
            saved.state.trained_by and saved.state.trained_by.criterion,
        ),
    )


@cache
def never_failed(change: str, way: str) -> Traces:
    """What a session holds that made the change and trained, with nothing in between."""
    with TemporaryDirectory() as folder:
        session = trained(Path(folder))
        CHANGES[change](session)
        call(session, way)
        return traces(session)


def contents(folder: Path) -> dict[Path, bytes]:
    """All files below a folder, with what is in them."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("way", ["train", "traverse"])
@pytest.mark.parametrize(("fail", "processes"), FAILURES)
@pytest.mark.parametrize("change", CHANGES)
def test_failed_and_corrected_is_never_failed(tmp_path: Path, change: str, fail: Any, processes: int, way: str) -> None:
    """After a call that failed before its first row no file has changed, and what is trained then is the same."""
    session = trained(tmp_path)
    CHANGES[change](session)
    before, files = session.annotations, contents(tmp_path)
    fail(session, way, processes)
    after, left = session.annotations, contents(tmp_path)
    call(session, way)

    assert before == after
    assert files == left
    expected, found = never_failed(change, way), traces(session)
    assert [] == [name for name in Traces._fields if not same(getattr(expected, name), getattr(found, name))]


@pytest.mark.parametrize(("fail", "processes"), FAILURES)
def test_a_first_call_that_failed_leaves_no_folder(tmp_path: Path, fail: Any, processes: int) -> None:
    """Where nothing was trained yet, nothing is on the disk after a call that failed either, data/ included."""
    session = regression(epochs=1, save=True, base_dir=tmp_path)
    fail(session, "train", processes)

    assert [] == list(tmp_path.iterdir())
    assert session.folder is None
    session.train()
    assert [0] == session.saved_epochs
