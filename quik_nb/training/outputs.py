"""Outputs of batches, joined by sample: by the number of samples of each batch, never by chance.

| what a batch gives                                     | joined                                       |
|--------------------------------------------------------|----------------------------------------------|
| a tensor whose first dimension is its samples          | concatenated                                 |
| the same, of another width in each batch               | a list of one tensor for each sample; padded |
|                                                        | tensors where functions want one             |
| a list of one thing for each sample                    | extended                                     |
| a mapping, tuple, or list of such                      | the same of what is in it                    |
| anything else, such as a hidden state of the batch     | a list of one for each batch                 |
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quik_nb.errors import RecipeError
from quik_nb.training.data.batch import to_device
from quik_nb.training.pytree import rebuild_like, tree_map
from quik_nb.training.world import World

IGNORED = -100
"""The label that torch's criteria, and the models of transformers, leave aside."""


class Piece(NamedTuple):
    """What a batch gave."""

    outputs: Any
    targets: Any
    samples: int

    @property
    def rows(self) -> int:
        """Of the targets, which may be words or nodes rather than samples; the samples where there are none."""
        return len(self.targets) if isinstance(self.targets, Tensor) and self.targets.ndim else self.samples


class Judged(NamedTuple):
    """All outputs of a split, and what they are compared with."""

    outputs: Any
    targets: Any


class Pieces:
    """The outputs and targets of a split, batch by batch.

    Args:
        world: this rank among the others.
        ignored: the label that counts nothing, with which targets of different widths are padded.
    """

    def __init__(self, world: World, ignored: int = IGNORED) -> None:
        self.world = world
        self.ignored = ignored
        self._pieces: list[Piece] = []

    def add(self, outputs: Any, targets: Any, samples: int) -> None:
        """Take what a batch gave."""
        self._pieces.append(Piece(outputs, targets, samples))

    def whole(self) -> Judged:
        """Outputs and targets of all ranks, in the order of ranks (all ranks participate).

        Raises:
            RecipeError: there are none.
        """
        own = [Piece(*to_device(tuple(piece), torch.device("cpu"))) for piece in self._pieces]
        pieces = [piece for rank in self.world.gather(own) for piece in rank]
        if not pieces:
            raise RecipeError(
                "There are no outputs to judge: have the step return (loss, outputs), not the loss alone."
            )
        counts = [piece.rows for piece in pieces]
        outputs = join([piece.outputs for piece in pieces], counts, pad=0)
        targets = join([piece.targets for piece in pieces], counts, pad=self.ignored)
        return Judged(*to_device((outputs, targets), self.world.device))


def join(values: Sequence[Any], samples: Sequence[int], pad: int | None = None) -> Any:
    """What batches gave, joined by sample.

    Args:
        values: one for each batch.
        samples: of each batch.
        pad: what tensors of different widths are filled up with; None for a list of one tensor for each sample.

    >>> join([torch.zeros(2, 1), torch.ones(1, 1)], [2, 1]).tolist()
    [[0.0], [0.0], [1.0]]
    >>> join([["a", "b"], ["c"]], [2, 1]), join([{"n": 3}, {"n": 4}], [2, 1])
    (['a', 'b', 'c'], {'n': [3, 4]})
    """
    first = values[0]
    if all(isinstance(value, Tensor) for value in values):
        return _join_tensors(values, samples, pad)

    if all(isinstance(value, Mapping) and value.keys() == first.keys() for value in values):
        return {key: join([value[key] for value in values], samples, pad) for key in first}

    if all(isinstance(value, list) for value in values) and _one_for_each_sample(values, samples):
        return [inner for value in values for inner in value]

    if all(isinstance(value, tuple | list) and len(value) == len(first) for value in values):
        return rebuild_like(first, (join(list(inner), samples, pad) for inner in zip(*values, strict=True)))

    return None if all(value is None for value in values) else list(values)


def _one_for_each_sample(values: Sequence[list[Any]], samples: Sequence[int]) -> bool:
    """Whether lists have a thing for each sample, and are not as many outputs as there are samples by chance."""
    if any(len(value) != n for value, n in zip(values, samples, strict=True)):
        return False
    inner = [(thing, n) for value, n in zip(values, samples, strict=True) for thing in value]
    return not all(isinstance(thing, Tensor) and thing.shape[:1] == (n,) for thing, n in inner)


def _join_tensors(values: Sequence[Tensor], samples: Sequence[int], pad: int | None) -> Any:
    if any(value.shape[:1] != (n,) for value, n in zip(values, samples, strict=True)):
        return list(values)
    if len({value.shape[1:] for value in values}) == 1:
        return torch.cat(list(values))
    if pad is None or len({value.ndim for value in values}) > 1:
        return [row for value in values for row in value]

    widths = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    return torch.cat([padded(value, widths, pad) for value in values])


def padded(value: Tensor, widths: Sequence[int], pad: int) -> Tensor:
    """A tensor whose further dimensions are filled up to these widths at their ends.

    >>> padded(torch.ones(1, 2), [3], 0).tolist()
    [[1.0, 1.0, 0.0]]
    """
    missing = [width - size for width, size in zip(widths, value.shape[1:], strict=True)]
    edges = [edge for amount in reversed(missing) for edge in (0, amount)]  # as F.pad wants them, last dimension first
    return nn.functional.pad(value, edges, value=pad)


def settled(value: Any) -> Any:
    """Outputs without the graph behind them, and as float32 where they are bfloat16, which NumPy does not know."""

    def plain(inner: Any) -> Any:
        if not isinstance(inner, Tensor):
            return inner
        inner = inner.detach()
        return inner.float() if inner.dtype is torch.bfloat16 else inner

    return tree_map(plain, value)
