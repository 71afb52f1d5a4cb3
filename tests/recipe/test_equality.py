"""What a cell that is run again makes anew is known as the same."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric

from quik_nb.recipe.equality import same


def run(cell: str) -> Any:
    """What the name `it` stands for after a cell."""
    names: dict[str, Any] = {"__name__": "__main__", "nn": nn, "torch": torch, "np": np, "partial": partial}
    exec(compile(cell, "a cell", "exec"), names)
    return names["it"]


ALIKE = [
    "it = 0.1",
    "it = {'lr': 0.1, 'betas': (0.9, 0.99)}",
    "it = torch.arange(3)",
    "it = np.float64(0.5)",
    "it = np.arange(3)",
    "it = lambda step: 0.5 ** step",
    "def it(x, scale=2.0):\n    return [scale * y for y in x]",
    "def make(scale):\n    return lambda x: scale * x\nit = make(3)",
    "def again(n):\n    return n and again(n - 1)\nit = again",
    "def outer():\n    def inner(n):\n        return n and inner(n - 1)\n    return inner\nit = outer()",
    "class It(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.alpha = 2\nit = It",
    "class It(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.alpha = 2\nit = It()",
    "class It:\n    gamma = 2\n    @property\n    def f(self):\n        return 1\nit = It",
    "class It:\n    @staticmethod\n    def g():\n        return 2\nit = It",
    "it = nn.CrossEntropyLoss(weight=torch.ones(3), label_smoothing=0.1)",
]


@pytest.mark.parametrize("cell", ALIKE)
def test_a_cell_that_is_run_again(cell: str) -> None:
    """Values, functions, classes and criteria are the same after the cell was run again, also further down the page."""
    assert same(run(cell), run(f"# a line more\n{cell}"))


MAKE = "def make(scale):\n    return lambda x: scale * x"
CLASS = "class It:\n    def f(self):\n        return"

PROPERTY = "class It:\n    @property\n    def f(self):\n        return"
STATIC = "class It:\n    @staticmethod\n    def f(x):\n        return x\nit = It"

OTHER: list[tuple[str, str]] = [
    ("it = 0.1", "it = 0.2"),
    ("it = [1, 2]", "it = [1, 2, 3]"),
    ("it = {'a': 1}", "it = {'b': 1}"),
    ("it = torch.arange(3)", "it = torch.arange(3.0)"),
    ("it = lambda step: 0.5 ** step", "it = lambda step: 0.4 ** step"),
    ("it = lambda x: x.sum()", "it = lambda x: x.mean()"),
    ("def it(x, scale=2.0):\n    return x", "def it(x, scale=3.0):\n    return x"),
    (
        "def make(s):\n    return lambda x: s * x\nit = make(3)",
        "def make(s):\n    return lambda x: s * x\nit = make(4)",
    ),
    (
        "class It:\n    def f(self):\n        return 1\nit = It",
        "class It:\n    def f(self):\n        return 2\nit = It",
    ),
    ("class It:\n    gamma = 2\nit = It", "class It:\n    gamma = 5\nit = It"),
    (f"{PROPERTY} 1\nit = It", f"{PROPERTY} 2\nit = It"),
    (STATIC, STATIC.replace("staticmethod", "classmethod")),
    ("it = nn.CrossEntropyLoss(label_smoothing=0.1)", "it = nn.CrossEntropyLoss(label_smoothing=0.2)"),
    ("it = nn.CrossEntropyLoss(weight=torch.ones(3))", "it = nn.CrossEntropyLoss(weight=torch.zeros(3))"),
    ("it = nn.Linear(2, 2)", "it = nn.Linear(2, 2)"),
    ("it = 1", "it = '1'"),
]


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_a_cell_that_was_changed(one: str, other: str) -> None:
    """What does something else is not the same, and two models never are."""
    assert not same(run(one), run(other))


@pytest.mark.parametrize("make", [MeanMetric, lambda: partial(max, 1), lambda: object()])
def test_other_objects_are_the_same_if_they_are_one(make: Callable[[], Any]) -> None:
    """Objects that cannot be compared are the same only as one and the same."""
    one = make()

    assert same(one, one)
    assert not same(one, make())
