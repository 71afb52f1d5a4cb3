"""Columns of a DataFrame as features and target, and errors for columns that cannot be either."""

from collections.abc import Mapping, Sequence
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
    _check_numbers(frame, columns, split)
    return torch.from_numpy(frame[list(columns)].to_numpy(dtype=np.float64, copy=True)).to(torch.get_default_dtype())


def inputs(frame: Any, named: Any, target: Any, split: str) -> list[Tensor]:
    """One tensor for each input: (rows,) of a column, (rows, k) of a list of k columns; whole numbers are int64.

    Args:
        frame: of the user's.
        named: names of columns and lists of them, in order, or by keyword in a dict.
        target: the column that is to be predicted.
        split: for the messages.

    Raises:
        RecipeError: they are no columns of numbers, or the target is one of them.
    """
    if isinstance(named, str):
        named = [named]
    groups = list(named.values()) if isinstance(named, Mapping) else list(named)
    columns = [column for group in groups for column in (group if isinstance(group, list) else [group])]
    if not groups or [] in groups:
        raise RecipeError(f"inputs={named!r} has an input without a column: pass names, or leave inputs out for all.")
    if isinstance(named, Mapping) and "labels" in named:
        raise RecipeError(f"inputs={named!r}: 'labels' is what the target is called in a batch: use another keyword.")
    if target in columns:
        raise RecipeError(
            f"inputs={named!r} has the target {target!r} among them, which a model would only copy: leave it out."
        )
    _check_numbers(frame, columns, split)
    return [_input(frame[group]) for group in groups]


def _input(part: Any) -> Tensor:
    """Of a column or several, on which they agree: whole numbers only if all are."""
    kinds = {dtype.kind for dtype in ([part.dtype] if part.ndim == 1 else part.dtypes)}
    if kinds <= set("iub"):
        return torch.from_numpy(part.to_numpy(dtype=np.int64, copy=True))
    return torch.from_numpy(part.to_numpy(dtype=np.float64, copy=True)).to(torch.get_default_dtype())


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


def _check_numbers(frame: Any, columns: Sequence[str], split: str) -> None:
    """Raise a RecipeError where columns are not there, have no numbers, or have missing values."""
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


def _require(frame: Any, columns: Sequence[str], split: str) -> None:
    absent = [c for c in columns if c not in frame.columns]
    if absent:
        hint = suggest(str(absent[0]), map(str, frame.columns))
        raise RecipeError(f"{split} has no column {_named(absent)}: {hint}")


def _named(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns))
