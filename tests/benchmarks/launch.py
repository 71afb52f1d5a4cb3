"""How long two workers take to start, from the call to the first step, and to train, each way in real kernels.

    python tests/benchmarks/launch.py

Digits, 20 epochs, two gloo workers with one thread each. Every round has a fresh kernel for every way, and two launches
in it: the first one cold, the second one warm. Ways that are not installed are skipped, with a word.
"""

import json
import sys
from argparse import ArgumentParser
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from kernels import kernel
from measure import spread

PATIENCE = 60
"""Seconds after which a launch is taken to hang."""

SETUP = """
import json, os, time, warnings
import torch, torch.distributed as dist, torch.multiprocessing as mp
from torch import nn
import tasks

task = tasks.load("digits", EPOCHS)


class Net(nn.Module):                       # a class that was written in a cell
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x):
        return self.layers(x)


def mark(what, rank=0):
    if rank == 0:
        with open(os.environ["MARKS"], "a") as file:
            file.write(json.dumps([what, time.time()]) + "\\n")


torch.manual_seed(0)
model = Net()
task.x[torch.randperm(len(task.x))]         # what any notebook does: from here on a thread pool is running
"""

FORK = """
def work(rank, port):
    torch.set_num_threads(1)                # without it this hangs for ever, as the parent's thread pool is not here
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    net = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(net.parameters(), lr=task.lr)
    criterion = nn.CrossEntropyLoss()
    data = TensorDataset(task.x, task.y)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, task.batch_size // 2, sampler=sampler)
    steps = 0
    for epoch in range(task.epochs):
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            criterion(net(x), y).backward()
            optimizer.step()
            steps += 1
            if steps == 1:
                mark("first step", rank)
    dist.barrier()
    dist.destroy_process_group()


def free_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def go():
    mp.start_processes(work, args=(free_port(),), nprocs=2, start_method="fork")
"""

FORK_WARM = (
    FORK
    + """
from torch.nn.parallel import DistributedDataParallel
torch.optim.Adam(model.parameters())        # loads some 900 modules, which the children then have
"""
)

ACCELERATE = """
from accelerate import Accelerator, notebook_launcher


def work():
    accelerator = Accelerator(cpu=True)
    from torch.utils.data import DataLoader, TensorDataset

    optimizer = torch.optim.Adam(model.parameters(), lr=task.lr)
    loader = DataLoader(TensorDataset(task.x, task.y), task.batch_size // 2, shuffle=True)
    net, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    criterion = nn.CrossEntropyLoss()
    steps = 0
    for epoch in range(task.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            accelerator.backward(criterion(net(x), y))
            optimizer.step()
            steps += 1
            if steps == 1:
                mark("first step", accelerator.process_index)


def go():
    notebook_launcher(work, num_processes=2, mixed_precision="no")
"""

LIGHTNING = """
import logging
import lightning as L
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.criterion, self.steps = model, nn.CrossEntropyLoss(), 0

    def training_step(self, batch, i):
        x, y = batch
        return self.criterion(self.net(x), y)

    def on_train_batch_end(self, *_):
        self.steps += 1
        if self.steps == 1:
            mark("first step", self.global_rank)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=task.lr)


def go():
    loader = DataLoader(TensorDataset(task.x, task.y), task.batch_size // 2, shuffle=True)
    trainer = L.Trainer(
        strategy="ddp_notebook", accelerator="cpu", devices=2, max_epochs=task.epochs, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(Lit(), loader)
"""

OURS = """
from quik_nb import QuikSession

steps = 0


def step(model, criterion, batch):
    global steps
    steps += 1
    if steps == 2:                          # so the first one is done
        mark("first step", dist.get_rank())
    x, y = batch
    return criterion(model(x), y)


session = (
    QuikSession(epochs=task.epochs, batch_size=task.batch_size, lr=task.lr, view=False, save=False)
    .add_data(train=(task.x, task.y))
    .add_model(model)
    .set_criterion(nn.CrossEntropyLoss)
    .set_optimizer(torch.optim.Adam)
    .set_step(step)
)


def go():
    session.train(processes=2)
"""

WARM_UP = """
import quik_nb
quik_nb.warm_up()
time.sleep(SETTLE)                          # what passes while the next cell is typed
"""


@dataclass(frozen=True)
class Way:
    """One way to train on two workers: what it needs, and cells of which the last defines `go()`."""

    name: str
    cells: tuple[str, ...]
    needs: str | None = None


WAYS = [
    Way("quik_nb", (OURS,)),
    Way("quik_nb after warm_up()", (OURS, WARM_UP)),
    Way("fork, one thread first", (FORK,)),
    Way("fork, one thread first, an optimizer built before", (FORK_WARM,)),
    Way("accelerate.notebook_launcher", (ACCELERATE,), "accelerate"),
    Way("Lightning ddp_notebook", (LIGHTNING,), "lightning"),
]


def launches(way: Way, epochs: int | None, count: int = 2) -> list[tuple[float, float]]:
    """Seconds to the first step and to the return, for the launches in one fresh kernel."""
    found = []
    with TemporaryDirectory() as folder:
        marks = Path(folder) / "marks"
        cells = [cell.replace("EPOCHS", str(epochs)).replace("SETTLE", "8") for cell in (SETUP, *way.cells)]
        with kernel(*cells, MARKS=str(marks), PYTHONWARNINGS="ignore") as made:
            for _ in range(count):
                marks.unlink(missing_ok=True)
                made.ok("mark('call'); go(); mark('return');", timeout=PATIENCE)
                times = dict(map(json.loads, marks.read_text().splitlines()))
                found.append((times["first step"] - times["call"], times["return"] - times["call"]))
    return found


def report(name: str, rows: Sequence[tuple[float, float]]) -> str:
    """One line of medians."""
    first, total = zip(*rows, strict=True)
    return f"{name}: first step {spread(first)} s, return {spread(total)} s"


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="instead of the task's own")
    parser.add_argument("--only", help="ways with this word in their name")
    options = parser.parse_args()
    ways = [way for way in WAYS if not options.only or options.only in way.name]
    for way in [way for way in ways if way.needs and find_spec(way.needs) is None]:
        print(f"{way.name}: skipped, {way.needs} is not installed")
        ways.remove(way)
    taken: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    lost: Counter[str] = Counter()
    for number in range(options.rounds):
        for way in ways:  # in turn, so that the machine's moods meet every way alike
            try:
                rows = launches(way, options.epochs)
            except AssertionError as error:  # it raised, or it hangs
                lost[way.name] += 1
                print(f"round {number}: {way.name}: {error}", file=sys.stderr)
                continue
            for i, row in enumerate(rows):
                taken[way.name, i].append(row)
                print(report(f"round {number}: {way.name}, launch {i + 1}", [row]), file=sys.stderr)
    for (name, i), rows in taken.items():
        print(report(f"{name}, launch {i + 1}", rows))
    for name, count in lost.items():
        print(f"{name}: {count} of {options.rounds} rounds did not come to their end")
