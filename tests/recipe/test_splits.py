"""Shares are cut by the seed, stratified where that is asked for; what belongs together is passed together."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from harness.plain import quiet
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from quik_nb import RecipeError
from quik_nb.recipe.data import as_source
from quik_nb.recipe.samples import Source, Stream
from quik_nb.recipe.splits import DataOptions, as_sources, by_classes, split_off

CLASSES = torch.tensor([0] * 60 + [1] * 30 + [2] * 9 + [7])


class Pictures(Dataset[Any]):
    """A dataset with `targets`, as torchvision has them."""

    def __init__(self) -> None:
        self.targets = CLASSES.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> Any:
        return torch.tensor([float(i)]), self.targets[i]


class Table(Pictures):
    """One with columns, as those of Hugging Face."""

    column_names = ("x", "label")

    def __init__(self) -> None:
        super().__init__()
        self.classes = self.targets
        del self.targets

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, i: Any) -> Any:
        return self.classes if i == "label" else (torch.tensor([float(i)]), self.classes[i])


SOURCES: dict[str, Any] = {
    "tensors": lambda: (torch.arange(100.0)[:, None], CLASSES),
    "dict": lambda: {"x": torch.arange(100.0)[:, None], "labels": CLASSES},
    "dataset": Pictures,
    "columns": Table,
    "subset": lambda: Subset(Pictures(), range(100)),
    "loader": lambda: DataLoader(Pictures(), batch_size=10),
}


def numbers_in(source: Source) -> list[int]:
    """The samples of a source by their numbers."""
    if hasattr(source, "tensors"):
        return [int(i) for i in source.tensors[0][source.rows].flatten()]
    assert not isinstance(source, Stream)
    return [int(source.dataset[i][0]) for i in range(len(source))]


@pytest.mark.parametrize("kind", SOURCES)
def test_a_stratified_share_has_the_classes_of_the_whole(kind: str) -> None:
    """A fifth of each class, as nearly as whole samples allow; both parts have every sample once."""
    options = DataOptions(stratify=True)
    sources = as_sources({"train": SOURCES[kind](), "valid": 0.2, "test": None}, options, seed=3)
    rest, part = (numbers_in(sources[name]) for name in ("train", "valid"))

    assert {0: 12, 1: 6, 2: 2} == Counter(CLASSES[part].tolist())
    assert list(range(100)) == sorted(rest + part)


def test_a_second_share_is_stratified_as_well() -> None:
    """test= takes its share of each class of what valid= has left."""
    splits = {"train": SOURCES["tensors"](), "valid": 0.2, "test": 0.2}
    sources = as_sources(splits, DataOptions(stratify=True), seed=3)

    assert {0: 12, 1: 6} == {k: n for k, n in Counter(CLASSES[numbers_in(sources["test"])].tolist()).items() if k < 2}


def test_stratified_shares_follow_the_seed() -> None:
    """Another seed cuts other samples of the same classes."""
    source = as_source(SOURCES["tensors"](), "train")
    one, again, other = (numbers_in(split_off(source, 0.2, seed, stratify=True)[1]) for seed in (1, 1, 2))

    assert one == again
    assert one != other


@pytest.mark.parametrize("count", range(1, 100, 7))
def test_quotas_add_up(count: int) -> None:
    """The first part has as many samples as were asked for, no class further from its share than one."""
    first = CLASSES[by_classes(torch.randperm(100), CLASSES, count)[:count]]
    exact = {int(k): int((CLASSES == k).sum()) * count / 100 for k in CLASSES.unique()}

    assert count == len(first)
    assert all(abs(int((first == k).sum()) - share) < 1 for k, share in exact.items())


class Numbers(IterableDataset[Any]):
    """A stream."""

    def __iter__(self) -> Iterator[Any]:
        return iter(range(3))


REFUSED: dict[str, tuple[dict[str, Any], DataOptions, str]] = {
    "numbers as classes": (
        {"train": (torch.zeros(9, 2), torch.rand(9)), "valid": 0.2},
        DataOptions(stratify=True),
        "no class number",
    ),
    "classes unseen": (
        {"train": Subset(Numbers(), [0, 1, 2]), "valid": 1},
        DataOptions(stratify=True),
        "an attribute targets",
    ),
    "nothing to cut": ({"train": SOURCES["tensors"]()}, DataOptions(stratify=True), "pass valid=0.2"),
    "no stream": ({"train": SOURCES["tensors"]()}, DataOptions(sharded=True), "none of the data is a stream"),
    "x and y": ({"train": torch.zeros(9, 2), "valid": torch.zeros(9)}, DataOptions(), r"add_data\(train=\(x, y\)"),
    "arrays": ({"train": np.zeros((9, 2)), "valid": np.zeros((9, 1))}, DataOptions(), r"add_data\(train=\(x, y\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_split(case: str) -> None:
    """The error says what to pass instead."""
    splits, options, words = REFUSED[case]

    with pytest.raises(RecipeError, match=words):
        as_sources({"valid": None, "test": None, **splits}, options, seed=0)


def test_inputs_alone_may_have_a_validation_split() -> None:
    """Tensors without a target, of one shape, are samples to train and to validate on."""
    session = quiet().add_data(torch.zeros(9, 2), torch.zeros(5, 2))

    assert "9 samples" in repr(session)
    assert "5 samples" in repr(session)


def test_sharded_reaches_streams() -> None:
    """What was said of a stream is known where its batches are made."""
    source = as_sources({"train": Numbers(), "valid": None, "test": None}, DataOptions(sharded=True), 0)["train"]

    assert isinstance(source, Stream)
    assert source.sharded


def test_a_dataset_in_memory_is_stratified_by_its_target() -> None:
    """A TensorDataset is tensors."""
    source = as_source(TensorDataset(torch.arange(100.0)[:, None], CLASSES), "train")
    _, part = split_off(source, 20, 0, stratify=True)

    assert 12 == CLASSES[numbers_in(part)].tolist().count(0)
