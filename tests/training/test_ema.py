"""Averaged weights follow a model, whatever the model holds beside its weights."""

from typing import Any

import pytest
import torch
from harness.plain import distance, network, numbers, regression
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from quik_nb.training.ema import AveragedWeights


class Looked(nn.Module):
    """A model that leaves its last activation on itself, as one does to look at it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 1).double()
        self.seen: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = {"last": [self.layer(x)]}
        return self.seen["last"][0]


def pruned() -> nn.Module:
    """A layer half of whose weights are masked."""
    return prune.l1_unstructured(nn.Linear(5, 1).double(), "weight", amount=0.5)  # type: ignore[no-untyped-call,no-any-return]


KINDS: dict[str, Any] = {
    "looked at": Looked,
    "pruned": lambda: nn.Sequential(pruned()),
    "spectral_norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 1).double())),
    "weight_norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 1).double())),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_was_looked_at_can_be_averaged(kind: str) -> None:
    """After a forward by hand the model holds tensors with a graph, and is averaged all the same."""
    model = KINDS[kind]()
    model(numbers()[0])

    assert "finished" == regression(model, epochs=1, ema=0.9).train().state


def test_the_average_is_that_of_torch() -> None:
    """After any number of updates it equals torch's AveragedModel."""
    model, decay = network(), 0.8
    ours = AveragedWeights(model, decay)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]
    for step in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(step)
        ours.update(model)
        theirs.update_parameters(model)

    assert 0.0 == distance(theirs.module, ours.module)


def test_integer_buffers_are_copied() -> None:
    """What counts, such as the batches that a BatchNorm has seen, is no average; running means are."""
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 1)).double()
    session = regression(model, epochs=1, ema=0.5)
    session.train()

    assert 7 == session.model[0].num_batches_tracked.item()  # type: ignore[index,union-attr,operator]
