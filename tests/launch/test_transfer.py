"""The file that carries a run: one copy for all workers, written when something changed, private, not in /dev/shm."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.kernel import Kernel
from harness.plain import network, numbers, quiet
from harness.workers import Notebook
from torch import Tensor, nn, optim

from quik_nb import QuikSession
from quik_nb.launch.transfer import SCRATCH, Scratch

MEGABYTES = 300


def test_workers_hold_one_copy_of_the_data(notebook: Kernel) -> None:
    """The memory that the samples take in all workers together is that of one copy, whatever their number."""
    notebook.ok(
        "import re\n"
        "def tree_map(name):\n"
        "    blocks = re.split(r'(?m)^(?=[0-9a-f]+-[0-9a-f]+ )', open('/proc/self/smaps').read())\n"
        "    data = [b for b in blocks if name in b.split('\\n')[0]]\n"
        "    return sum(int(n) for b in data for n in re.findall(r'Pss: +(\\d+)', b)) // 1024\n"
        "def own():\n"
        "    return int(re.search(r'Pss: +(\\d+)', open('/proc/self/smaps_rollup').read()).group(1)) // 1024\n"
        "def measure(rank, step):\n"
        "    if step % 10 == 0:\n"
        "        if torch.distributed.is_initialized():\n"
        "            torch.distributed.barrier(); torch.distributed.barrier()\n"
        "        print(step, tree_map('/data'), own())\n"
        "        if torch.distributed.is_initialized():\n"
        "            torch.distributed.barrier()\n"
        f"big = torch.ones({MEGABYTES} * 131072 // 1024, 1024, dtype=torch.float64)\n"
        "class Wide(Net):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x[:, :5])\n"
        "def memory(processes):\n"
        "    s = QuikSession(epochs=2, batch_size=3840, view=False, save=False, output='all')\n"
        "    s.add_data(train=(big, torch.zeros(len(big), dtype=torch.int64))).add_model(Wide(measure))\n"
        "    s.set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.SGD).train(processes=processes)\n"
    )

    def total(processes: int) -> tuple[int, int]:
        lines = notebook.ok(f"memory({processes})").text.splitlines()
        last = [line.split()[-2:] for line in lines if line.split()[-3] == "20"]
        assert processes == len(last)
        return sum(int(data) for data, _ in last), sum(int(all_of_it) for _, all_of_it in last)

    (two_data, two), (four_data, four) = total(2), total(4)
    print(f"samples {MEGABYTES} MB; mapped by 2 workers {two_data}, by 4 {four_data}; all memory {two} and {four}")

    assert MEGABYTES == pytest.approx(two_data, rel=0.05)
    assert MEGABYTES == pytest.approx(four_data, rel=0.05)
    assert four < two + MEGABYTES


Change = Callable[[Tensor, "np.ndarray[Any, Any]"], object]


def in_place(x: Tensor, array: "np.ndarray[Any, Any]") -> None:
    """A change by torch."""
    x.mul_(2)


def by_index(x: Tensor, array: "np.ndarray[Any, Any]") -> None:
    """A change of one number by torch."""
    x[50, 2] = 7.0


def by_numpy(x: Tensor, array: "np.ndarray[Any, Any]") -> None:
    """A change of one number by NumPy, which torch does not notice."""
    array[50, 2] = 7.0


def by_swapping(x: Tensor, array: "np.ndarray[Any, Any]") -> None:
    """A change that keeps all sums."""
    array[[3, 4]] = array[[4, 3]]


def data_file() -> Path | None:
    """The file of samples that lies ready."""
    assert SCRATCH.path is not None
    return next(SCRATCH.path.glob("data_*.pt"), None)


def mean_input(x: Any, y: Tensor) -> QuikSession:
    """A session whose loss is a mean of what the workers see of the inputs."""
    model = network(dtype=torch.float32)
    session = quiet(epochs=1).add_data(train=(x, y)).add_model(model).set_optimizer(optim.SGD, lr=0.0)
    order = torch.arange(1.0, 6.0)
    return session.set_step(lambda model, criterion, batch: (batch[0] * order).mean() + 1e-9 * model(batch[0]).mean())


def test_unchanged_samples_are_not_written_again() -> None:
    """A second run, and another model with the same samples, take the file that is there."""
    x, y = numbers(dtype=torch.float32)
    session = mean_input(x, y)
    session.train(processes=2)
    first = data_file()
    session.train(processes=2)
    session.add_model(network(outputs=2, dtype=torch.float32)).train(processes=2)
    mean_input(x, y).train(processes=2)

    assert first is not None
    assert first == data_file()


@pytest.mark.parametrize("change", [in_place, by_index, by_numpy])
@pytest.mark.parametrize("kind", ["array", "tensor of an array", "array of a tensor"])
def test_changed_samples_are_written_again(change: Change, kind: str) -> None:
    """Workers see what was changed in place, by torch or by NumPy, however tensor and array came to share memory."""
    x, y = numbers(dtype=torch.float32)
    if kind == "array of a tensor":
        array = x.numpy()
    else:
        array = x.numpy().copy()
        x = torch.from_numpy(array)
    session = mean_input(array if kind == "array" else x, y)
    session.train(processes=2)
    change(x, array)
    session.train(processes=2)

    expected = (x * torch.arange(1.0, 6.0)).mean().item()
    assert expected == pytest.approx(session.history.train_loss.iloc[-1], rel=1e-5)
    assert session.history.train_loss.iloc[0] != pytest.approx(session.history.train_loss.iloc[1])


def test_swapped_samples_are_written_again() -> None:
    """A change that leaves the sum of all numbers as it was is noticed too."""
    x, y = numbers(dtype=torch.float32)
    array = x.numpy().copy()
    session = mean_input(array, y)
    session.train(processes=2)
    first = data_file()
    by_swapping(x, array)
    session.train(processes=2)

    assert first != data_file()


def test_views_travel_without_the_rest_of_their_tensor() -> None:
    """A small part of a large tensor is written as the small part."""
    large = torch.zeros(2_000_000, 5)
    mean_input(large[:100], numbers(100, torch.float32)[1]).train(processes=2)
    file = data_file()

    assert file is not None
    assert file.stat().st_size < 100_000


def test_what_workers_read_is_private(notebook: Kernel, started: Notebook) -> None:
    """The folder through which ranks meet and read is the user's alone, and no socket of a worker faces the network."""
    cell = notebook.start(
        "import psutil, stat\n"
        "def look(rank, step):\n"
        "    if step == 3 and rank == 0:\n"
        "        family = psutil.Process().parent().children(recursive=True) + [psutil.Process().parent()]\n"
        "        for process in family:\n"
        "            for c in process.net_connections(kind='inet'):\n"
        "                print('socket', c.status, c.laddr.ip)\n"
        "s = session(Net(look), epochs=2); s.train(processes=3)"
    )
    result = cell.finish()
    sockets = {line.split()[-1] for line in result.text.splitlines() if line.startswith("socket")}
    folders = list(started.temporary.glob("quik_nb_*"))

    assert [] == result.errors
    assert sockets
    assert set() == sockets - {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert [0o700] == [folder.stat().st_mode & 0o777 for folder in folders]


def test_the_sweep_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link with a name of ours in the folder for temporary files, where anybody may write, leads to nothing made."""
    temporary, elsewhere = tmp_path / "temporary", tmp_path / "elsewhere"
    temporary.mkdir()
    elsewhere.mkdir()
    os.utime(elsewhere, (1, 1))  # long ago, as a folder that was left behind
    (temporary / "quik_nb_1_x").symlink_to(elsewhere)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    scratch = Scratch().folder()

    assert [] == list(elsewhere.iterdir())
    assert {"quik_nb_1_x", scratch.name} == {path.name for path in temporary.iterdir()}


SMALL_SHARED_MEMORY = """
import os, torch
from torch import nn, optim
from quik_nb import QuikSession
x = torch.randn(200_000, 100)
y = x[:, :1].clone()
rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[:2000], y[:2000]), batch_size=50, num_workers=1)
session = QuikSession(epochs=1, batch_size=5000, view=False, save=False)
session.add_data(train=(x, y)).add_model(nn.Linear(100, 1))
session.set_criterion(nn.MSELoss).set_optimizer(optim.SGD)
session.train(processes=3)
print(session.run.state)
print(session.add_data(train=rows).train(processes=2).state)
print(os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize // 2**20, len(os.listdir("/dev/shm")))
"""


def test_a_small_shared_memory_is_enough(tmp_path: Path) -> None:
    """With 64 MB in /dev/shm, as in many containers, workers train on more than that and leave nothing there."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount: run as root")
    (tmp_path / "script.py").write_text(SMALL_SHARED_MEMORY)
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    command = ["unshare", "-m", "sh", "-c", f"{mount} && exec {sys.executable} script.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, env=os.environ)

    assert "" == done.stderr
    assert "finished\nfinished\n64 0\n" == done.stdout


def test_a_model_is_each_workers_own() -> None:
    """Ranks do not write into one another's weights: what rank 1 does to its buffers stays with rank 1."""
    model = Counting()
    quiet(epochs=1).add_data(train=numbers(64)).add_model(model).set_criterion(nn.MSELoss).set_optimizer(
        optim.SGD
    ).train(processes=2)

    assert 4 == int(model.seen)


class Counting(nn.Module):
    """Counts its batches in a buffer, which DDP takes from rank 0."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.inner(x)
