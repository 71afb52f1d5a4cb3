"""Everything that `add_data` takes trains, and gives the numbers of the same samples as tensors."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from harness.plain import classes, distance, network, numbers, quiet, regression
from torch import Tensor, nn, optim
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

from quik_nb import CheckpointError, QuikSession, RecipeError

ROUNDING = 1e-12

Make = Callable[[], Any]


class Fetched(Dataset[tuple[Tensor, Tensor]]):
    """`numbers`, sample by sample."""

    def __init__(self) -> None:
        self.x, self.y = numbers()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class Streamed(IterableDataset[tuple[Tensor, Tensor]]):
    """`numbers`, one after the other."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*numbers(), strict=True)


def stacked(items: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """A collate function of the user's own, which makes lists."""
    return [torch.stack(column) for column in zip(*items, strict=True)]


def trained(train: Any, **settings: Any) -> QuikSession:
    """A session trained for two epochs on data of some kind."""
    session = regression(epochs=2, **settings).add_data(train=train, valid=numbers(37))
    session.train()
    return session


SHUFFLED: dict[str, Make] = {
    "list": lambda: list(numbers()),
    "arrays": lambda: tuple(t.numpy() for t in numbers()),
    "dataset of tensors": lambda: TensorDataset(*numbers()),
    "dataset": Fetched,
    "loader": lambda: DataLoader(Fetched(), batch_size=16, shuffle=True),
    "loader with workers": lambda: DataLoader(Fetched(), batch_size=16, shuffle=True, num_workers=2),
    "loader with a collate function": lambda: DataLoader(Fetched(), batch_size=16, shuffle=True, collate_fn=stacked),
}


@pytest.mark.parametrize("kind", SHUFFLED)
def test_shuffled_data_of_any_kind(kind: str, default_dtype_float64: None) -> None:
    """Tuples, lists, arrays, datasets and loaders of the same samples give the same weights."""
    expected, session = trained(numbers()), trained(SHUFFLED[kind]())

    assert distance(expected.model, session.model) <= ROUNDING


@pytest.mark.parametrize("processes", [1, 2])
def test_workers_that_load_a_dataset_change_nothing(processes: int, default_dtype_float64: None) -> None:
    """`num_workers` loads training and validation samples elsewhere, also in the ranks' own workers: same numbers."""
    alone = regression(epochs=2).add_data(train=Fetched(), valid=Fetched())
    helped = regression(epochs=2, num_workers=2, processes=processes).add_data(train=Fetched(), valid=Fetched())
    alone.train()
    helped.train()

    assert distance(alone.model, helped.model) <= ROUNDING
    assert alone.history.valid_loss.tolist() == pytest.approx(helped.history.valid_loss.tolist())


def test_workers_beside_a_loader_are_refused() -> None:
    """A DataLoader keeps its number of workers, so a call that asks for another one is told, rather than ignored."""
    session = regression(epochs=1).add_data(train=DataLoader(Fetched(), batch_size=16))

    with pytest.raises(RecipeError, match=r"num_workers=2 was asked for.*DataLoader\(..., num_workers=2\)"):
        session.train(num_workers=2)


@pytest.fixture
def default_dtype_float64() -> Iterator[None]:
    """Arrays become tensors of torch's default dtype; float64 makes them comparable."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


ORDERED: dict[str, Make] = {
    "loader": lambda: DataLoader(Fetched(), batch_size=16),
    "sampler for ranks, in order": lambda: DataLoader(
        Fetched(), batch_size=16, sampler=DistributedSampler(Fetched(), num_replicas=1, rank=0, shuffle=False)
    ),
    "stream": Streamed,
    "stream through a loader": lambda: DataLoader(Streamed(), batch_size=16),
    "ready batches": lambda: DataLoader(
        [tuple(t[i : i + 16] for t in numbers()) for i in range(0, 101, 16)],  # type: ignore[arg-type]
        batch_size=None,
    ),
    "sampler": lambda: DataLoader(Fetched(), batch_size=16, sampler=range(101)),
    "batch sampler": lambda: DataLoader(
        Fetched(), batch_sampler=[list(range(i, min(i + 16, 101))) for i in range(0, 101, 16)]
    ),
}


@pytest.mark.parametrize("kind", ORDERED)
def test_data_in_an_order_of_their_own(kind: str) -> None:
    """Loaders without shuffling, samplers and streams are trained in their order, as a plain loop over them would."""
    by_hand = network()
    optimizer = optim.SGD(by_hand.parameters(), lr=1e-3)
    x, y = numbers()
    for _ in range(2):
        for i in range(0, 101, 16):
            (by_hand(x[i : i + 16]) - y[i : i + 16]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    assert distance(by_hand, trained(ORDERED[kind]()).model) <= ROUNDING


def test_a_loader_that_drops_the_last_batch() -> None:
    """`drop_last` leaves out the short batch of each epoch, and the loader's batch size is the session's no more."""
    loader = DataLoader(Fetched(), batch_size=10, drop_last=True)
    by_hand = network()
    optimizer = optim.SGD(by_hand.parameters(), lr=1e-3)
    for _ in range(2):
        for x, y in loader:
            (by_hand(x) - y).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    assert distance(by_hand, trained(loader).model) <= ROUNDING


def test_a_weighted_sampler() -> None:
    """Samples of weight zero are never seen: spoiling them changes nothing."""
    x, y = numbers()
    spoiled = x.clone()
    spoiled[50:] = torch.nan
    weights = [1.0] * 50 + [0.0] * 51
    models = []
    for inputs in (x, spoiled):
        sampler = WeightedRandomSampler(weights, 101)
        models.append(trained(DataLoader(TensorDataset(inputs, y), batch_size=16, sampler=sampler)).model)

    assert 0.0 == distance(*models)


def test_arrays_become_what_models_expect() -> None:
    """float64 arrays become float32 and class numbers int64, so that a fresh model takes them."""
    x, y = (t.numpy() for t in classes())
    session = quiet(epochs=1).add_data(train=(x, y.astype(np.int32)), valid=0.2).add_model(nn.Linear(5, 3))
    session.set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.SGD).train()

    assert "5) float32, () int64" in repr(session).replace("(5,)", "5)")


@pytest.mark.parametrize(("part", "count"), [(0.2, 20), (20, 20), (1, 1)])
def test_a_part_of_the_training_split(part: float, count: int) -> None:
    """`valid=0.2` and `valid=20` cut samples off by the seed, the same ones with and without a test split."""
    session = quiet(seed=3).add_data(train=numbers(), valid=part, test=0.1)
    alone = quiet(seed=3).add_data(train=numbers(), valid=part)
    for each in (session, alone):
        each.add_model(nn.Identity())
    splits = [session.predict(split) for split in ("train", "valid", "test")]
    rows = torch.cat(splits)

    assert [91 - count, count, 10] == [len(split) for split in splits]
    assert 101 == len(rows.unique(dim=0))
    assert torch.equal(splits[1], alone.predict("valid"))


def test_users_items_labels() -> None:
    """With three tensors the first two go to the model and the last one is the target."""

    class Dot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = nn.Embedding(7, 4), nn.Embedding(9, 4)

        def forward(self, users: Tensor, items: Tensor) -> Tensor:
            return (self.users(users) * self.items(items)).sum(1)

    users, items = torch.arange(101) % 7, torch.arange(101) % 9
    labels = ((users + items) % 2).float()
    session = quiet(epochs=20, lr=0.05).add_data(train=(users, items, labels), valid=0.2).add_model(Dot)
    session.set_criterion(nn.BCEWithLogitsLoss).set_optimizer(optim.Adam).train()

    assert session.history["train_loss"].iloc[-1] < 0.5 * session.history["train_loss"].iloc[0]
    assert (101,) == session.predict((users, items)).shape
    assert torch.equal(session.predict((users, items)), session.predict((users, items, labels)))


class Speaking(nn.Module):
    """A model as Hugging Face writes them: keywords in, an object with loss and logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3).double()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.layer(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, logits=logits)


class Answer(NamedTuple):
    """What a model may give: several tensors with names."""

    scores: Tensor
    hidden: Tensor


def test_models_that_give_named_tuples() -> None:
    """Outputs with names stay so: for a step, for metrics over a split and in `predict`."""

    class Naming(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(3)

        def forward(self, x: Tensor) -> Answer:
            return Answer(self.inner(x), x)

    def step(model: nn.Module, criterion: Any, batch: Any) -> tuple[Tensor, Answer]:
        answer = model(batch[0])
        return criterion(answer.scores, batch[1]), answer

    session = quiet(epochs=1).add_data(train=classes(), valid=classes(37)).add_model(Naming()).set_step(step)
    session.set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.SGD)
    session.set_metrics(train=True, seen=lambda outputs, targets: len(outputs.hidden)).train()

    assert [101, 37] == session.history[["train_seen", "seen"]].iloc[0].tolist()
    assert torch.equal(classes(37)[0], session.predict("valid").hidden)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_dicts_and_models_with_a_loss_of_their_own(accumulate: int) -> None:
    """A dict of tensors goes to the model by keyword, and its own loss is trained, as a criterion would be."""
    x, y = classes()
    torch.manual_seed(0)
    speaking = Speaking()
    plain = nn.Sequential(nn.Linear(5, 3)).double()
    plain[0].load_state_dict(speaking.layer.state_dict())
    session = quiet(epochs=2, accumulate=accumulate).add_data(train={"x": x, "labels": y}, valid={"x": x, "labels": y})
    session.add_model(speaking).set_optimizer(optim.SGD).set_metrics(hits=lambda o, t: (o.argmax(1) == t).sum()).train()
    other = quiet(epochs=2).add_data(train=(x, y), valid=(x, y)).add_model(plain).set_optimizer(optim.SGD)
    other.set_criterion(nn.CrossEntropyLoss).train()

    assert (speaking.layer.weight - plain[0].weight).abs().max() <= ROUNDING
    assert list(other.history["valid_loss"]) == pytest.approx(list(session.history["valid_loss"]), abs=ROUNDING)
    assert (speaking.layer(x).argmax(1) == y).sum().item() == session.history["hits"].iloc[-1]
    assert torch.equal(session.predict({"x": x}), session.predict({"x": x, "labels": y}))


def test_dicts_with_a_criterion() -> None:
    """With a criterion the label is taken out of the dict, and the model's output is compared with it."""

    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)  # type: ignore[no-any-return]

    x, y = numbers()
    session = regression(Keyword(), epochs=2).add_data(train={"x": x, "y": y}, valid={"x": x, "y": y})
    session.train()
    inner = {key.removeprefix("inner."): value for key, value in session.model.state_dict().items()}

    assert distance(trained(numbers()).model, inner) <= ROUNDING


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_of_the_users_own(accumulate: int) -> None:
    """`set_step` replaces what is done with a batch; with outputs beside the loss there are metrics, too."""

    def step(model: nn.Module, criterion: Any, batch: Any) -> tuple[Tensor, Tensor]:
        x, y = batch
        outputs = model(x)
        return 2 * criterion(outputs, y), outputs

    by_hand, session = regression(epochs=2, lr=0.2), regression(epochs=2, lr=0.1, accumulate=accumulate)
    by_hand.train()
    session.set_step(step).set_metrics(spread=lambda outputs, targets: (outputs - targets).std()).train()

    assert distance(by_hand.model, session.model) <= ROUNDING
    assert ["epoch", "train_loss", "valid_loss", "spread", "lr", "time"] == list(session.history.columns)


def test_a_step_without_a_criterion() -> None:
    """A step of the user's own may do without criterion and target."""
    session = quiet(epochs=5, lr=0.1).add_data(train=numbers()[0]).add_model(nn.Linear(5, 5).double())
    session.set_step(lambda model, criterion, batch: (model(batch[0]) - batch[0]).square().mean())
    session.set_optimizer(optim.Adam).train()

    assert session.history["train_loss"].iloc[-1] < 0.2 * session.history["train_loss"].iloc[0]


def test_metrics_see_the_whole_split() -> None:
    """A function gets all outputs and targets at once, and a torchmetrics metric gives the same over batches."""
    from torchmetrics.classification import MulticlassAccuracy

    x, y = classes(5000)
    session = quiet(epochs=1).add_data(train=classes(), valid=(x, y)).add_model(network(3))
    session.set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.SGD)
    session.set_metrics(
        by_function=lambda outputs, targets: (outputs.argmax(1) == targets).double().mean(),
        samples=lambda outputs, targets: len(outputs),
        by_class=MulticlassAccuracy(3, average="micro"),
    ).train()
    expected = (session.model(x).argmax(1) == y).double().mean().item()
    row = session.history.iloc[0]

    assert expected == row["by_function"]
    assert 5000 == row["samples"]
    assert expected == pytest.approx(row["by_class"], abs=1e-6)


def frame(**columns: Any) -> pd.DataFrame:
    """A table of two features and two targets."""
    x, y = classes(60)
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "kind": y, "size": x[:, 2], **columns})


def test_a_table_with_classes() -> None:
    """An integer target gives class numbers; the other columns are the features, in order."""
    session = quiet(epochs=1).add_data(train=frame().drop(columns="size"), valid=0.2, target="kind")
    session.add_model(nn.Linear(2, 3)).set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.SGD).train()

    assert "48 samples of (2,) float32, () int64" in repr(session)


def test_a_table_with_numbers() -> None:
    """A float target gives float32; a further table may have its columns in another order."""
    model = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    data = frame().drop(columns="kind")
    session = quiet(epochs=1).add_data(train=data, valid=data[["size", "b", "a"]], target="size").add_model(model)
    session.set_criterion(nn.MSELoss).set_optimizer(optim.SGD).train()
    outputs = session.predict(data)

    assert "60 samples of (2,) float32, () float32" in repr(session)
    assert session.evaluate("valid")["loss"] == session.evaluate(data)["loss"]
    assert torch.equal(outputs, session.predict(data[["b", "a"]]))
    assert torch.equal(outputs, session.predict(torch.tensor(data[["a", "b"]].to_numpy(), dtype=torch.float32)))


class Endless(Dataset[tuple[Tensor, Tensor]]):
    """A dataset without a length."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return numbers()[0][index], numbers()[1][index]


WRONG: dict[str, tuple[Make, dict[str, Any], str]] = {
    "column": (frame, {"target": "knd"}, "did you mean 'kind'"),
    "no target": (frame, {}, r"target='size'"),
    "words": (lambda: frame(a="x"), {"target": "kind"}, r"no numbers in 'a'.*cat.codes"),
    "word target": (lambda: frame(kind="x"), {"target": "kind"}, r"target column 'kind' has no numbers"),
    "gaps": (lambda: frame(b=np.nan), {"target": "kind"}, r"missing values in 'b'.*fillna"),
    "gap target": (lambda: frame(size=np.nan), {"target": "size"}, r"target column 'size' has missing values"),
    "empty table": (lambda: frame()[:0], {"target": "kind"}, "without rows"),
    "lengths": (lambda: (torch.zeros(100, 3), torch.zeros(99)), {}, "tensor 0 has 100, tensor 1 has 99"),
    "lengths by name": (lambda: {"x": torch.zeros(5, 3), "y": torch.zeros(4)}, {}, "x has 5, y has 4"),
    "empty": (lambda: (torch.zeros(0, 3), torch.zeros(0)), {}, "empty"),
    "empty dataset": (lambda: TensorDataset(torch.zeros(0, 3), torch.zeros(0)), {}, "empty"),
    "no samples": (lambda: (torch.zeros(5, 3), torch.tensor(1.0)), {}, "tensor 1 has no dimension"),
    "words in arrays": (lambda: (np.array(["a", "b"]), np.zeros(2)), {}, "<U1"),
    "text": (lambda: "train.csv", {}, "train is a str"),
    "number": (lambda: 5, {}, "train is an int"),
    "target of tensors": (lambda: numbers(), {"target": "y"}, "names columns"),
    "too many parts": (numbers, {"valid": 0.6, "test": 0.6}, "test=0.6 of 101 samples, of which 40 are left"),
    "nest of tuples": (lambda: (numbers()[0], numbers()), {}, "a tuple of Tensor, tuple: pass one tuple of tensors"),
    "list of samples": (lambda: [numbers(1), numbers(1)], {}, r"a list of tuple: .*default_collate\(samples\)"),
    "endless dataset": (Endless, {}, "does not know how many samples it has: pass one with a method __len__"),
    "several targets": (frame, {"target": ["kind", "size"]}, r"pass arrays, train=\(frame\[features\]"),
    "dates": (lambda: frame(a=pd.Timestamp("2020")), {"target": "kind"}, r"frame\['a'\].dt.dayofyear"),
    "all for validation": (numbers, {"valid": 101}, "leaves one of the splits empty"),
    "nothing for validation": (numbers, {"valid": 0.001}, "leaves one of the splits empty"),
    "the whole for validation": (numbers, {"valid": 1.0}, "leaves one of the splits empty"),
    "negative": (numbers, {"valid": -0.5}, "leaves one of the splits empty"),
    "part of a stream": (Streamed, {"valid": 0.2}, "cannot be cut from a stream"),
    "flag": (numbers, {"valid": True}, "valid is a bool"),
    "other columns": (frame, {"target": "kind", "valid": frame().drop(columns="b")}, "valid has no column 'b'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_data_that_cannot_be_used(case: str) -> None:
    """The error says what is wrong with the data, and the session keeps what it had."""
    make, keywords, message = WRONG[case]
    session = regression(epochs=1)
    with pytest.raises(RecipeError, match=message):
        session.add_data(train=make(), **keywords)
    session.train()

    assert 1 == len(session.history)


def test_saved_tensors_of_a_date(tmp_path: Path) -> None:
    """`add_data()` with a `data_date` loads the tensors of that date, of those splits that are there."""
    (tmp_path / "data").mkdir()
    torch.save(TensorDataset(*numbers()).tensors, tmp_path / "data" / "train_tensor_20210101.pt")
    torch.save(numbers(37), tmp_path / "data" / "valid_tensor_20210101.pt")
    session = regression(epochs=2, base_dir=tmp_path, data_date="20210101").add_data()
    session.train()

    assert distance(trained(numbers()).model, session.model) == 0.0
    assert "test" not in repr(session).split()


def test_saved_tensors_with_a_part_given(tmp_path: Path) -> None:
    """Beside saved training tensors a share or data of one's own is taken as it is given."""
    (tmp_path / "data").mkdir()
    torch.save(numbers(), tmp_path / "data" / "train_tensor_20210101.pt")
    torch.save(numbers(37), tmp_path / "data" / "valid_tensor_20210101.pt")
    session = quiet(base_dir=tmp_path, data_date="20210101").add_model(nn.Identity())
    sizes = [
        [len(session.add_data(**given).predict(split)) for split in ("train", "valid")]
        for given in ({}, {"valid": np.float64(0.2)}, {"valid": numbers(11)}, {"valid": 5, "test": 6})
    ]

    assert [[101, 37], [81, 20], [101, 11], [90, 5]] == sizes


def test_saved_tensors_that_are_not_there(tmp_path: Path) -> None:
    """The error names the file that was looked for."""
    with pytest.raises(RecipeError, match=r"train_tensor_20210101\.pt, which is not there"):
        quiet(base_dir=tmp_path, data_date="20210101").add_data()


def test_saved_tensors_that_are_damaged(tmp_path: Path) -> None:
    """A file that was cut short is a CheckpointError with its name."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train_tensor_20210101.pt").write_bytes(b"PK\3\4 cut short")
    with pytest.raises(CheckpointError, match=r"train_tensor_20210101\.pt"):
        quiet(base_dir=tmp_path, data_date="20210101").add_data()


class Counted(Sampler[int]):
    """A sampler that shuffles by the epoch that it is told, as `DistributedSampler` does."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.told.append(epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(range(32))

    def __len__(self) -> int:
        return 32


def test_a_sampler_is_told_the_epoch(default_dtype_float64: None) -> None:
    """A sampler with `set_epoch` hears of each epoch before it is asked for its order."""
    sampler = Counted()
    trained(DataLoader(Fetched(), batch_size=16, sampler=sampler))

    assert [0, 1] == sampler.told


def test_a_stream_that_drops_its_last_batch(default_dtype_float64: None) -> None:
    """`drop_last` of a loader over a stream is obeyed."""
    seen = []
    session = quiet(epochs=1).add_data(train=DataLoader(Streamed(), batch_size=32, drop_last=True))
    session.add_model(network()).set_criterion(nn.MSELoss).set_optimizer(optim.SGD)
    session.model.register_forward_pre_hook(lambda model, inputs: seen.append(len(inputs[0])))
    session.train()

    assert [32, 32, 32] == seen


def test_inputs_of_a_model_that_takes_several() -> None:
    """`predict` passes all inputs, for models that were trained from a dataset or loader as well."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 1).double()

        def forward(self, one: Tensor, two: Tensor | None = None) -> Tensor:
            return self.layer(one if two is None else one + two)

    x, y = numbers(48)
    samples = list(zip(x, 2 * x, y, strict=True))
    dataset = samples_of(samples)
    sampler = WeightedRandomSampler([0.0] + [1.0] * 47, 48)
    batches = BatchSampler(sampler, 16, drop_last=False)
    loaders = [{"batch_size": 16}, {"batch_size": 16, "sampler": sampler}, {"batch_sampler": batches}]
    for data in (dataset, *(DataLoader(dataset, **how) for how in loaders)):
        session = quiet(epochs=1).add_data(train=data).add_model(Both())
        session.set_criterion(nn.MSELoss).set_optimizer(optim.SGD).train()
        with torch.no_grad():
            expected = session.model(x, 2 * x)

        assert torch.equal(expected, session.predict((x, 2 * x)))
        assert torch.equal(expected, session.predict((x, 2 * x, y)))


def test_a_collate_function_for_datasets() -> None:
    """`add_data(dataset, collate_fn=...)` makes the batches of all splits that are datasets, shares too."""
    calls: list[int] = []

    def collate(items: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        calls.append(len(items))
        return stacked(items)

    session = regression(epochs=1).add_data(Fetched(), valid=0.2, collate_fn=collate)
    session.train()
    assert len(Fetched()) == sum(calls)


def test_a_collate_function_that_would_not_be_called_is_told() -> None:
    """Beside tensors in memory or a DataLoader, a collate function is an error, as it would do nothing."""
    session = regression(epochs=1)

    with pytest.raises(RecipeError, match="train is tensors in memory, which are sliced"):
        session.add_data(numbers(20), collate_fn=stacked)
    with pytest.raises(RecipeError, match=r"beside a DataLoader of train.*DataLoader\(..., collate_fn="):
        session.add_data(DataLoader(Fetched()), collate_fn=stacked)
    with pytest.raises(RecipeError, match="collate_fn='stack' is no function"):
        session.add_data(Fetched(), collate_fn="stack")  # type: ignore[arg-type]


def test_a_list_of_objects_is_its_samples() -> None:
    """Dicts and graphs in a list are samples, as a DataLoader takes them, and train as a dataset of them does."""
    x, y = numbers()
    rows = [{"input": one, "labels": target} for one, target in zip(x, y, strict=True)]
    sessions = [regression(network(), epochs=1).add_data(train=data, valid=0.2) for data in (rows, samples_of(rows))]
    for session in sessions:
        session.train()

    first, second = (session.history.valid_loss.tolist() for session in sessions)
    assert first == second


def samples_of(items: list[Any]) -> Dataset[Any]:
    """A dataset of these samples."""

    class Listed(Dataset[Any]):
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, i: int) -> Any:
            return items[i]

    return Listed()
