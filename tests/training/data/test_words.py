"""Where torch's own words do not say what is wrong with a batch, ours do."""

from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from harness.plain import quiet
from torch import Tensor, nn, optim
from torch.utils.data import Dataset

from quik_nb import QuikWarning, RecipeError


class Rows(Dataset[Any]):
    """Samples that are made by a function of their number."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        return self.make(i)


class ByName(nn.Module):
    """A model that takes words by name and gives its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.layer(x), labels)}


class TakesAll(nn.Module):
    """A model that takes anything by keyword, and gives a loss where there are labels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, labels: Any = None, **others: Any) -> dict[str, Any]:
        return {"loss": None, "logits": self.layer(x)}


class Gives(nn.Module):
    """A linear model whose scores become something else."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.layer(x))


def words_of(train: Any, model: nn.Module | None = None, criterion: Any = nn.CrossEntropyLoss) -> str:
    """What a training that fails says, notes included."""
    session = quiet(epochs=1).add_data(train=train).add_model(nn.Linear(4, 3) if model is None else model)
    session.set_optimizer(optim.SGD)
    if criterion is not None:
        session.set_criterion(criterion)
    with pytest.raises((RuntimeError, TypeError, IndexError, RecipeError)) as caught:
        session.train()
    return " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "doubles of NumPy": (Rows(lambda i: (np.zeros(4), 0)), {}, "x.float()"),
    "doubles by name": (
        Rows(lambda i: {"x": np.zeros(4), "labels": 0}),
        {"model": ByName(), "criterion": None},
        "x.float()",
    ),
    "a target of doubles": (
        Rows(lambda i: (torch.zeros(4), np.zeros(3))),
        {"criterion": nn.MSELoss},
        "y.float()",
    ),
    "pixels": (Rows(lambda i: (torch.zeros(4, dtype=torch.uint8), 0)), {}, "pass x.float()"),
    "classes from 1": (Rows(lambda i: (torch.zeros(4), 1 + i % 3)), {}, "pass y - 1"),
    "too many classes": (Rows(lambda i: (torch.zeros(4), i % 4)), {}, "one for each"),
    "two targets": (Rows(lambda i: (torch.zeros(4), 0, 1)), {}, "(x, y1, y2)"),
    "label for labels": (
        Rows(lambda i: {"x": torch.zeros(4), "label": 0}),
        {"model": ByName(), "criterion": None},
        "rename_column('label', 'labels')",
    ),
    "more than it takes": (
        Rows(lambda i: {"x": torch.zeros(4), "labels": 0, "token_type": 1}),
        {"model": ByName(), "criterion": None},
        "remove_columns('token_type')",
    ),
    "label that a model leaves aside": (
        Rows(lambda i: {"x": torch.zeros(4), "label": 0}),
        {"model": TakesAll(), "criterion": None},
        "rename_column('label', 'labels')",
    ),
    "classes from 1 in memory": ((torch.zeros(12, 4), 1 + torch.arange(12) % 3), {}, "pass y - 1"),
    "too many classes in memory": (
        (torch.zeros(12, 4), torch.arange(12)),
        {},
        "give its last layer one for each class",
    ),
    "a dict of outputs": (
        Rows(lambda i: (torch.zeros(4), 0)),
        {"model": Gives(lambda scores: {"out": scores, "aux": scores})},
        "set_step(lambda model, criterion, batch: criterion(model(batch[0])['out'], batch[1]))",
    ),
    "a tuple of outputs": (
        Rows(lambda i: (torch.zeros(4), torch.zeros(3))),
        {"model": Gives(lambda scores: (scores, scores)), "criterion": nn.MSELoss},
        "set_step(lambda model, criterion, batch: criterion(model(batch[0])[0], batch[1]))",
    ),
    "numbers of classes as numbers": (
        Rows(lambda i: (torch.zeros(4), i % 3)),
        {"criterion": nn.MSELoss},
        "use set_criterion(nn.CrossEntropyLoss)",
    ),
    "numbers for several outputs": (
        Rows(lambda i: (torch.zeros(4), torch.tensor(float(i)))),
        {"criterion": nn.L1Loss},
        "end the model with one output",
    ),
    "ragged": (Rows(lambda i: (torch.zeros(1 + i % 3), 0)), {}, "collate_fn=pad"),
    "objects": (Rows(lambda i: (object(), 0)), {}, "have the dataset give tensors"),
}


@pytest.mark.parametrize("case", CASES)
def test_words_about_batches(case: str) -> None:
    """The error that torch raises has a note with what to change."""
    train, parts, words = CASES[case]

    assert words in words_of(train, **parts)


TOLD: dict[str, tuple[nn.Module, Any, str]] = {
    "softmax": (nn.Softmax(dim=1), nn.CrossEntropyLoss, "leave out softmax at the model's end"),
    "log_softmax": (nn.LogSoftmax(dim=1), nn.CrossEntropyLoss, "or use nn.NLLLoss"),
    "no log_softmax": (nn.Identity(), nn.NLLLoss, "use nn.CrossEntropyLoss"),
}


def trained_on_classes(end: nn.Module, criterion: Any, **metrics: Any) -> None:
    """Train a classifier with this end for an epoch."""
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    session = quiet(epochs=1).add_data(train=(x, torch.arange(12) % 3), valid=(x, torch.arange(12) % 3))
    session.add_model(nn.Sequential(nn.Linear(4, 3), end)).set_criterion(criterion).set_optimizer(optim.SGD)
    session.set_metrics(**metrics).train()


@pytest.mark.parametrize("metrics", [{}, {"top": "accuracy"}])
@pytest.mark.parametrize("case", TOLD)
def test_words_about_the_end_of_a_model(case: str, metrics: dict[str, Any]) -> None:
    """A model that does what the criterion does, or that leaves out what it needs, is told, with metrics or without."""
    end, criterion, words = TOLD[case]

    with pytest.warns(QuikWarning, match=words):
        trained_on_classes(end, criterion, **metrics)


def test_ends_of_models_that_fit_are_not_told() -> None:
    """Logits for CrossEntropyLoss and logarithms for NLLLoss are as they should be; a warning would be an error."""
    trained_on_classes(nn.Identity(), nn.CrossEntropyLoss)
    trained_on_classes(nn.LogSoftmax(dim=1), nn.NLLLoss)


class Datasets(UserDict[str, Any]):
    """Several datasets by name."""


class Sparse:
    """A matrix as SciPy has them."""

    shape = (3, 3)

    def toarray(self) -> Any:
        """Dense."""
        return np.zeros(self.shape)


REFUSED: dict[str, tuple[Any, str]] = {
    "sparse": ((torch.eye(3).to_sparse(), torch.zeros(3)), "to_dense"),
    "sparse labels": ((torch.zeros(3), torch.eye(3).to_sparse()), "sparse_coo is sparse"),
    "SciPy's": ((Sparse(), torch.zeros(3)), "toarray"),
    "nested": (
        (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged), torch.zeros(2)),
        "to_padded_tensor",
    ),
    "ragged lists": (([[1, 2], [3]], [0, 1]), "collate_fn=pad"),
    "ragged array": ((np.array([np.zeros(2), np.zeros(3)], dtype=object), np.zeros(2)), "collate_fn=pad"),
    "datasets by name": (Datasets(train=Rows(str), test=Rows(str)), r"train=data\['train'\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_words_about_data(case: str) -> None:
    """What cannot be batches is refused with what to pass instead."""
    train, words = REFUSED[case]

    with pytest.raises(RecipeError, match=words):
        quiet().add_data(train=train)


def test_words_about_a_column_alone() -> None:
    """A Series is a column without a target."""
    pandas = pytest.importorskip("pandas")

    with pytest.raises(RecipeError, match="target='price'"):
        quiet().add_data(train=pandas.Series([1.0, 2.0], name="price"))
