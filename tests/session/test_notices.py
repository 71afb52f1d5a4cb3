"""What would otherwise pass in silence is told once for each cause, from whichever rank, and stays in the record."""

import warnings

import pytest
import torch
from harness.plain import regression
from torch import nn

from quik_nb import QuikWarning
from quik_nb.history import History


class Scaled(nn.Module):
    """A criterion with a parameter of its own, which nobody trains."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.scale * (outputs - target).square().mean()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_notice_is_reported_once(processes: int) -> None:
    """The first run tells it, once for all ranks; a further run of the session tells it no more."""
    session = regression(epochs=1).set_criterion(Scaled)
    with pytest.warns(QuikWarning, match="criterion has parameters of its own") as told:
        session.train(processes=processes)

    assert 1 == len([warning for warning in told if warning.category is QuikWarning])
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuikWarning)
        session.train(processes=processes)


def test_notices_are_kept_with_the_history() -> None:
    """What was told is read back with the rows, so that a resumed session does not tell it again."""
    history = History()
    history.notices["compile failed"] = "torch.compile failed; training goes on without it."

    assert history.notices == History.from_jsonl(history.to_jsonl()).notices
