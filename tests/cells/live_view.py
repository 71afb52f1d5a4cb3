"""A training slow enough to be looked at."""

import time

import torch
from torch import nn, optim

from quik_nb import QuikSession

torch.manual_seed(0)
x = torch.randn(400, 8)
y = (x[:, :2].prod(dim=1) > 0).long()


def slow(model, criterion, batch):
    time.sleep(0.05)
    x, y = batch
    outputs = model(x)
    return criterion(outputs, y), outputs


def accuracy(outputs, targets):
    return (outputs.argmax(dim=1) == targets).float().mean().item()


session = (
    QuikSession(epochs=6, batch_size=40, lr=1e-2, save=False)
    .add_data(train=(x, y), valid=0.2)
    .add_model(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)))
    .set_criterion(nn.CrossEntropyLoss)
    .set_optimizer(optim.AdamW)
    .set_metrics(accuracy=accuracy)
    .set_step(slow)
)
