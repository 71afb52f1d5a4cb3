"""The first cell of notebooks that train in workers.

Data in float64, a model that calls a function of (rank, step) before each of 8 steps an epoch, and a session.
"""

import os
import signal
import threading
import time

import torch
from torch import nn, optim

from quik_nb import QuikSession

torch.manual_seed(0)
x = torch.randn(1000, 5, dtype=torch.float64)
y = (x[:, 0] > 0).long() + (x[:, 1] > 1).long()


class Net(nn.Module):
    def __init__(self, before=lambda rank, step: None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.layer = nn.Linear(5, 3).double()
        self.before, self.step = before, 0

    def forward(self, x):
        if self.training:
            self.step += 1
            self.before(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0, self.step)
        return self.layer(x)


def slow(rank, step):
    time.sleep(0.02)


def session(model, **settings):
    return (
        QuikSession(**{"epochs": 2, "batch_size": 100, "view": "text", "save": False, "lr": 0.01, **settings})
        .add_data(train=(x, y), valid=0.2)
        .add_model(model)
        .set_criterion(nn.CrossEntropyLoss)
        .set_optimizer(optim.AdamW)
    )
