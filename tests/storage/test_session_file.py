"""A session in a file is the session: it goes on with the same numbers, here, in a new process, on the command line."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.kernel import Kernel
from harness.plain import distance, network, numbers, regression
from torch import nn, optim
from torch.optim import lr_scheduler

from quik_nb import CheckpointError, QuikSession
from quik_nb.storage.files import read_weights


def scheduled(**settings: Any) -> QuikSession:
    """A session whose continuation needs all of its state: moments, schedule, dropout, a metric that is a lambda."""
    return (
        regression(network(dropout=0.3), **settings)
        .set_optimizer(optim.AdamW)
        .set_scheduler(lr_scheduler.OneCycleLR, max_lr=0.05)
        .set_metrics(largest=lambda outputs, targets: (outputs - targets).abs().max())
    )


def test_load_gives_the_session_back(tmp_path: Path) -> None:
    """Settings, parts, samples, weights and history are those that were saved."""
    session = scheduled(epochs=2)
    session.train()
    loaded = QuikSession.load(session.save(tmp_path / "session.pt"))

    assert session.settings == loaded.settings
    assert repr(session) == repr(loaded)
    assert 0.0 == distance(session.model, loaded.model)
    assert session.history.to_dict() == loaded.history.to_dict()
    assert session.evaluate("valid") == loaded.evaluate("valid")


@pytest.mark.parametrize("done", [0, 1, 3])
def test_training_continues(done: int, tmp_path: Path) -> None:
    """Saved after some epochs and loaded, a training ends with the very weights of one that was not interrupted."""
    whole, first = scheduled(epochs=4), scheduled(epochs=4)
    whole.train()
    if done:
        first.train(epochs=done)
    second = QuikSession.load(first.save(tmp_path / "session.pt"))
    second.train(epochs=4 - done)

    assert list(whole.history.train_loss) == list(second.history.train_loss)
    assert 0.0 == distance(whole.model, second.model)


def test_a_loaded_session_keeps_to_a_folder_of_its_own(tmp_path: Path) -> None:
    """Two sessions of one file write two run folders, and each of them can be resumed with the whole history."""
    first = scheduled(epochs=1, save=True, base_dir=tmp_path, data_date="20210101")
    first.train()
    second = QuikSession.load(first.save(tmp_path / "session.pt"))
    second.load_best().train()
    resumed = QuikSession.resume(second.folder)

    assert first.folder != second.folder
    assert [0, 1] == list(resumed.history.epoch)
    assert 0.0 == distance(second.model, resumed.model)
    resumed.train(epochs=1)
    assert [0, 1, 2] == list(resumed.history.epoch)


def test_reset_still_starts_from_scratch(tmp_path: Path) -> None:
    """A loaded session knows the weights of before the first epoch."""
    session = regression(epochs=1)
    session.train()
    loaded = QuikSession.load(session.save(tmp_path / "session.pt")).reset()

    assert 0.0 == distance(network(), loaded.model)


def test_a_view_of_large_tensors_is_saved_small(tmp_path: Path) -> None:
    """A slice of a large tensor is saved without the rest, and a session that is not complete is saved as it is."""
    x, y = torch.randn(100_000, 10), torch.randn(100_000, 1)
    path = QuikSession(view=False).add_data(train=(x[:50], y[:50])).save(tmp_path / "session.pt")

    assert path.stat().st_size < 100_000
    assert "add_model(Net())" in repr(QuikSession.load(path))


def test_the_original_is_not_tied_to_the_loaded(tmp_path: Path) -> None:
    """A loaded session is another one: training it leaves the first as it is."""
    first = regression(epochs=1)
    second = QuikSession.load(first.save(tmp_path / "session.pt"))
    second.train()

    assert 0.0 == distance(network(), first.model)


def test_parts_and_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """A part that cannot be pickled is named and leaves no file; other files are refused with what loads them."""
    session = regression().set_metrics(odd=lambda outputs, targets, file=sys.stdout: 0.0)
    weights = tmp_path / "weights.pt"
    torch.save(network().state_dict(), weights)
    (tmp_path / "broken.pt").write_bytes(b"no")

    with (tmp_path / "open").open("w") as file:
        session.set_metrics(odd=lambda outputs, targets: file.name)
        with pytest.raises(CheckpointError, match="its metrics cannot be written"):
            session.save(tmp_path / "session.pt")
    assert not (tmp_path / "session.pt").exists()
    with pytest.raises(CheckpointError, match="and not a session"):
        QuikSession.load(weights)
    with pytest.raises(CheckpointError, match="cannot be read"):
        QuikSession.load(tmp_path / "broken.pt")
    with pytest.raises(CheckpointError, match="There is no file"):
        QuikSession.load(tmp_path / "absent.pt")


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`python -m quik_nb ...` in a folder; a warning is an error."""
    command = [sys.executable, "-W", "error", "-m", "quik_nb", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_the_command_line_trains_a_file(tmp_path: Path) -> None:
    """`python -m quik_nb train FILE` trains on, keeps the result in the file, and says so; classes come along."""
    first, whole = scheduled(epochs=3), scheduled(epochs=3)
    first.train(epochs=1)
    first.save(tmp_path / "session.pt")
    done = command("train", "session.pt", "--epochs", "2", "--view", "text", folder=tmp_path)
    loaded = QuikSession.load(tmp_path / "session.pt")
    whole.train()

    assert (0, "") == (done.returncode, done.stderr)
    assert list(whole.history.train_loss) == list(loaded.history.train_loss)
    assert "session.pt" in done.stdout.splitlines()[-1]


def test_a_model_from_a_cell_travels(kernel: Kernel, tmp_path: Path) -> None:
    """A session of a notebook, with what was written in its cells, trains on two ranks on the command line."""
    kernel.ok("""
import torch; from torch import nn, optim; from quik_nb import QuikSession
class Net(nn.Module):
    def __init__(self):
        super().__init__(); self.layer = nn.Linear(5, 1)
    def forward(self, x): return scaled(self.layer(x))
def scaled(x): return 2 * x
session = (QuikSession(epochs=1, view=False, save=False).add_data(train=(torch.ones(40, 5), torch.ones(40, 1)))
           .add_model(Net).set_criterion(nn.MSELoss).set_optimizer(optim.SGD))
path = session.save("session.pt")
""")
    done = command("train", "session.pt", "--processes", "2", folder=tmp_path)
    shown = kernel.ok("""
loaded = QuikSession.load(path); session.train()
print(abs(session.history.train_loss[0] - loaded.history.train_loss[0]) < 1e-6)
""")

    assert (0, "") == (done.returncode, done.stderr)
    assert "True\n" == shown.text


def test_the_command_line_tells_what_is_wrong(tmp_path: Path) -> None:
    """A file that is not there, or a session that cannot train yet, is told in words, without a traceback."""
    QuikSession(view=False).save(tmp_path / "empty.pt")
    absent, empty = (command("train", name, folder=tmp_path) for name in ("absent.pt", "empty.pt"))

    assert [1, 1] == [absent.returncode, empty.returncode]
    assert "There is no file absent.pt" in absent.stderr
    assert ".add_model(Net())" in empty.stderr
    assert "Traceback" not in absent.stderr + empty.stderr


class Tied(nn.Module):
    """Two layers that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 5).double(), nn.Linear(5, 5).double()
        self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x))[:, :1]


@pytest.mark.parametrize("make", [network, Tied])
def test_export(make: Any, tmp_path: Path) -> None:
    """Exported weights are the model's, tied ones too; add_model takes the file as it takes others."""
    pytest.importorskip("safetensors", reason="safetensors is an extra")
    session = regression(make(), epochs=1)
    session.train()
    path = session.export(tmp_path / "deep" / "model.safetensors")
    other = regression(make()).add_model(make(), state_dict=path)

    assert list(session.model.state_dict()) == sorted(read_weights(path), key=list(session.model.state_dict()).index)
    assert 0.0 == distance(session.model, other.model)
    assert [path] == list(path.parent.iterdir())
    x, _ = numbers(3)
    assert session.predict(x).tolist() == other.predict(x).tolist()


def test_export_says_what_to_install(tmp_path: Path) -> None:
    """Without safetensors the message says what to type."""
    code = """
import sys; sys.modules["safetensors"] = None; sys.modules["safetensors.torch"] = None
import torch; from quik_nb import QuikSession, QuikError
try:
    QuikSession(view=False).add_model(torch.nn.Linear(1, 1)).export("model.safetensors")
except QuikError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)

    assert "pip install 'quik_nb[safetensors]'" in said.stdout
    assert [] == list(tmp_path.iterdir())
