"""Columns of a DataFrame as features and target, and errors for columns that cannot be either."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quik_nb.errors import RecipeError, suggest


def check(frame: Any, split: str) -> None:
    """Raise a RecipeError where a DataFrame has no rows, or two columns of one name."""
    if not len(frame):
        raise RecipeError(f"{split} is a DataFrame without rows: there is nothing to use; pass some samples.")
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()].unique()
        raise RecipeError(
            f"{split} has several columns of the name {_named(list(twice))}: pass "
            f"frame.loc[:, ~frame.columns.duplicated()], or rename them."
        )


def features(frame: Any, columns: Sequence[str], split: str) -> Tensor:
    """(rows, columns) float tensor of the named columns.

    Raises:
        RecipeError: some of them are not there, have no numbers, or have missing values.
    """
    _require(frame, columns, split)

    if words := [c for c in columns if frame[c].dtype.kind not in "fiub"]:
        first = frame[words[0]].dtype
        how = f"for example frame[{words[0]!r}].astype('category').cat.codes"
        if first.kind == "M":
            how = f"as numbers, such as frame[{words[0]!r}].dt.dayofyear"
        raise RecipeError(
            f"{split}: no numbers in {_named(words)} (dtype {first}), and a model computes with numbers: "
            f"drop or encode such columns, {how}."
        )

    if gaps := [c for c in columns if frame[c].isna().any()]:
        raise RecipeError(
            f"{split}: missing values in {_named(gaps)}, which would turn the loss into NaN: "
            f"fill them with frame.fillna(...) or drop the rows with frame.dropna()."
        )

    return torch.from_numpy(frame[list(columns)].to_numpy(dtype=np.float64, copy=True)).to(torch.get_default_dtype())


def labels(frame: Any, target: Any, split: str) -> Any:
    """The target column as an array.

    Raises:
        RecipeError: it was not named, is not there, has no numbers, or has missing values.
    """
    columns = list(frame.columns)
    if target is None:
        raise RecipeError(
            f"{split} is a DataFrame, and it is not known which column to predict: "
            f"use add_data({split}=frame, target={str(columns[-1])!r}) with the name of yours."
        )

    if isinstance(target, tuple | list | set) and target not in columns:
        raise RecipeError(
            f"target={target!r} is no column of {split}: one column is the target, by its name; with several, pass "
            f"arrays, {split}=(frame[features].to_numpy(), frame[targets].to_numpy())."
        )

    _require(frame, [target], split)
    column = frame[target]
    if column.dtype.kind not in "fiub":
        raise RecipeError(
            f"{split}: the target column {target!r} has no numbers (dtype {column.dtype}): "
            f"encode it, for example frame[{target!r}].astype('category').cat.codes."
        )
    if column.isna().any():
        raise RecipeError(f"{split}: the target column {target!r} has missing values: drop those rows first.")

    return column.to_numpy(copy=True)


def _require(frame: Any, columns: Sequence[str], split: str) -> None:
    absent = [c for c in columns if c not in frame.columns]
    if absent:
        hint = suggest(str(absent[0]), map(str, frame.columns))
        raise RecipeError(f"{split} has no column {_named(absent)}: {hint}")


def _named(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns))
