"""Files: their names, whole at any moment, of this session, and safe to read."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.plain import distance, network, quiet, regression, weights
from torch import Tensor, nn

from quik_nb import CheckpointError, Loop, QuikSession
from quik_nb.storage.files import write

DATE = "20210101"


def saving(folder: Path, **settings: Any) -> QuikSession:
    """A session that writes into a folder."""
    return regression(**{"epochs": 3, "save": True, "base_dir": folder, "data_date": DATE, **settings})


def names(folder: Path) -> list[str]:
    """The weight files that are there."""
    return sorted(path.name.removesuffix(f"_{DATE}.pt") for path in (folder / "data").glob("*.pt"))


def test_weights_are_saved_under_their_usual_names(tmp_path: Path) -> None:
    """`state_dict_eorig` has the weights of before, `e0`, `e1`, ... those after each epoch, readable by plain torch."""
    session = saving(tmp_path)
    before = weights(session.model)
    session.train()
    original, last = (torch.load(tmp_path / "data" / f"state_dict_{e}_{DATE}.pt") for e in ("eorig", "e2"))

    assert ["state_dict_e0", "state_dict_e1", "state_dict_e2", "state_dict_eorig"] == names(tmp_path)
    assert 0.0 == distance(before, original)
    assert 0.0 == distance(session.model, last)


def test_an_epoch_is_loaded_back(tmp_path: Path) -> None:
    """`load_epoch(0)` holds the weights that a session of one epoch ends with."""
    once, session = regression(epochs=1), saving(tmp_path)
    once.train()
    session.train()
    session.load_epoch(0)

    assert 0.0 == distance(once.model, session.model)


def test_the_best_epoch_is_loaded_back(tmp_path: Path) -> None:
    """`load_best()` holds the weights of the row with the lowest valid_loss."""
    session = saving(tmp_path, epochs=6, lr=0.9)
    session.train()
    best = session.history["valid_loss"].min()
    last = session.evaluate()["loss"]
    session.load_best()

    assert best == session.evaluate()["loss"]
    assert last == session.history["valid_loss"].iloc[-1]


def epochs_there(folder: Path) -> list[int]:
    """The epochs whose weights are there."""
    return [int(name.removeprefix("state_dict_e")) for name in names(folder) if not name.endswith("orig")]


def test_a_callback_finds_the_files_of_its_row(tmp_path: Path) -> None:
    """When `epoch_end` is sent, the weights of that epoch are there, however short it was; so they are in a loop."""
    session, found = saving(tmp_path), []
    session.on("epoch_end", lambda event: found.append((event.row.epoch, epochs_there(tmp_path))))
    session.train()

    assert [(0, [0]), (1, [0, 1]), (2, [0, 1, 2])] == found


def test_a_custom_loop_finds_the_files_of_its_rows(tmp_path: Path) -> None:
    """Within an epoch of `traverse()` the weights of the epochs before are there."""
    session, found = saving(tmp_path), []

    def loop(pieces: Loop) -> None:
        for epoch in pieces.iter_epochs():
            found.append((epoch, epochs_there(tmp_path)))
            for x, y in pieces.loader("train"):
                loss = pieces.criterion(pieces.model(x), y)
                pieces.backward(loss)
                pieces.metrics.add_loss(loss)
            pieces.end_epoch()

    session.traverse(loop)

    assert [(0, []), (1, [0]), (2, [0, 1])] == found


def test_files_are_written_without_long_delay(tmp_path: Path) -> None:
    """Where an epoch takes half a second its file is there when the next one ends; short ones may be behind by less."""
    found: dict[int, list[int]] = {}

    def slow(outputs: Tensor, targets: Tensor) -> float:
        found[len(found)] = epochs_there(tmp_path)
        time.sleep(0.5)
        return 0.0

    saving(tmp_path).set_metrics(slow=slow).train()

    assert {0: [], 1: [0], 2: [0, 1]} == found


def test_large_weights_are_written_immediately(tmp_path: Path) -> None:
    """Weights larger than 4 MiB are written without delay, so that no copy stays in memory."""
    found: dict[int, list[int]] = {}

    def look(outputs: Tensor, targets: Tensor) -> float:
        found[len(found)] = epochs_there(tmp_path)
        return 0.0

    wide = nn.Sequential(nn.Linear(5, 100_000), nn.ReLU(), nn.Linear(100_000, 1)).double()
    saving(tmp_path, lr=1e-6).add_model(wide).set_metrics(look=look).train()

    assert {0: [], 1: [0], 2: [0, 1]} == found


def test_an_error_leaves_the_files_of_the_epochs_before(tmp_path: Path) -> None:
    """What is raised in epoch 3 leaves the weights of 0, 1 and 2, and a folder to go on from to the same numbers."""
    whole, session = saving(tmp_path / "whole", epochs=5), saving(tmp_path / "broken", epochs=5)
    calls: list[int] = []

    def fails(outputs: Tensor, targets: Tensor) -> float:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("in epoch 3")
        return 0.0

    whole.train()
    with pytest.raises(RuntimeError, match="in epoch 3"):
        session.set_metrics(bad=fails).train()

    assert [0, 1, 2] == epochs_there(tmp_path / "broken")
    (folder,) = (tmp_path / "broken" / "data").glob("run_*")
    resumed = QuikSession.resume(folder).set_metrics()
    resumed.train(epochs=2)
    assert whole.history["valid_loss"].tolist() == resumed.history["valid_loss"].tolist()


def test_nothing_is_written_without_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `save=False` no file comes about, and `load_best()` says why there is none."""
    monkeypatch.chdir(tmp_path)
    session = saving(tmp_path, save=False)
    session.train()

    assert [] == list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="save=True"):
        session.load_best()


@pytest.mark.parametrize("calls", [(6,), (2, 2, 2), (1, 5)])
def test_only_some_files_stay(tmp_path: Path, calls: tuple[int, ...]) -> None:
    """`keep=2` leaves the two newest epochs, the best one and the original, over all calls of train()."""
    session = saving(tmp_path, keep=2, lr=0.01)
    for epochs in calls:
        session.train(epochs)
    best = int(session.history["valid_loss"].idxmin())
    session.load_best()
    expected = {f"state_dict_e{epoch}" for epoch in (4, 5, best)} | {"state_dict_eorig"}

    assert expected == set(names(tmp_path))
    with pytest.raises(CheckpointError, match=r"no file|not saved"):
        session.load_epoch(0)


def test_settings_of_one_call_decide_where_it_saves(tmp_path: Path) -> None:
    """`train(base_dir=..., save=...)` holds for that call, and each epoch is loaded from where it was saved."""
    session = saving(tmp_path / "one")
    session.train(1)
    session.train(1, base_dir=tmp_path / "two")
    held = weights(session.model)
    session.train(1, save=False)

    assert ["state_dict_e0", "state_dict_eorig"] == names(tmp_path / "one")
    assert ["state_dict_e1"] == names(tmp_path / "two")
    assert 0.0 == distance(held, session.load_epoch(1).model)
    with pytest.raises(CheckpointError, match="epoch 2 were not saved"):
        session.load_epoch(2)


def test_files_of_another_session_are_not_loaded(tmp_path: Path) -> None:
    """An epoch that this session did not save is not loaded from a file that an earlier session left."""
    saving(tmp_path, epochs=3).train()
    session = saving(tmp_path)
    session.train(1)
    session.train(1, save=False)
    with pytest.raises(CheckpointError, match="epoch 1 were not saved by this session"):
        session.load_epoch(1)


def test_two_sessions_in_one_place_keep_their_weights(tmp_path: Path) -> None:
    """The files by date are those of the last training; each session loads its own, and `keep` removes its own only."""
    first, second = saving(tmp_path), saving(tmp_path, lr=0.5, epochs=2)
    first.train()
    held = weights(first.model)
    second.train()
    by_date = torch.load(tmp_path / "data" / f"state_dict_e1_{DATE}.pt")

    assert 0.0 == distance(second.model, by_date)
    assert 0.0 == distance(second.model, second.load_epoch(1).model)
    assert 0.0 == distance(held, first.load_epoch(2).model)
    second.train(2, keep=1)
    assert 0.0 == distance(held, first.load_epoch(2).model)


def test_weights_are_on_the_disk_once(tmp_path: Path) -> None:
    """The file by date and that in the training's folder are one file with two names."""
    session = saving(tmp_path, epochs=1)
    session.train()
    assert session.folder is not None

    assert os.path.samefile(session.folder / "state_dict_e0.pt", tmp_path / "data" / f"state_dict_e0_{DATE}.pt")


def test_without_links_there_are_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that has no links, both places have the weights, and `keep` removes both."""

    def no_links(*places: Path) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", no_links)
    session = saving(tmp_path, keep=1, lr=0.01)
    session.train()

    assert set(names(tmp_path)) == {f"state_dict_e{epoch}" for epoch in session.saved_epochs} | {"state_dict_eorig"}
    assert 2 in session.saved_epochs
    assert len(session.saved_epochs) < 3 or session.history["valid_loss"].idxmin() != 2


def test_a_write_that_fails_costs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk ends the training with its error; others' files stay, and the record has no gap later."""
    saving(tmp_path).train()
    session = saving(tmp_path, lr=0.5).on("epoch_end", lambda event: None)

    def full(value: Any, path: Path, **how: Any) -> None:
        if path.name == "state_dict_e1.pt":
            raise OSError(28, "No space left on device")
        write(value, path, **how)

    monkeypatch.setattr("quik_nb.storage.checkpointer.write", full)
    with pytest.raises(OSError, match="No space left"):
        session.train()
    others = torch.load(tmp_path / "data" / f"state_dict_e1_{DATE}.pt")
    monkeypatch.undo()
    after = session._runs.state.history.rows[-1].epoch
    session.train(2)
    resumed = QuikSession.resume(session.folder)

    assert others["0.weight"].shape == session.model[0].weight.shape  # type: ignore[index]
    assert list(range(after + 3)) == session.history["epoch"].tolist()
    assert session.history.equals(resumed.history)


def spoil_by_cutting(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def spoil_by_emptying(path: Path) -> None:
    path.write_bytes(b"")


def spoil_by_words(path: Path) -> None:
    path.write_text("these are no weights")


def spoil_by_another_kind(path: Path) -> None:
    torch.save([1, 2, 3], path)


def spoil_by_another_model(path: Path) -> None:
    torch.save(nn.Linear(5, 1).state_dict(), path)


def spoil_by_another_size(path: Path) -> None:
    state = network().state_dict()
    state["0.weight"] = torch.zeros(9, 5)
    torch.save(state, path)


def spoil_by_absence(path: Path) -> None:
    path.unlink()


SPOILS = [
    (spoil_by_cutting, "cannot be read.*session is unchanged"),
    (spoil_by_emptying, "cannot be read.*session is unchanged"),
    (spoil_by_words, "cannot be read.*session is unchanged"),
    (spoil_by_another_kind, "contains a list that is not a state_dict"),
    (spoil_by_another_model, r"Missing there: 0\.weight.*Unknown here: weight, bias"),
    (spoil_by_another_size, r"0\.weight is \(9, 5\) there and \(8, 5\) here"),
    (spoil_by_absence, "There is no file"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILS)
def test_a_file_that_does_not_fit(tmp_path: Path, spoil: Any, message: str) -> None:
    """A truncated, foreign or mismatching file is a CheckpointError that says what differs; the model is untouched."""
    path = tmp_path / "weights.pt"
    torch.save(network().state_dict(), path)
    spoil(path)
    model = network()
    with torch.no_grad():
        model[3].bias.fill_(7.0)  # type: ignore[index]
    before = weights(model)
    with pytest.raises(CheckpointError, match=message):
        regression().add_model(model, state_dict=path)

    assert 0.0 == distance(before, model)


class Trap:
    """Its pickle would write a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_file_with_code_in_it_is_not_run(tmp_path: Path, how: str) -> None:
    """Reading weights runs nothing that a file asks for."""
    path, sprung = tmp_path / "weights.pt", tmp_path / "sprung"
    if how == "torch":
        torch.save({"0.weight": Trap(sprung)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(CheckpointError):
        regression().add_model(network(), state_dict=path)

    assert not sprung.exists()


def test_weights_can_be_given_with_the_model(tmp_path: Path) -> None:
    """`add_model(model, state_dict=...)` takes a mapping or the path of a file."""
    other = nn.Sequential(*network())
    nn.init.ones_(other[0].weight)
    torch.save(other.state_dict(), tmp_path / "weights.pt")

    assert 0.0 == distance(other, regression().add_model(network(), other.state_dict()).model)
    assert 0.0 == distance(other, regression().add_model(network(), str(tmp_path / "weights.pt")).model)


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    """What cannot be saved leaves the file that was there, and nothing beside it."""
    path = tmp_path / "weights.pt"
    write({"a": torch.ones(1)}, path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        write({"a": torch.zeros(1), "b": lambda: 0}, path)

    assert [path] == list(tmp_path.iterdir())
    assert 1.0 == torch.load(path)["a"].item()


def test_a_kill_never_leaves_half_a_file(tmp_path: Path) -> None:
    """A process killed while it saves over and over leaves a whole file under the final name."""
    path = tmp_path / "weights.pt"
    code = f"""
        import torch
        from pathlib import Path
        from quik_nb.storage.files import write
        big = torch.ones(500_000)
        while True:
            write({{"a": big}}, Path({str(path)!r}))
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    until = time.monotonic() + 60
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()

    assert 500_000 == torch.load(path)["a"].sum().item()


def test_a_stopped_epoch_has_no_file(tmp_path: Path) -> None:
    """The weights of an unfinished epoch are saved under its name when it is whole, and load then."""
    straight, session = regression(epochs=1), saving(tmp_path, epochs=1)
    straight.train()
    handle = session.model.register_forward_pre_hook(lambda model, inputs: session.run and session.run.stop())
    session.train()
    handle.remove()
    after_stop = names(tmp_path)
    session.train()

    assert ["state_dict_eorig"] == after_stop
    assert 0.0 == distance(straight.model, session.load_epoch(0).model)


def test_a_dated_name_is_replaced_atomically(tmp_path: Path) -> None:
    """Of two trainings of one date that write at the same time, none writes into the other's files."""
    sessions = [saving(tmp_path, epochs=30, lr=lr) for lr in (0.1, 0.01)]
    threads = [threading.Thread(target=session.train) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for session in sessions:
        assert 0.0 == distance(session.model, session.load_epoch(29).model)
        assert session.folder is not None
        last = torch.load(session.folder / "state_dict_e29.pt")
        assert 0.0 == distance(session.model, last)
    assert [] == [path.name for path in (tmp_path / "data").iterdir() if path.name.startswith(".")]


def test_keep_removes_the_names_of_yesterday(tmp_path: Path) -> None:
    """Weights that are not to stay go with all of their names, also with that of another date."""
    session = saving(tmp_path, epochs=1, keep=1, lr=0.01)
    session.train(data_date="20210101")
    session.train(data_date="20210102")

    assert ["state_dict_e1_20210102.pt", "state_dict_eorig_20210101.pt"] == [
        path.name for path in sorted((tmp_path / "data").glob("*.pt"))
    ]


def test_weights_under_the_names_that_wrappers_give() -> None:
    """`module.` of DistributedDataParallel, `_orig_mod.` of torch.compile, and files that say state_dict are read."""
    model = network()
    state = {name: value + 1 for name, value in model.state_dict().items()}
    for wrapped in (
        {f"module.{name}": value for name, value in state.items()},
        {f"_orig_mod.{name}": value for name, value in state.items()},
        {f"module._orig_mod.{name}": value for name, value in state.items()},
    ):
        session = quiet().add_model(network(), state_dict=wrapped)
        assert 0.0 == distance(state, session.model)


def test_a_file_of_another_trainer(tmp_path: Path) -> None:
    """A checkpoint that holds its weights as `state_dict` is read by its path."""
    torch.save({"epoch": 3, "state_dict": network().state_dict()}, tmp_path / "last.ckpt")

    assert 0.0 == distance(network(), quiet().add_model(network(), state_dict=tmp_path / "last.ckpt").model)


class Counts(nn.Module):
    """A model with state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = network(), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += self.training * len(x)
        return self.net(x)

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


def test_extra_state_comes_with_its_epoch(tmp_path: Path) -> None:
    """What `get_extra_state` gave at an epoch's end is there again when the epoch is loaded."""
    session = regression(Counts(), epochs=2, save=True, base_dir=tmp_path)
    session.train()
    session.load_epoch(0)

    assert 101 == session.model.seen


def test_a_compiled_model_is_saved_under_its_own_names(tmp_path: Path) -> None:
    """A module that went through torch.compile is the user's own module again, and trained compiled."""
    compiled = torch.compile(network(), backend="eager")
    session = regression(epochs=1, save=True, base_dir=tmp_path).add_model(compiled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda call: call)
        session.train()
    saved = torch.load(session.folder / "state_dict_e0.pt")

    assert list(network().state_dict()) == list(saved)
    assert session.settings.compile
    assert 0.0 == distance(session.model, compiled._orig_mod)
