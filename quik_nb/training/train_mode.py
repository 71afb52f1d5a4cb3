"""A model's modes (training, evaluation), module by module: taken for a while, and given back as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def preserve_training_mode(model: nn.Module) -> Iterator[None]:
    """Whatever modes are set inside, each module is afterwards in its own, also one that was set apart by hand."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode without gradients, for a while."""
    with preserve_training_mode(model), torch.no_grad():
        model.eval()
        yield
