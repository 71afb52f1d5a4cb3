"""What the live view sends and costs, beside the displays of others, each in a real kernel of its own.

    python tests/benchmarks/display.py

Digits, 20 epochs, one thread. A display is compared with the same training without it, so fast and slow trainings
stand side by side by what the display adds. Displays that are not installed are skipped, with a word.
"""

from argparse import ArgumentParser
from dataclasses import dataclass
from importlib.util import find_spec

from kernels import SETUP, kernel
from measure import Seconds, both, in_turn, spread

COMM = ("comm_open", "comm_msg", "comm_close")

LOOP = """
from torch.utils.data import DataLoader, TensorDataset

train_set, valid_set = TensorDataset(task.x, task.y), TensorDataset(task.valid_x, task.valid_y)


def loop(epoch_end=lambda *row: None, step_end=lambda loss: None, wrap=lambda batches, epoch: batches):
    model, criterion = task.model(), task.criterion()
    optimizer = torch.optim.Adam(model.parameters(), lr=task.lr)
    train_loader = DataLoader(train_set, task.batch_size, shuffle=True)
    valid_loader = DataLoader(valid_set, task.batch_size)
    for epoch in range(task.epochs):
        model.train()
        total = 0.0
        for x, y in wrap(train_loader, epoch):
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
            step_end(loss.item())
        model.eval()
        with torch.no_grad():
            valid = sum(criterion(model(x), y).item() * len(x) for x, y in valid_loader)
        epoch_end(epoch, total / len(train_set), valid / len(valid_set))
"""


@dataclass(frozen=True)
class Way:
    """One way to watch a training: what it needs, and a cell that defines `train(show)`."""

    name: str
    needs: tuple[str, ...]
    cell: str


WAYS = [
    Way(
        "quik_nb: bar, table, curve",
        (),
        """
def train(show):
    contestants.ours(task, view="auto" if show else False)[0]()
""",
    ),
    Way(
        "tqdm.notebook, a bar per epoch with the loss",
        ("tqdm",),
        """
from tqdm.notebook import tqdm


def train(show):
    if not show:
        return loop()
    bars = []
    loop(
        wrap=lambda batches, epoch: bars.append(tqdm(batches, desc=f"epoch {epoch}")) or bars[-1],
        step_end=lambda loss: bars[-1].set_postfix(loss=loss),
    )
""",
    ),
    Way(
        "tqdm.notebook, one bar",
        ("tqdm",),
        """
from tqdm.notebook import tqdm


def train(show):
    if not show:
        return loop()
    with tqdm(total=task.steps) as bar:
        loop(step_end=lambda loss: bar.update())
""",
    ),
    Way(
        "fastprogress, bars and table and curve",
        ("fastprogress",),
        """
from fastprogress.fastprogress import master_bar, progress_bar


def train(show):
    if not show:
        return loop()
    epochs = master_bar(range(task.epochs))
    rows = []

    def epoch_end(epoch, train_loss, valid_loss):
        rows.append((epoch, train_loss, valid_loss))
        x, *ys = zip(*rows)
        epochs.update_graph([[x, y] for y in ys], [0, task.epochs], [0, max(map(max, ys))])
        epochs.write([f"{value:.4f}" for value in rows[-1]], table=True)
        next(walk, None)

    walk = iter(epochs)
    next(walk)
    epochs.write(["epoch", "train_loss", "valid_loss"], table=True)
    loop(epoch_end, wrap=lambda batches, epoch: progress_bar(batches, parent=epochs))
""",
    ),
    Way(
        "livelossplot, per epoch",
        ("livelossplot",),
        """
from livelossplot import PlotLosses


def train(show):
    if not show:
        return loop()
    plot = PlotLosses()

    def epoch_end(epoch, train_loss, valid_loss):
        plot.update({"loss": train_loss, "val_loss": valid_loss})
        plot.send()

    loop(epoch_end)
""",
    ),
    Way(
        "transformers Trainer with its notebook callback",
        ("transformers", "accelerate"),
        """
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(task.x)

    def __getitem__(self, i):
        return {"x": task.x[i], "labels": task.y[i]}


class ValidRows(Rows):
    def __len__(self):
        return len(task.valid_x)

    def __getitem__(self, i):
        return {"x": task.valid_x[i], "labels": task.valid_y[i]}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.criterion = task.model(), task.criterion()

    def forward(self, x, labels=None):
        outputs = self.net(x)
        return {"loss": self.criterion(outputs, labels), "logits": outputs}


def train(show):
    how = TrainingArguments(
        output_dir="out", per_device_train_batch_size=task.batch_size, per_device_eval_batch_size=task.batch_size,
        num_train_epochs=task.epochs, learning_rate=task.lr, lr_scheduler_type="constant", max_grad_norm=0.0,
        logging_strategy="epoch", eval_strategy="epoch", save_strategy="no", report_to=[], use_cpu=True,
        disable_tqdm=not show, dataloader_pin_memory=False, remove_unused_columns=False, prediction_loss_only=True,
    )
    trainer = Trainer(Model(), how, train_dataset=Rows(), eval_dataset=ValidRows())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
""",
    ),
]


def measure(way: Way, rounds: int, epochs: int | None) -> None:
    """Messages and bytes of one training, and its time against the same training unseen."""
    with kernel(SETUP, f"task = tasks.load('digits', {epochs})", LOOP, way.cell, PYTHONWARNINGS="ignore") as made:
        sent: list[tuple[int, int]] = []

        def run(show: bool) -> Seconds:
            result = made.ok(f"cpu = time.process_time(); train({show});", timeout=300)
            if show:
                sent.append((len(result.messages), sum(message.size for message in result.messages)))
            return Seconds(result.seconds, float(made.ok("time.process_time() - cpu").text))

        off, ratios = in_turn(lambda number: run(False), {"on": lambda number: run(True)}, rounds)
    messages, size = zip(*sent, strict=True)
    print(way.name)
    print(f"    messages {spread(messages, 0)}, bytes {spread(size, 0)}")
    print(f"    off {spread([s.wall for s in off])} s, on/off {both(ratios['on'])}", flush=True)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="besides the first, which is not counted")
    parser.add_argument("--epochs", type=int, help="instead of the task's own")
    parser.add_argument("--only", help="ways with this word in their name")
    options = parser.parse_args()
    for way in WAYS:
        if options.only and options.only not in way.name:
            continue
        if missing := [name for name in way.needs if find_spec(name) is None]:
            print(f"{way.name}: skipped, {', '.join(missing)} is not installed")
            continue
        measure(way, options.rounds, options.epochs)
