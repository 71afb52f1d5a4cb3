"""Columns of a DataFrame become one input or several."""

from typing import Any

import pandas as pd
import pytest
import torch
from harness.plain import quiet
from torch import Tensor, nn, optim

from quik_nb import RecipeError
from quik_nb.recipe.data import as_source
from quik_nb.recipe.samples import Tensors


def ratings(rows: int = 60) -> pd.DataFrame:
    """Who rated what."""
    numbers = torch.arange(rows)
    return pd.DataFrame(
        {
            "rating": (numbers % 5).double() / 4,
            "user": numbers % 7,
            "item": numbers % 11,
            "age": 20 + numbers % 30,
            "income": 1000.0 + numbers,
            "new": numbers % 2 == 0,
        }
    )


SEPARATE = ["user", "item", ["age", "income"], ["age", "new"]]


def read(inputs: Any, frame: pd.DataFrame | None = None, **how: Any) -> Tensors:
    """The samples of the table."""
    source = as_source(ratings() if frame is None else frame, "train", **{"target": "rating", "inputs": inputs, **how})
    assert isinstance(source, Tensors)
    return source


def test_columns_are_inputs_of_their_own() -> None:
    """One tensor each, in this order, whole numbers as int64; a list of columns is one of them."""
    source = read(SEPARATE)

    assert [(60,), (60,), (60, 2), (60, 2), (60,)] == [tuple(t.shape) for t in source.tensors]
    assert [torch.int64, torch.int64, torch.float32, torch.int64, torch.float32] == [t.dtype for t in source.tensors]
    assert [20, 1] == source.tensors[3][0].tolist()
    assert (ratings().item.to_numpy() == source.tensors[1].numpy()).all()


def test_a_dict_of_inputs_passes_by_keyword() -> None:
    """Its keys are the names in a batch, and the target is called labels."""
    source = read({"who": "user", "numbers": ["age", "income"]})

    assert ("who", "numbers", "labels") == source.names


def test_further_tables_are_read_alike() -> None:
    """A table of validation, or to predict, has the same inputs in the same order, with or without the target."""
    train = read(SEPARATE)
    other = ratings(10)[["new", "income", "age", "item", "user"]]
    found = read(None, other, target=None, like=train, labelled=False)

    assert 4 == len(found.tensors)
    assert all(torch.equal(a, b[:10]) for a, b in zip(found.tensors, train.tensors, strict=False))


class Rating(nn.Module):
    """A model of a user, an item and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(7, 4), nn.Embedding(11, 4)
        self.numbers = nn.Linear(2, 4)

    def forward(self, user: Tensor, item: Tensor, numbers: Tensor) -> Tensor:
        return (self.users(user) * self.items(item) + self.numbers(numbers / 1000)).sum(1)


@pytest.mark.parametrize(
    "inputs", [["user", "item", ["age", "income"]], {"item": "item", "user": "user", "numbers": ["age", "income"]}]
)
def test_a_recommender_of_a_table(inputs: Any) -> None:
    """It trains, validates on a share, and predicts from a table without ratings."""
    session = quiet(epochs=2).add_data(ratings(), valid=0.2, target="rating", inputs=inputs).add_model(Rating())
    session.set_criterion(nn.MSELoss).set_optimizer(optim.Adam).train()

    assert (60,) == session.predict(ratings().drop(columns="rating")).shape
    assert (60,) == session.predict(ratings()).shape
    assert set(session.evaluate(ratings())) == {"loss"}


REFUSED: dict[str, tuple[Any, str]] = {
    "unknown": (["user", "items"], "items"),
    "the target": (["user", "rating"], "which a model would only copy"),
    "nothing": ([], "without a column"),
    "an empty list": (["user", []], "without a column"),
    "the label's name": ({"labels": "user"}, "another keyword"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_that_cannot_be(case: str) -> None:
    """The error names them."""
    inputs, words = REFUSED[case]

    with pytest.raises(RecipeError, match=words):
        read(inputs)


def test_inputs_of_no_table() -> None:
    """They name columns, which tensors have not."""
    with pytest.raises(RecipeError, match="leave inputs out"):
        quiet().add_data((torch.zeros(3, 2), torch.zeros(3)), inputs=["user"])
