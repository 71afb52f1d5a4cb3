"""Modes of a model's parts: what stays in evaluation, what is told, and that all of it is given back."""

import warnings
from typing import Any

import pytest
import torch
from harness.plain import regression
from torch import nn

from quik_nb import QuikWarning, RecipeError


def with_encoder() -> nn.Module:
    """An encoder with batch statistics and dropout, and a head."""
    encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    return nn.Sequential(nn.ModuleDict({"encoder": encoder})["encoder"], nn.Linear(4, 1)).double()


def modes(session: Any, where: list[bool]) -> Any:
    """Have the session's step note whether the encoder's BatchNorm trains."""

    def step(model: Any, criterion: Any, batch: Any) -> Any:
        where.append(model[0][1].training)
        return criterion(model(batch[0]), batch[1])

    return session.set_step(step)


def test_parts_stay_in_evaluation() -> None:
    """`eval_modules` keeps a part in evaluation mode through training, and its statistics as they were."""
    model, seen = with_encoder(), []  # type: ignore[var-annotated]
    before = model[0][1].running_mean.clone()  # type: ignore[index,union-attr,operator]
    modes(regression(model, epochs=1, eval_modules="0"), seen).train()

    assert {False} == set(seen)
    assert torch.equal(before, model[0][1].running_mean)  # type: ignore[index,union-attr,arg-type]
    assert model[0][1].training  # type: ignore[index]


def test_a_module_in_evaluation_mode_is_reported() -> None:
    """A module in evaluation mode is trained in training mode, with one warning."""
    model, seen = with_encoder(), []  # type: ignore[var-annotated]
    model[0].eval()  # type: ignore[index]
    session = modes(regression(model, epochs=1), seen)
    with pytest.warns(QuikWarning, match="0 was in evaluation mode.*eval_modules='0'"):
        session.train()

    assert True in seen
    assert not model[0].training  # type: ignore[index]


def test_a_frozen_module_with_dropout_is_reported() -> None:
    """Dropout and batch statistics of a frozen part go on, which is said; `eval_modules` leaves nothing to say."""
    with pytest.warns(QuikWarning, match="0 is frozen and has batch statistics or dropout"):
        regression(with_encoder(), epochs=1, freeze="0").train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regression(with_encoder(), epochs=1, freeze="0", eval_modules="0").train()


def test_names_that_fit_no_part() -> None:
    """A pattern that fits nothing is an error before anything trains."""
    with pytest.raises(RecipeError, match="eval_modules='encoder': 'encoder' fits no part of Sequential"):
        regression(with_encoder(), eval_modules="encoder").train()
