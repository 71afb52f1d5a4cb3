"""Programs over graphs, by stand-ins for the classes of PyTorch Geometric."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from programs.program import SAMPLES, Columns, Means, Program, drawn, epochs, made, session_of, update
from quik_nb import QuikSession, StepOutput


class Graph:
    """Nodes, edges, and labels; several graphs in one are numbered by `batch`, as torch_geometric.data.Batch does."""

    def __init__(self, **tensors: Any) -> None:
        self.__dict__.update(tensors)

    def to(self, device: Any, **options: Any) -> "Graph":
        return Graph(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()})


class GraphBatch(Graph):
    """Several graphs as one with islands."""

    @property
    def num_graphs(self) -> int:
        return len(self.y)  # type: ignore[attr-defined]

    def to(self, device: Any, **options: Any) -> "GraphBatch":
        return GraphBatch(**vars(super().to(device)))


class Convolution(nn.Module):
    """The layer of Kipf and Welling (2017)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        loops = torch.arange(len(x))
        source, target = torch.cat([edges, loops.expand(2, -1)], dim=1)
        degree = torch.zeros(len(x), dtype=x.dtype).index_add(0, target, torch.ones(len(target), dtype=x.dtype))
        weight = (degree[source] * degree[target]).rsqrt()[:, None]
        x = self.linear(x)
        return torch.zeros_like(x).index_add(0, target, weight * x[source])


def random_edges(nodes: int, seed: int) -> Tensor:
    """Twice as many edges as nodes, (2, edges)."""
    return torch.randint(0, nodes, (2, 2 * nodes), generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------- one graph, of which some nodes have labels


class NodeClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Convolution(5, 8), Convolution(8, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x, edges)), edges)  # type: ignore[no-any-return]


def citations() -> Graph:
    """One graph with masks of nodes to train on and to validate on, as Planetoid has."""
    x = drawn(1, 30, 5)
    numbers = torch.arange(30)
    masks = {"train_mask": numbers % 3 == 0, "valid_mask": numbers % 3 == 1}
    return Graph(x=x, edges=random_edges(30, 2), y=x[:, :3].argmax(1), **masks)


def the_one(samples: list[Any]) -> Any:
    """A batch of one graph is that graph."""
    return samples[0]


def node_step(model: Any, criterion: Any, batch: Any, split: str) -> StepOutput:
    mask = batch.train_mask if split == "train" else batch.valid_mask
    outputs = model(batch.x, batch.edges)[mask]
    return StepOutput(criterion(outputs, batch.y[mask]), outputs, batch.y[mask])


def nodes(**settings: Any) -> QuikSession:
    session = session_of(made(NodeClassifier), **{"epochs": 4, **settings}).set_step(node_step)
    loader = DataLoader([citations()], batch_size=1, collate_fn=the_one)  # type: ignore[arg-type]
    session.add_data(train=loader, valid=loader)
    return session.set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.Adam, weight_decay=5e-4)


def nodes_by_hand() -> Columns:
    model, graph, means = made(NodeClassifier), citations(), Means()
    optimizer = optim.Adam(model.parameters(), lr=0.05, weight_decay=5e-4)
    for _ in range(4):
        loss = F.cross_entropy(model(graph.x, graph.edges)[graph.train_mask], graph.y[graph.train_mask])
        update(optimizer, loss)
        with torch.no_grad():
            outputs = model(graph.x, graph.edges)[graph.valid_mask]
        means.add(1, train_loss=loss, valid_loss=F.cross_entropy(outputs, graph.y[graph.valid_mask]))
        means.end_epoch()
    return means.columns


# ---------------------------------------------------------------------- many graphs, each with a label


class GraphClassifier(nn.Module):
    """A mean over the nodes of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = Convolution(5, 8), nn.Linear(8, 3)

    def forward(self, data: GraphBatch) -> Tensor:
        x = self.convolution(data.x, data.edges).relu()  # type: ignore[attr-defined]
        sums = torch.zeros(data.num_graphs, 8, dtype=x.dtype).index_add(0, data.batch, x)  # type: ignore[attr-defined]
        sizes = torch.bincount(data.batch, minlength=data.num_graphs)[:, None]  # type: ignore[attr-defined]
        return self.head(sums / sizes)  # type: ignore[no-any-return]


class Molecules(Dataset[Graph]):
    """Graphs of unequal size."""

    def __init__(self, seed: int, samples: int) -> None:
        self.graphs = []
        for index in range(samples):
            size = 3 + index % 4
            x = drawn(100 * seed + index, size, 5)
            self.graphs.append(Graph(x=x, edges=random_edges(size, index), y=x.mean(0)[:3].argmax()))

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, index: int) -> Graph:
        return self.graphs[index]


def as_one(graphs: list[Any]) -> GraphBatch:
    """The collate function of torch_geometric's loader."""
    sizes = torch.tensor([len(graph.x) for graph in graphs])
    starts = (sizes.cumsum(0) - sizes).tolist()
    return GraphBatch(
        x=torch.cat([graph.x for graph in graphs]),
        edges=torch.cat([graph.edges + start for graph, start in zip(graphs, starts, strict=True)], dim=1),
        y=torch.stack([graph.y for graph in graphs]),
        batch=torch.repeat_interleave(torch.arange(len(graphs)), sizes),
    )


def graph_step(model: Any, criterion: Any, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    outputs = model(batch)
    return criterion(outputs, batch.y), outputs, batch.y


def right(outputs: Tensor, targets: Tensor) -> float:
    """The share of right answers."""
    return float((outputs.argmax(1) == targets).double().mean())


def molecules(**settings: Any) -> QuikSession:
    session = session_of(made(GraphClassifier), **settings).set_step(graph_step).set_metrics(accuracy=right)
    session.add_data(train=Molecules(1, SAMPLES).graphs, valid=Molecules(2, 20), collate_fn=as_one)
    return session.set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.Adam)


class ReadyGraphs(IterableDataset[GraphBatch]):
    """Batches that come ready, as neighbour and cluster loaders give them."""

    def __init__(self, seed: int, samples: int, size: int) -> None:
        self.graphs, self.size = Molecules(seed, samples).graphs, size

    def __iter__(self) -> Iterator[GraphBatch]:
        for start in range(0, len(self.graphs), self.size):
            yield as_one(self.graphs[start : start + self.size])

    def __len__(self) -> int:
        return -(-len(self.graphs) // self.size)


def ready(**settings: Any) -> QuikSession:
    session = session_of(made(GraphClassifier), **settings).set_step(graph_step)
    train, valid = (DataLoader(ReadyGraphs(*data), batch_size=None) for data in ((1, SAMPLES, 5), (2, 20, 8)))
    return session.add_data(train=train, valid=valid).set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.Adam)


def graphs_by_hand(batches_of_an_epoch: Any, metric: bool = True) -> Columns:
    model, criterion, means = made(GraphClassifier), nn.CrossEntropyLoss(), Means()
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    train, valid = Molecules(1, SAMPLES), as_one(Molecules(2, 20).graphs)
    for batches in batches_of_an_epoch():
        for rows in batches:
            batch = as_one([train[row] for row in rows.tolist()])
            loss = criterion(model(batch), batch.y)
            update(optimizer, loss)
            means.add(batch.num_graphs, train_loss=loss)
        with torch.no_grad():
            outputs = model(valid)
            means.add(1, valid_loss=criterion(outputs, valid.y))
            if metric:
                means.add(1, accuracy=right(outputs, valid.y))
        means.end_epoch()
    return means.columns


def in_order(size: int) -> list[Any]:
    """Two epochs of batches that are not shuffled."""
    return 2 * [torch.arange(SAMPLES).split(size)]


WHOLE = "come ready"

PROGRAMS = {
    "nodes of one graph": Program(nodes, nodes_by_hand, script=False),
    "graphs": Program(molecules, lambda: graphs_by_hand(epochs), script=False),
    "ready batches of graphs": Program(
        ready, lambda: graphs_by_hand(lambda: in_order(5), metric=False), ways=("one rank",), script=False
    ),
    "ready batches of graphs, two a step": Program(
        ready,
        lambda: graphs_by_hand(lambda: in_order(10), metric=False),
        ways=("two ranks", "accumulate"),
        told={"two ranks": (WHOLE,)},
        script=False,
    ),
}
