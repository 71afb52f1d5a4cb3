"""What is a batch keeps its type wherever it goes, and its samples are counted whatever it is made of."""

from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from quik_nb.training.data.batch import batch_length, shard_batches, to_device
from quik_nb.training.pytree import tree_leaves, tree_map
from quik_nb.training.world import World

META = torch.device("meta")


class Pair(NamedTuple):
    """A named tuple."""

    x: Any
    y: Any


@dataclass(frozen=True)
class Record:
    """A dataclass that cannot be changed."""

    x: Any
    name: str = "a"


@dataclass(slots=True)
class Slots:
    """A dataclass without a `__dict__`."""

    x: Any


class Encoding(UserDict[str, Any]):
    """A mapping that is no dict and moves by itself, as tokenizers give it."""

    def to(self, device: torch.device) -> "Encoding":
        """On a device, with a mark that it went this way."""
        return Encoding({**{key: value.to(device) for key, value in self.data.items()}, "by_itself": True})


class Graphs:
    """An object that moves by itself, in place, and gives nothing back."""

    def __init__(self, nodes: Tensor, graphs: int) -> None:
        self.nodes, self.num_graphs = nodes, graphs

    def to(self, device: torch.device) -> None:
        """Move."""
        self.nodes = self.nodes.to(device)


class Images(list[Any]):
    """A list that is made by other arguments."""

    def __init__(self, tensors: list[Any], size: int) -> None:
        super().__init__(tensors)
        self.size = size


def packed(*lengths: int) -> Any:
    """Sequences of these lengths."""
    return nn.utils.rnn.pack_sequence([torch.zeros(n, 3) for n in lengths], enforce_sorted=False)


KINDS: dict[str, Any] = {
    "dict": {"x": torch.zeros(2)},
    "ordered": OrderedDict(x=torch.zeros(2)),
    "default": defaultdict(list, x=torch.zeros(2)),
    "user dict": UserDict(x=torch.zeros(2)),
    "read-only mapping": MappingProxyType({"x": torch.zeros(2)}),
    "named tuple": Pair(torch.zeros(2), "word"),
    "frozen dataclass": Record(torch.zeros(2)),
    "dataclass with slots": Slots(torch.zeros(2)),
    "list of one's own": Images([torch.zeros(2)], size=2),
    "per sample": [{"boxes": torch.zeros(2, 4)}, {"boxes": torch.zeros(1, 4)}],
    "packed": packed(3, 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_keep_their_type(kind: str) -> None:
    """What holds tensors comes back as it was, with the tensors on the device, and the first is left as it was."""
    batch = KINDS[kind]
    moved = to_device(batch, META)

    assert type(batch) is type(moved)
    assert {META} == {leaf.device for leaf in tree_leaves(moved) if isinstance(leaf, Tensor)}
    assert {torch.device("cpu")} == {leaf.device for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)}


def test_what_else_a_container_holds_stays() -> None:
    """Attributes of containers and words among the tensors are there afterwards."""
    assert 7 == to_device(Images([torch.zeros(2)], size=7), META).size
    assert "b" == to_device(Record(torch.zeros(2), "b"), META).name
    assert [] == to_device(defaultdict(list, x=torch.zeros(2)), META)["new"]


def test_a_mapping_that_moves_by_itself_does() -> None:
    """Its own method `to` is called rather than its values moved."""
    assert to_device({"inner": Encoding(x=torch.zeros(2))}, META)["inner"]["by_itself"]


def test_an_object_that_moves_in_place() -> None:
    """One whose `to` gives nothing back is the batch itself."""
    graphs = Graphs(torch.zeros(5, 2), 3)

    assert to_device(graphs, META) is graphs
    assert META == graphs.nodes.device


def test_packed_sequences_keep_their_lengths_on_the_cpu() -> None:
    """As by their own method: recurrent layers want the lengths there."""
    moved = to_device({"x": packed(2, 5, 4)}, META)["x"]

    assert (META, torch.device("cpu")) == (moved.data.device, moved.batch_sizes.device)
    assert META == moved.sorted_indices.device


def test_packed_sequences_are_walked_by_their_data() -> None:
    """A function of the leaves sees the values, not the lengths."""
    doubled = tree_map(lambda tensor: tensor + 2, packed(2, 1))

    assert 6.0 == doubled.data.mean().item() * 3
    assert [2, 1] == doubled.batch_sizes.tolist()


LENGTHS: dict[str, tuple[Any, int]] = {
    "tensor": (torch.zeros(4, 2), 4),
    "pair": ([torch.zeros(4, 2), torch.zeros(4)], 4),
    "nested inputs": ([[torch.zeros(4, 2), torch.zeros(4, 3)], torch.zeros(4)], 4),
    "dict": ({"ids": torch.zeros(4, 7), "labels": torch.zeros(4)}, 4),
    "mapping": (UserDict(ids=torch.zeros(4, 7)), 4),
    "with a number": ({"scale": torch.tensor(2.0), "x": torch.zeros(4, 2)}, 4),
    "with words": ({"name": "abc", "x": torch.zeros(4, 2)}, 4),
    "words": ({"text": ["a", "b", "c", "d"], "y": torch.zeros(4)}, 4),
    "images of one size": ([torch.zeros(3, 8, 8)] * 4, 3),  # as good as columns
    "images and boxes": (([torch.zeros(3, 8, 8)] * 4, [{"boxes": torch.zeros(2, 4)}] * 4), 4),
    "images of any size": (([torch.zeros(3, 8, n) for n in (8, 9, 7)], [{"boxes": torch.zeros(2, 4)}] * 3), 3),
    "tuples of images": (tuple(zip(*[(torch.zeros(3, 8, 8), {"boxes": torch.zeros(1, 4)})] * 4, strict=True)), 4),
    "per sample": ([{"boxes": torch.zeros(n, 4), "labels": torch.zeros(n)} for n in (2, 0, 5)], 3),
    "sequences": ([torch.zeros(5), torch.zeros(3), torch.zeros(4), torch.zeros(1)], 4),
    "a graph with its matrix": ((torch.zeros(6, 2), torch.zeros(9, 9)), 6),
    "graphs": (Graphs(torch.zeros(20, 2), 4), 4),
    "graphs and target": ((Graphs(torch.zeros(20, 2), 4), torch.zeros(4)), 4),
    "packed": (packed(5, 4, 2), 3),
    "packed and target": ((packed(5, 4, 2), torch.zeros(3)), 3),
    "record": (Record(torch.zeros(4, 2)), 4),
    "nothing that counts": (object(), 1),
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_samples_of_a_ready_batch_are_counted(kind: str) -> None:
    """The number on which all parts of the batch agree."""
    batch, expected = LENGTHS[kind]

    assert expected == batch_length(batch)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_batches_of_a_step_are_sharded_one_by_one(world_size: int) -> None:
    """Each rank has a part of each batch, the last of which ends the step, and all know the samples of the step."""
    shares = [shard_batches([5, 1, 4], World(rank, world_size)) for rank in range(world_size)]
    batches = [
        [i for cut in parts if cut.samples for i in range(cut.start, cut.stop)] for parts in zip(*shares, strict=True)
    ]

    assert [[0, 1, 2, 3, 4], [5], [6, 7, 8, 9]] == batches
    assert [[False, False, True]] * world_size == [[cut.last for cut in share] for share in shares]
    assert {10} == {cut.total for share in shares for cut in share}
