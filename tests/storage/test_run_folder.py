"""A run folder is picked up again by a session that knows nothing of the first one."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.plain import classes, distance, network, quiet, regression
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import Dataset

from quik_nb import CheckpointError, QuikSession, RecipeError
from quik_nb.events import Annotation, Row
from quik_nb.history import History


def saving(folder: Path, **settings: Any) -> QuikSession:
    """Dropout, moments and a schedule: all that must come back."""
    session = regression(network(dropout=0.3), epochs=4, save=True, base_dir=folder, **settings)
    return session.set_optimizer(optim.Adam).set_scheduler(lr_scheduler.OneCycleLR, max_lr=0.1)


def losses(session: QuikSession) -> list[tuple[float, float]]:
    """The rows without their times."""
    return list(zip(session.history["train_loss"], session.history["valid_loss"], strict=True))


@pytest.mark.parametrize("step", [3, 7, 11])
def test_a_stopped_run_continues_from_its_folder(tmp_path: Path, step: int) -> None:
    """A run that was stopped anywhere ends, resumed from its folder, with the numbers of one that was not."""
    straight, stopped = saving(tmp_path / "straight"), saving(tmp_path / "stopped")
    straight.train()
    seen = 0

    def count(model: nn.Module, inputs: Any) -> None:
        nonlocal seen
        seen += model.training
        if seen == step and model.training and stopped.run is not None:
            stopped.run.stop()

    handle = stopped.model.register_forward_pre_hook(count)
    stopped.train()
    handle.remove()
    assert stopped.folder is not None
    resumed = QuikSession.resume(stopped.folder)
    whole = sum(row.fraction == 1.0 for row in stopped._runs.state.history)
    resumed.train(4 - whole, view=False)

    assert losses(straight) == losses(resumed)
    assert 0.0 == distance(straight.model, resumed.model)


def test_a_resumed_session_has_history_and_files(tmp_path: Path) -> None:
    """History, weights and best epoch are those of the first session."""
    session = saving(tmp_path)
    session.train(3)
    resumed = QuikSession.resume(session.folder)

    assert session.history.equals(resumed.history)
    assert 0.0 == distance(session.model, resumed.model)
    assert 0.0 == distance(session.load_best().model, resumed.load_best().model)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    """A folder that holds no run is a CheckpointError."""
    with pytest.raises(CheckpointError):
        QuikSession.resume(tmp_path)


def test_weights_of_classes_go_on(tmp_path: Path) -> None:
    """A criterion that counts by class weight is resumed as well."""
    weight = torch.tensor([0.2, 1.0, 7.0], dtype=torch.float64)
    session = quiet(epochs=2, save=True, base_dir=tmp_path).add_data(train=classes(), valid=classes(37))
    session.add_model(network(3)).set_criterion(nn.CrossEntropyLoss, weight=weight).set_optimizer(optim.SGD)
    session.train(1)
    resumed = QuikSession.resume(session.folder)
    session.train(1)
    resumed.train(1)

    assert losses(session) == losses(resumed)


def test_calls_that_save_nothing_leave_no_gap(tmp_path: Path) -> None:
    """The rows of a call with `save=False` are in the folder as soon as a later call saves again."""
    session = saving(tmp_path)
    session.train(1)
    session.train(1, save=False)
    session.train(1)
    resumed = QuikSession.resume(session.folder)

    assert session.history.equals(resumed.history)
    assert [0, 2] == resumed.saved_epochs


@pytest.mark.parametrize("torn", ['{"epoch": 2, "train_l', "\x00\x00", '{"epoch": 2, "tr{"epoch": 3}\n'])
def test_a_line_that_was_cut_is_mended(tmp_path: Path, torn: str) -> None:
    """A row that was cut while it was written costs neither the resumed training nor the one after it."""
    session = saving(tmp_path)
    session.train(2)
    assert session.folder is not None
    with (session.folder / "history.jsonl").open("a") as file:
        file.write(torn)
    resumed = QuikSession.resume(session.folder)
    resumed.train(1, view=False)
    again = QuikSession.resume(session.folder)

    assert [0, 1, 2] == again.history["epoch"].tolist()
    assert resumed.history.equals(again.history)


def test_a_session_loads_only_its_own_weights(tmp_path: Path) -> None:
    """A resumed session loads the epochs of its folder, also after others trained in that place on another day."""
    session = saving(tmp_path)
    session.train()
    best = session.load_best().model.state_dict()
    saving(tmp_path, seed=7).train()
    for path in (tmp_path / "data").glob("state_dict_e*"):
        path.unlink()

    assert 0.0 == distance(best, QuikSession.resume(session.folder).load_best().model)


def test_any_kind_of_state_is_retrieved(tmp_path: Path) -> None:
    """A scheduler with objects and NumPy's numbers in its state trains in workers, and is resumed."""

    class Noting(lr_scheduler.LambdaLR):
        def __init__(self, optimizer: optim.Optimizer) -> None:
            self.note = {"rates": np.ones(2), "path": tmp_path}
            super().__init__(optimizer, lambda step: np.float64(0.5) ** step)

    session = saving(tmp_path).set_scheduler(Noting)
    session.train(1, processes=2)
    resumed = QuikSession.resume(session.folder)
    resumed.train(1, view=False)

    assert [1e-3, 5e-4] == pytest.approx(resumed.history["lr"].tolist(), abs=1e-3)
    assert "finished" == session.runs["state"].iloc[-1]


class Long(Dataset[Any]):
    """A dataset of some size, which only its pickle tells."""

    def __init__(self, kilobytes: int) -> None:
        self.x = np.zeros((kilobytes, 128))

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> Any:
        return self.x[i, :5], self.x[i, :1]


def test_data_too_large_to_save_are_not_replaced_by_older_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data above `SAMPLES_BYTES` are not saved, and data of an earlier call are removed."""
    monkeypatch.setattr("quik_nb.storage.run_folder.SAMPLES_BYTES", 100_000)
    session = saving(tmp_path).add_data(train=Long(20))
    session.train(epochs=1)
    assert session.folder is not None
    kept = (session.folder / "samples.pt").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.add_data(train=Long(200)).train(epochs=1)
    again = QuikSession.resume(session.folder)

    assert kept
    assert ["checkpoint.pt", "history.jsonl", "recipe.pt", "state_dict_e0.pt", "state_dict_e1.pt"] == sorted(
        path.name for path in session.folder.iterdir()
    )
    with pytest.raises(RecipeError, match=r"missing:\n    .add_data"):
        again.train()


def with_lines(base_dir: Path, lines: str) -> Path:
    """The folder of one epoch, with further lines in its history."""
    session = saving(base_dir)
    session.train(epochs=1)
    assert session.folder is not None
    with (session.folder / "history.jsonl").open("a") as file:
        file.write(lines)
    return session.folder


def test_a_checkpoint_in_an_epoch_and_what_came_after(tmp_path: Path) -> None:
    """Rows and marks of after the checkpoint, from a call that was killed, are not taken for its own."""
    later = History(
        [Row(1, 0.5, 0.5, 1.0, 0.1)], [Annotation(1.5, "lr 0.1"), Annotation(1.0, "x", breaks_comparison=True)]
    )
    again = QuikSession.resume(with_lines(tmp_path, later.to_jsonl()))

    assert [0] == list(again.history.epoch)
    assert [] == again.annotations
    again.load_best()


def test_a_history_of_another_version(tmp_path: Path) -> None:
    """A record with fields that this version does not know is refused by name."""
    folder = with_lines(tmp_path, '{"epoch": 1, "luck": 3}\n')
    with pytest.raises(CheckpointError, match=r"history.jsonl is not a history of this version.*luck"):
        QuikSession.resume(folder)


def test_a_folder_in_which_another_session_trains(tmp_path: Path) -> None:
    """A session that goes on from a folder while the first one still writes there does so in a folder of its own."""
    first, others = saving(tmp_path), []
    first.train(epochs=2)

    def go_on(event: Any) -> None:
        if event.row.epoch == 2:
            others.append(QuikSession.resume(first.folder))
            others[0].train(epochs=1)

    first.on("epoch_end", go_on).train(epochs=2)
    assert first.folder is not None
    (other,) = others

    assert first.folder != other.folder
    assert [0, 1, 2, 3] == list(QuikSession.resume(first.folder).history.epoch)
    for epoch in (0, 1):
        assert 0.0 == distance(first.load_epoch(epoch).model, other.load_epoch(epoch).model)
    again = QuikSession.resume(first.folder)
    again.train(epochs=1)
    assert first.folder == again.folder


def test_a_call_that_was_killed_before_it_saved_anything(tmp_path: Path) -> None:
    """A kernel killed after the change of a recipe and before any checkpoint of it is resumed as if never changed."""

    def thousandth(outputs: Any, targets: Any) -> Any:
        return 0.001 * (outputs - targets).square().mean()

    copies: list[Path] = []
    session, straight = (saving(base).set_criterion(thousandth) for base in (tmp_path / "one", tmp_path / "two"))
    session.train(epochs=2)
    straight.train(epochs=2)
    session.set_criterion(nn.MSELoss).on("epoch_end", lambda event: copies.append(copied(session.folder)))
    session.train(epochs=1)
    resumed = QuikSession.resume(copies[0])
    resumed.train(epochs=2)
    straight.train(epochs=2)

    assert [] == resumed.annotations
    assert losses(straight) == losses(resumed)
    assert 0.0 == distance(straight.model, resumed.model)


def copied(folder: Path | None) -> Path:
    """A copy of a run folder as it is now: what a kernel that is killed at this moment leaves."""
    assert folder is not None
    return Path(shutil.copytree(folder, folder.with_name("run_killed")))


def test_a_training_that_never_began_holds_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a launch that failed, another session goes on in the very same folder."""
    session = saving(tmp_path)
    session.train(epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr("quik_nb.session.training_runs.launch", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.train(epochs=1)
    again = QuikSession.resume(session.folder)
    again.train(epochs=1)

    assert session.folder == again.folder


@pytest.mark.parametrize("name", ["resnet/lr 0.1", "../../elsewhere", "x" * 300, "Übung: 1"])
def test_any_name_makes_a_folder_in_its_place(tmp_path: Path, name: str) -> None:
    """A session's name may hold anything: its run folder lies beside the others, and is found by resume."""
    session = saving(tmp_path, name=name)
    session.train(epochs=1)
    assert session.folder is not None

    assert tmp_path / "data" == session.folder.parent
    assert session.history.equals(QuikSession.resume(base_dir=tmp_path).history)


def test_a_folder_that_was_deleted_is_written_again(tmp_path: Path) -> None:
    """Where all files are deleted while a training runs, the next call writes what is needed to resume."""
    session = saving(tmp_path)
    session.train(epochs=2)
    shutil.rmtree(tmp_path / "data")
    session.train(epochs=1)
    resumed = QuikSession.resume(base_dir=tmp_path)

    assert session.history.equals(resumed.history)
    assert [2] == session.saved_epochs


def test_a_change_of_folder_moves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default `base_dir`, a session goes on in its run folder after %cd."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    session = saving(Path("."))
    session.train(epochs=1)
    monkeypatch.chdir(there)
    session.train(epochs=1)

    assert [0, 1] == session.saved_epochs
    assert session.history.equals(QuikSession.resume(base_dir=here).history)
