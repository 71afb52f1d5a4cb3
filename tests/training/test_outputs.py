"""Outputs are joined by sample and never by chance: in predictions, reports and metrics."""

from typing import Any

import pytest
import torch
from harness.plain import classes, network, quiet
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset

from quik_nb import QuikSession, StepOutput
from quik_nb.training.outputs import join

SIZES = [8, 10, 7]
"""Batches that divide the samples, or do not."""


class Numbered(Dataset[tuple[Tensor, int]]):
    """Samples that say which they are."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.full((4,), float(i)), i % 2


def predicted(model: nn.Module, size: int) -> Any:
    """What a model gives for all samples."""
    return quiet(batch_size=size).add_data(train=Numbered()).add_model(model).predict(Numbered())


@pytest.mark.parametrize("size", SIZES)
def test_a_dict_for_each_sample(size: int) -> None:
    """Detections, one dict for each sample with as many boxes as it has, come as one list."""

    class Detector(nn.Linear):
        def forward(self, a: Tensor) -> Any:
            return [{"boxes": a[i : i + 1].repeat(int(a[i, 0]) % 3, 1), "id": a[i, 0]} for i in range(len(a))]

    found = predicted(Detector(4, 4), size)

    assert [float(i) for i in range(20)] == [float(each["id"]) for each in found]
    assert [i % 3 for i in range(20)] == [len(each["boxes"]) for each in found]


@pytest.mark.parametrize("size", SIZES)
def test_what_belongs_to_the_batch(size: int) -> None:
    """Outputs are joined, a hidden state with another first dimension is a list with one for each batch."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.LSTM(4, 3, num_layers=2, batch_first=True)

        def forward(self, a: Tensor) -> Any:
            return self.inner(a[:, None])

    outputs, (hidden, cell) = predicted(Recurrent(), size)
    batches = -(-20 // size)

    assert (20, 1, 3) == tuple(outputs.shape)
    assert [batches, batches] == [len(hidden), len(cell)]
    assert (2, size, 3) == tuple(hidden[0].shape)
    assert torch.equal(outputs[:size, 0], hidden[0][-1])


def test_several_outputs_that_are_as_many_as_samples() -> None:
    """A list of two outputs stays one of two, also where batches have two samples."""

    class Heads(nn.Linear):
        def forward(self, a: Tensor) -> Any:
            return [a[:, 0], a[:, 1] + 1]

    one, two = predicted(Heads(4, 4), 2)

    assert list(range(20)) == one.tolist()
    assert list(range(1, 21)) == two.tolist()


def test_words_and_nothing() -> None:
    """Lists of words are extended, None stays None, and one number for a batch is a list."""
    batches = [{"words": ["a", "b"], "mask": None, "size": 2.0}, {"words": ["c"], "mask": None, "size": 1.0}]

    assert {"words": ["a", "b", "c"], "mask": None, "size": [2.0, 1.0]} == join(batches, [2, 1])


class Words(Dataset[tuple[Tensor, Tensor]]):
    """Sentences of different lengths."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return torch.full((2 + i // 4,), i % 9 + 1), torch.full((2 + i // 4,), i % 2)


def padded(items: Any) -> Any:
    """Each batch as wide as its longest."""
    a, b = zip(*items, strict=True)
    pad = nn.utils.rnn.pad_sequence
    return pad(a, batch_first=True), pad(b, batch_first=True, padding_value=-100)


class Tagger(nn.Module):
    """A class for each word; classes second, as torch's criteria want it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.e, self.o = nn.Embedding(10, 8, padding_idx=0), nn.Linear(8, 2)

    def forward(self, a: Tensor) -> Any:
        return self.o(self.e(a)).transpose(1, 2)


def right(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of right words."""
    counts = targets != -100
    return ((outputs.argmax(1) == targets) & counts).sum() / counts.sum()


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_of_their_own_width(processes: int) -> None:
    """Functions get padded tensors, metrics by name each batch, predictions are one tensor for each sample."""
    loader = DataLoader(Words(), batch_size=8, collate_fn=padded)
    session = quiet(epochs=1, lr=0.5, processes=processes).add_data(train=loader, valid=loader).add_model(Tagger())
    session.set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.SGD).set_metrics("accuracy", right=right).train()
    found = session.predict("valid")
    widths = [2 + min(8 * (i // 8) + 7, 29) // 4 for i in range(30)]
    by_hand = sum(float((row[:, : 2 + i // 4].argmax(0) == Words()[i][1]).sum()) for i, row in enumerate(found)) / sum(
        2 + i // 4 for i in range(30)
    )

    assert [(2, width) for width in widths] == [tuple(row.shape) for row in found]
    assert [by_hand, by_hand] == pytest.approx([session.history.right[0], session.history.accuracy[0]])
    assert session.report().table.loc["accuracy", "f1-score"] == pytest.approx(by_hand)


def test_bfloat16_arrives_as_float32() -> None:
    """Functions and predictions can go to NumPy."""
    session = quiet(epochs=1, precision="bf16").add_data(train=classes(dtype=torch.float32), valid=0.2)
    session.add_model(network(3, dtype=torch.float32)).set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.SGD)
    session.set_metrics(largest=lambda outputs, targets: outputs.numpy().max()).train()

    assert torch.float32 == session.predict(classes(9, dtype=torch.float32)[0]).dtype


class Graphs:
    """A batch that is an object, as PyTorch Geometric's."""

    def __init__(self, items: Any) -> None:
        self.x = torch.stack([x for x, _ in items])
        self.y = torch.tensor([y for _, y in items])
        self.num_graphs = len(items)

    def to(self, device: Any) -> "Graphs":
        return self


def graph_step(model: Any, criterion: Any, batch: Any) -> Any:
    """The loss and outputs of graphs."""
    outputs = model(batch.x)
    return criterion(outputs, batch.y), outputs


@pytest.mark.parametrize("processes", [1, 2])
def test_graph_batches(processes: int) -> None:
    """Metrics and reports find the target of an object, and predictions of a split are the step's."""
    loader = DataLoader(Numbered(), 6, collate_fn=Graphs)
    session = quiet(epochs=1, processes=processes).add_data(train=loader, valid=loader)
    session.add_model(nn.Linear(4, 2)).set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.SGD)
    session.set_step(graph_step).set_metrics("accuracy", right=right).train()
    outputs = session.predict("valid")
    expected = float((outputs.argmax(1) == torch.arange(20) % 2).float().mean())

    assert (20, 2) == tuple(outputs.shape)
    assert [expected, expected] == pytest.approx([session.history.right[0], session.history.accuracy[0]])
    assert expected == pytest.approx(session.report().table.loc["accuracy", "f1-score"])


def test_predict_takes_the_steps_outputs() -> None:
    """For a split they are the step's, for data of its own and a step without outputs the model's."""

    def doubled(model: Any, criterion: Any, batch: Any) -> StepOutput:
        outputs = 2 * model(batch[0])
        return StepOutput(criterion(outputs, batch[1]), outputs)

    def alone(model: Any, criterion: Any, batch: Any) -> Tensor:
        return criterion(model(batch[0]), batch[1])  # type: ignore[no-any-return]

    x, y = classes(20)
    session: QuikSession = quiet().add_data(train=classes(), test=(x, y)).add_model(network(3))
    session.set_criterion(nn.CrossEntropyLoss).set_step(doubled)
    model = session.predict(x)

    assert torch.equal(2 * model, session.predict("test"))
    assert torch.equal(model, session.predict((x, y)))
    assert torch.equal(model, session.set_step(alone).predict("test"))
    assert torch.equal(model, session.set_step(doubled).add_data(train=classes(), test=x).predict("test"))
