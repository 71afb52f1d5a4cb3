"""A session for the magic."""

import torch
from torch import nn

from quik_nb import QuikSession

x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
y = x.sum(dim=1, keepdim=True)


def new():
    return (
        QuikSession(epochs=2, batch_size=10, lr=0.01, save=False, view=False)
        .add_data(train=(x, y), valid=0.2)
        .add_model(lambda: nn.Linear(3, 1))
        .set_criterion(nn.MSELoss)
        .set_optimizer(torch.optim.SGD)
    )


session = new()
