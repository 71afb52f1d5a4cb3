"""Settings of DistributedDataParallel, and what it complains of in our words."""

from typing import Any

import pytest
import torch
from harness.plain import distance, network, numbers, quiet, regression
from torch import Tensor, nn, optim

from quik_nb import QuikSession, RecipeError


class HalfUsed(nn.Module):
    """A model with a layer that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.unused = network(), nn.Linear(5, 5).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_unused_parameters_name_the_setting() -> None:
    """DDP's page about unused parameters becomes the one setting to pass."""
    with pytest.raises(RecipeError, match=r"pass QuikSession\(find_unused_parameters=True\)") as caught:
        regression(HalfUsed(), epochs=1).train(processes=2)

    assert len(str(caught.value)) < 400


def test_unused_parameters_are_a_setting() -> None:
    """With find_unused_parameters=True such a model trains, to the numbers of one process."""
    alone, two = (regression(HalfUsed(), epochs=2, find_unused_parameters=True) for _ in range(2))
    alone.train()
    two.train(processes=2)

    assert distance(alone.model.inner, two.model.inner) <= 1e-9  # type: ignore[arg-type]


def normalised(**settings: Any) -> QuikSession:
    """A model with batch statistics; 96 samples in batches of 16."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double()
    session = quiet(epochs=2, lr=0.1, **settings).add_data(train=numbers(96), valid=numbers(37)).add_model(model)
    return session.set_criterion(nn.MSELoss).set_optimizer(optim.SGD)


def test_batch_statistics_over_all_ranks_need_gpus() -> None:
    """On the CPU, where PyTorch has no such thing, sync_batchnorm=True is refused in one sentence."""
    with pytest.raises(RecipeError, match=r"sync_batchnorm=True was asked for.*GPUs only"):
        normalised(sync_batchnorm=True, device="cpu").train(processes=2)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_batch_statistics_over_all_ranks_are_a_setting() -> None:
    """With sync_batchnorm=True the ranks normalise by the statistics of the whole batch, as one process does."""
    alone, apart, together = normalised(), normalised(), normalised(sync_batchnorm=True)
    alone.train()
    apart.train(processes=2)
    together.train(processes=2)

    assert distance(alone.model, together.model) <= 1e-9
    assert distance(alone.model, apart.model) > 1e-3
    assert any(isinstance(module, nn.BatchNorm1d) for module in together.model)  # type: ignore[attr-defined]
