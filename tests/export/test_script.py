"""The script that a session gives is plain PyTorch, and trains with the same losses."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.kernel import Kernel
from harness.plain import classes, network, numbers, quiet, regression
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset

from quik_nb import CheckpointError, QuikSession, RecipeError
from quik_nb.export.quoting import Quoter, lambda_source

SHARE = 0.5


def squashed(x: Tensor) -> Tensor:
    """A helper that the model's class uses."""
    return SHARE * torch.tanh(x)


class Net(nn.Module):
    """A class of the user's own, with an argument that it keeps and one that has a default."""

    def __init__(self, width: int, outputs: int = 1) -> None:
        super().__init__()
        self.width = width
        self.outputs = outputs
        self.one, self.two = nn.Linear(5, width).double(), nn.Linear(width, outputs).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.two(squashed(self.one(x)))


def net(width: int) -> Net:
    """Always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net(width)


class Named(nn.Module):
    """A model that takes its batch by keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 1).double()
        nn.init.constant_(self.layer.weight, 0.1)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def step(model: nn.Module, criterion: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """A step of the user's own."""
    x, y = batch
    outputs = model(x + 0.1 * torch.randn_like(x))
    return criterion(outputs, y), outputs


def largest(outputs: Tensor, targets: Tensor) -> Tensor:
    """A metric."""
    return (outputs - targets).abs().max()


def ignoring() -> tuple[Tensor, Tensor]:
    """Classes, some of them to be ignored."""
    x, y = classes()
    return x, y.masked_fill(torch.arange(len(y)) % 7 == 0, -100)


def classifier(**settings: Any) -> QuikSession:
    """Classes with weights, some of them ignored."""
    session = quiet(**settings).add_data(train=ignoring(), valid=ignoring()).add_model(network(3))
    return session.set_criterion(nn.CrossEntropyLoss, weight=torch.tensor([1.0, 2.0, 0.5]).double()).set_optimizer(
        optim.Adam
    )


def named(samples: int) -> dict[str, Tensor]:
    """A batch by names."""
    x, y = numbers(samples)
    return {"x": x, "labels": y}


NAMES = ("matrices", "rest")
"""Of the optimizers of `several`."""


def several(**settings: Any) -> QuikSession:
    """Weights and biases with optimizers and schedules of their own."""
    session = quiet(**settings).add_data(train=numbers(), valid=numbers(37)).add_model(network())
    session.set_criterion(nn.MSELoss).set_optimizer(optim.SGD, params="*.weight", name="matrices", lr=0.1)
    session.set_optimizer(optim.Adam, name="rest", lr=0.02, groups={"3": {"lr": 0.01}})
    session.set_scheduler(lr_scheduler.StepLR, optimizer="matrices", per="batch", step_size=5)
    return session.set_scheduler(lr_scheduler.ExponentialLR, optimizer="rest", gamma=0.5)


def yielding(model: nn.Module, criterion: Any, batch: Any) -> Iterator[tuple[str, Tensor]]:
    """A step of several losses."""
    x, y = batch
    yield "matrices", criterion(model(x), y)
    yield "rest", (model(x) - y).abs().mean()
    yield "rest", criterion(model(x), 2 * y)


def of_the_model(model: nn.Module) -> optim.Optimizer:
    """A function that makes an optimizer of a model."""
    return optim.SGD(model.parameters(), lr=0.1)


class HandedTheEpoch:
    """A scheduler of timm's kind."""

    def __init__(self, optimizer: optim.Optimizer, last: int) -> None:
        self.optimizer = optimizer
        self.last = last
        self.lr = optimizer.param_groups[0]["lr"]

    def step(self, epoch: int, metric: float | None = None) -> None:
        self.optimizer.param_groups[0]["lr"] = self.lr * (1 - epoch / self.last)

    def step_update(self, num_updates: int) -> None:
        self.optimizer.param_groups[0]["weight_decay"] = 0.001 * num_updates

    def state_dict(self) -> dict[str, Any]:
        return {"lr": self.lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lr = state["lr"]


CASES: dict[str, Callable[[], QuikSession]] = {
    "plain": lambda: regression(epochs=3),
    "own class": lambda: regression(net(7), epochs=2, clip_norm=0.1).set_optimizer(optim.AdamW, weight_decay=0.1),
    "another folder": lambda: regression(epochs=1, base_dir="elsewhere"),
    "long seed": lambda: regression(epochs=1, seed=2**40).add_model(lambda: Net(6, outputs=1)),
    "made by a class": lambda: regression(epochs=2).add_model(lambda: Net(6, outputs=1)),
    "dropout, schedule per batch": lambda: (
        regression(network(dropout=0.5), epochs=3)
        .set_optimizer(optim.AdamW, amsgrad=True)
        .set_scheduler(lr_scheduler.OneCycleLR, max_lr=0.1)
    ),
    "schedule per epoch": lambda: regression(epochs=3, lr=0.1).set_scheduler(
        lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1 / (1 + epoch)
    ),
    "plateau": lambda: regression(epochs=4, lr=0.1).set_scheduler(
        lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.5
    ),
    "split": lambda: regression(epochs=2).add_data(train=numbers(), valid=0.3),
    "no validation": lambda: regression(epochs=2).add_data(train=numbers()),
    "micro-batches": lambda: regression(epochs=2, accumulate=3, clip_value=0.05),
    "own step": lambda: regression(epochs=2).set_step(step),
    "metric": lambda: regression(epochs=2).set_metrics(largest=largest),
    "weights": lambda: classifier(epochs=2),
    "weights in micro-batches": lambda: classifier(epochs=2, accumulate=3),
    "sum": lambda: regression(epochs=2, lr=1e-4, accumulate=2).set_criterion(nn.MSELoss, reduction="sum"),
    "function": lambda: regression(epochs=2).set_criterion(nn.functional.smooth_l1_loss, beta=0.3),
    "instance": lambda: regression(epochs=2).set_criterion(nn.HuberLoss(delta=0.3)),
    "groups": lambda: regression(epochs=2, freeze="*.bias").set_optimizer(optim.SGD, groups={"3": {"lr": 0.1}}),
    "averaged": lambda: regression(epochs=2, lr=0.1, ema=0.9),
    "stopped early": lambda: regression(epochs=9, lr=1e-9, patience=2, min_delta=0.1),
    "schedule by the epoch, stepped by the batch": lambda: regression(epochs=2, accumulate=2, lr=0.1).set_scheduler(
        lr_scheduler.StepLR, per="batch", step_size=2
    ),
    "fp16": lambda: regression(network(dtype=torch.float32), epochs=2, precision="fp16", clip_norm=0.1).add_data(
        train=numbers(dtype=torch.float32), valid=numbers(37, dtype=torch.float32)
    ),
    "saved": lambda: regression(epochs=2, ema=0.9, save=True, data_date="20210101"),
    "names, in micro-batches": lambda: regression(Named(), epochs=2, accumulate=3).add_data(train=named(50)),
    "names": lambda: regression(Named(), epochs=2).add_data(train=named(50), valid=named(20)),
    "bf16": lambda: regression(network(dtype=torch.float32), epochs=2, precision="bf16").add_data(
        train=numbers(dtype=torch.float32), valid=numbers(37, dtype=torch.float32)
    ),
    "several optimizers": lambda: several(epochs=3, clip_norm=0.1, accumulate=2),
    "several optimizers, averaged": lambda: several(epochs=2, ema=0.9, freeze="0.bias"),
    "a step that yields": lambda: several(epochs=2, clip_norm=0.1).set_step(yielding),
    "a closure": lambda: regression(epochs=2, accumulate=2).set_optimizer(optim.LBFGS, max_iter=3, lr=0.3),
    "an optimizer of the model": lambda: regression(epochs=2).set_optimizer(of_the_model),  # type: ignore[arg-type]
    "a scheduler that is handed the epoch": lambda: regression(epochs=3, lr=0.1).set_scheduler(HandedTheEpoch, last=3),
}

RUNNER = """
import json, os, runpy, sys
found = {}
for name, folder in json.load(sys.stdin).items():
    os.chdir(folder)
    found[name] = runpy.run_path("train.py", run_name="__main__")["history"]
assert "quik_nb" not in sys.modules
print("\\n" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    """What the scripts of all cases print, each run in a folder of its own, in a process that knows no quik_nb."""
    folders = {name: str(tmp_path_factory.mktemp("script")) for name in CASES}
    for name, folder in folders.items():
        CASES[name]().as_code(folder)
    command = [sys.executable, "-W", "error", "-c", RUNNER]
    done = subprocess.run(command, input=json.dumps(folders), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", CASES)
def test_the_script_gives_the_same_losses(
    case: str, rows: dict[str, list[dict[str, float]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row by row, the script and the session have the same losses and metrics up to rounding."""
    monkeypatch.chdir(tmp_path)
    session = CASES[case]()
    session.train()
    own = ("lr", "lr_rest", "time", "grad_norm", *(f"{split}{name}_loss" for split in ("", "valid_") for name in NAMES))
    names = [name for name in session.history.columns if name not in own]
    script = [[row[name] for name in names] for row in rows[case]]

    assert session.history[names].to_numpy().ravel().tolist() == pytest.approx(
        [value for row in script for value in row],
        abs=1e-6 if case in ("bf16", "fp16") else 1e-12,  # its sums depend on how many samples are in a forward
    )


def test_a_script_asks_no_questions() -> None:
    """Every question about the settings is answered: no script asks whether there is a scheduler, or a clip_norm."""
    question = r"if (?:not )?(?:[A-Z_]+|scaler|average|criterion|train|valid|outputs)\b.*"
    codes = {name: make().as_code().partition("EPOCHS = ")[2] for name, make in CASES.items()}

    assert {name: [] for name in CASES} == {name: re.findall(question, code) for name, code in codes.items()}


class Counting(Dataset[Any]):
    """A dataset, which has no text."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, i: int) -> Any:
        x, y = numbers(self.samples)
        return x[i], y[i]


class Stream(IterableDataset[Any]):
    """The same samples, one after the other."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        yield from zip(*numbers(self.samples), strict=True)


def filled(session: QuikSession, folder: Path, **own: Any) -> tuple[str, list[float]]:
    """The script of a session, and its losses once these objects are filled in for the splits."""
    code = session.as_code()
    (folder / "data").mkdir()
    torch.save(session.model.state_dict(), folder / "data" / "state_dict_eorig_20210101.pt")
    names: dict[str, Any] = {"__name__": "__main__", **{f"own_{split}": data for split, data in own.items()}}
    text = code
    for split in own:
        text = text.replace(f"{split} = ...", f"{split} = own_{split}")
    exec(text, names)
    return code, [row[name] for row in names["history"] for name in row if name != "epoch"]


def losses(session: QuikSession) -> list[float]:
    """The losses of a session's training, by epoch."""
    session.train()
    names = [name for name in session.history.columns if name in ("train_loss", "valid_loss")]
    return [float(value) for value in session.history[names].to_numpy().ravel()]


@pytest.mark.parametrize("kind", [Counting, Stream])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_what_has_no_text_is_to_be_filled_in(kind: Any, accumulate: int, tmp_path: Path) -> None:
    """A dataset or stream is marked, the head says what it is, and filled in the script gives the same losses."""
    session = regression(epochs=2, base_dir=tmp_path, data_date="20210101", accumulate=accumulate)
    session.add_data(train=kind(40), valid=kind(20))
    code, found = filled(session, tmp_path, train=kind(40), valid=kind(20))
    what = {Counting: "40 samples, Counting", Stream: "a stream, Stream"}[kind]

    assert f"# To fill in (where it says ...): train is {what}: make or load it." in code
    assert losses(session) == pytest.approx(found, abs=1e-12)


def test_classes_of_cells_are_quoted(kernel: Kernel, tmp_path: Path) -> None:
    """In a notebook the script has the classes, functions and values of the cells, and what these import."""
    kernel.ok(
        "import math\nimport torch\nimport torch.nn.functional as F\nfrom torch import nn\nSCALE = 2.0\nx = 'other'"
    )
    kernel.ok("def bent(x):\n    return SCALE * F.relu(x) + math.pi")
    kernel.ok("""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return bent(self.layer(x))
""")
    kernel.ok("""
from torch import optim
from quik_nb import QuikSession
data = torch.randn(50, 3), torch.randn(50, 1)
session = (QuikSession(epochs=2, view=False, save=False, data_date="20210101").add_data(train=data).add_model(Net)
           .set_criterion(nn.L1Loss).set_optimizer(optim.SGD))
code = session.as_code("script")
session.train()
""")
    kernel.ok("import json; json.dump(list(session.history.train_loss), open('rows.json', 'w'))")
    folder = tmp_path / "script"
    done = subprocess.run([sys.executable, "train.py"], cwd=folder, capture_output=True, text=True, check=True)
    shown = [line.split("'train_loss': ")[1].rstrip("}") for line in done.stdout.splitlines()]

    code = (folder / "train.py").read_text()
    assert json.loads((tmp_path / "rows.json").read_text()) == pytest.approx([float(value) for value in shown])
    for line in ("import math", "SCALE = 2.0", "def bent(x):", "class Net(nn.Module):", "model = Net().to(device)"):
        assert line in code
    for word in ("quik_nb", "other", "To fill in"):
        assert word not in code


def test_unknown_arguments_are_asked_for() -> None:
    """An argument that a class did not keep is marked in its place rather than guessed."""

    class Forgetful(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer = nn.Linear(5, width).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    code = regression(Forgetful(1)).as_code()

    assert "Forgetful(width=...)" in code
    assert "Forgetful does not store its argument width, so fill it in" in code
    compile(code, "train.py", "exec")


def test_layers_come_out_as_they_went_in() -> None:
    """torch's own layers are made again with the arguments they had."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(8, momentum=0.2),
        nn.Sequential(nn.LeakyReLU(0.2), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.LayerNorm(8 * 16),
        nn.Embedding(5, 3, padding_idx=0),
        nn.LSTM(3, 4, num_layers=2, batch_first=True),
    )
    quoter = Quoter()
    made = eval(quoter.module(model), {"nn": nn})

    assert str(model) == str(made)
    assert [] == quoter.gaps


def test_lambdas_are_found_on_their_line() -> None:
    """Of two lambdas on a line each is told by its code; one that cannot be found is marked."""
    one, other = lambda x: x + 1, lambda x: x * 2
    lost = eval("lambda x: x")
    quoter = Quoter()

    assert ("lambda x: x + 1", "lambda x: x * 2") == (lambda_source(one), lambda_source(other))
    assert ("...", 1) == (quoter.reference(lost), len(quoter.gaps))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A folder that holds such files is refused before anything is written; what is missing is told as by train."""
    regression().as_code(tmp_path / "script")
    with pytest.raises(CheckpointError, match=r"overwrite .*train.py"):
        regression().as_code(tmp_path / "script")
    with pytest.raises(RecipeError, match="add_model"):
        quiet().add_data(train=numbers()).as_code()


class Hidden(nn.Module):
    """A class that keeps its arguments in other forms, or not at all."""

    def __init__(self, width: int = 4, drop: float = 0.0, power: float = 2.0) -> None:
        super().__init__()
        self.power = power - 1
        self.layers = nn.Sequential(nn.Linear(5, width), nn.Dropout(drop), nn.Linear(width, 1)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) ** self.power


@pytest.mark.parametrize(
    ("model", "call"),
    [
        (Hidden(), "model = Hidden(...)"),  # whose power it keeps in another form
        (Hidden(4, 0.5), "model = Hidden(...)"),
        (nn.Sequential(Named()), "    Named(),"),
    ],
)
def test_arguments_are_not_guessed(model: nn.Module, call: str) -> None:
    """Whether a class makes the same module from what it kept is tried out; where not, that is to be filled in."""
    code = regression(model).as_code()

    assert call in code
    assert ("Hidden does not store its arguments (width, drop, power)" in code) == ("Hidden" in call)


def test_a_layer_that_was_put_in_is_no_secret() -> None:
    """A module that is no longer as its class makes it is not passed off as one that is."""
    model = Named()
    model.layer = nn.Linear(5, 1, bias=False).double()

    assert "Named was changed after it was created" in regression(model).as_code()


class NamedRows(Counting):
    """A dataset of dicts."""

    def __getitem__(self, i: int) -> Any:
        x, y = super().__getitem__(i)
        return {"x": x, "labels": y}


def test_a_dataset_of_dicts_with_a_criterion(tmp_path: Path) -> None:
    """Its batches go to the model by name, and the label to the criterion; a last batch that is dropped is dropped."""
    train, valid = (DataLoader(NamedRows(n), batch_size=16, drop_last=True) for n in (40, 20))
    session = regression(Named(), epochs=2, base_dir=tmp_path, data_date="20210101").add_data(train=train, valid=valid)
    _, found = filled(session, tmp_path, train=NamedRows(40), valid=NamedRows(20))

    assert losses(session) == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("kind", [Counting, Stream])
@pytest.mark.parametrize("drop_last", [True, False])
def test_batches_of_a_loader_that_join(kind: Any, drop_last: bool, tmp_path: Path) -> None:
    """With accumulate beside a DataLoader the script joins its batches, too, and its schedule counts such steps."""
    train, valid = (DataLoader(kind(n), batch_size=6, drop_last=drop_last) for n in (40, 20))
    session = regression(epochs=2, base_dir=tmp_path, data_date="20210101", accumulate=3)
    session.add_data(train=train, valid=valid).set_scheduler(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=12)
    code, found = filled(session, tmp_path, train=kind(40), valid=kind(20))

    assert losses(session) == pytest.approx(found, abs=1e-12)
    assert "micro_batches" not in code


BATCH_SIZE = 7


def test_names_that_the_script_needs_itself() -> None:
    """A name of the user's that the script gives to something else is told of rather than overwritten."""

    def sized(model: nn.Module, criterion: Any, batch: Any) -> Tensor:
        return criterion(model(batch[0]), batch[1]) / BATCH_SIZE

    assert "BATCH_SIZE is a name of yours and of this script" in regression().set_step(sized).as_code()


def loss(model: nn.Module, criterion: Any, batch: Any) -> Tensor:
    """A step with the name of a variable in the script."""
    return criterion(model(batch[0]), batch[1])


def test_names_of_variables() -> None:
    """A name of the user's is told of where the script would take it for a variable of its own, and only there."""

    def through(model: nn.Module, criterion: Any, batch: Any) -> Tensor:
        return loss(model, criterion, batch)

    assert "loss is a name of yours and of this script" in regression().set_step(loss).as_code()
    assert "a name of yours" not in regression().set_step(through).as_code()


def test_first_weights_of_another_training(tmp_path: Path) -> None:
    """A script that would start from another session's weights says so; one with a folder has its own."""
    one = regression(save=True, base_dir=tmp_path, epochs=1)
    one.train()
    before = one.as_code()
    regression(network(dropout=0.5), save=True, base_dir=tmp_path, epochs=1).train()
    same_weights = one.as_code()
    regression(net(7), save=True, base_dir=tmp_path, epochs=1).train()

    assert "To fill in" not in before + same_weights
    assert "the first weights there are another training's: as_code('folder') writes yours" in one.as_code()
