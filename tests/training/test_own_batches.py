"""Batches that are neither tuples nor dicts train through a step of one's own, as graphs do."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from harness.plain import SEED, distance, network, numbers, quiet
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset

from quik_nb import QuikSession
from quik_nb.training.rng import epoch_seed, preserved, seed_all

GRAPHS = 45


class Graph:
    """Nodes with features, and one target; what a dataset of graphs is made of."""

    def __init__(self, nodes: Tensor, y: Tensor) -> None:
        self.nodes, self.y = nodes, y


class Graphs:
    """Several graphs as one with a list of which node is whose, as PyTorch Geometric has them."""

    def __init__(self, graphs: list[Graph]) -> None:
        self.nodes = torch.cat([graph.nodes for graph in graphs])  # (nodes of all graphs, features)
        self.batch = torch.repeat_interleave(torch.tensor([len(graph.nodes) for graph in graphs]))
        self.y = torch.stack([graph.y for graph in graphs])  # (graphs, 1)
        self.num_graphs = len(graphs)
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> "Graphs":
        """On a device; here it only remembers to have been moved."""
        self.device = device
        return self


class Molecules(Dataset[Graph]):
    """Graphs of one to five nodes."""

    def __init__(self) -> None:
        self.x, self.y = numbers(GRAPHS * 5)

    def __len__(self) -> int:
        return GRAPHS

    def __getitem__(self, i: int) -> Graph:
        return Graph(self.x[5 * i : 5 * i + 1 + i % 5], self.y[i])


class Pooled(nn.Module):
    """The mean over the nodes of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, nodes: Tensor, batch: Tensor, count: int) -> Tensor:
        outputs = self.inner(nodes)
        sums = torch.zeros(count, 1, dtype=outputs.dtype).index_add(0, batch, outputs)
        return sums / torch.bincount(batch, minlength=count)[:, None]


def step(model: nn.Module, criterion: Any, batch: Graphs) -> Tensor:
    """The loss of a batch of graphs."""
    return criterion(model(batch.nodes, batch.batch, batch.num_graphs), batch.y)


def session(**settings: Any) -> QuikSession:
    """A session on graphs, in batches of eight."""
    loader = DataLoader(Molecules(), batch_size=8, shuffle=True, collate_fn=Graphs)
    made = quiet(epochs=2, lr=0.1, **settings).add_data(train=loader, valid=DataLoader(Molecules(), collate_fn=Graphs))
    return made.add_model(Pooled()).set_criterion(nn.MSELoss).set_optimizer(optim.SGD).set_step(step)


def by_hand(model: nn.Module, epochs: int, size: int = 8) -> Iterator[float]:
    """The mean losses of the loop that one would write; the order of the graphs is the session's."""
    data = Molecules()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(epochs):
        order = torch.randperm(GRAPHS, generator=torch.Generator().manual_seed(epoch_seed(SEED, epoch)))
        with preserved():
            seed_all(epoch_seed(SEED, epoch))
            total = 0.0
            for rows in order.split(size):
                batch = Graphs([data[i] for i in rows.tolist()])
                loss = step(model, nn.MSELoss(), batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)
        yield total / GRAPHS


@pytest.mark.parametrize("how", [{}, {"accumulate": 3}, {"processes": 2}])
def test_graphs_train_as_by_hand(how: dict[str, Any]) -> None:
    """A loader with its own collate function gives the hand-written loop's losses and weights, also on two ranks.

    With accumulate=3 three of its batches are a step.
    """
    model = Pooled()
    expected = list(by_hand(model, 2, size=8 * how.get("accumulate", 1)))
    graphs = session(**how)
    graphs.train()

    assert expected == pytest.approx(list(graphs.history.train_loss), abs=1e-9)
    assert distance(model, graphs.model) < 1e-9


def test_validation_counts_graphs() -> None:
    """The validation loss is a mean over graphs, not over nodes or batches."""
    graphs = session()
    graphs.train()
    everything = Graphs([Molecules()[i] for i in range(GRAPHS)])
    with torch.no_grad():
        expected = step(graphs.model, nn.MSELoss(), everything).item()

    assert expected == pytest.approx(list(graphs.history.valid_loss)[-1], abs=1e-12)
