"""The body of a plain script that trains."""

import torch
from torch import nn, optim

from quik_nb import QuikSession

scale = 2.0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 1)

    def forward(self, x):
        return self.layer(x) * scale


def run():
    torch.manual_seed(0)
    x = torch.randn(101, 5)
    session = QuikSession(epochs=2, batch_size=16, view=False, save=False)
    session.add_data(train=(x, x[:, :1])).add_model(Net())
    session.set_criterion(lambda outputs, target: (outputs - target).square().mean()).set_optimizer(optim.Adam)
    print(session.train(processes=2).state, len(session.history))
