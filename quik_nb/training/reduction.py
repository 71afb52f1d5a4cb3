"""What a loss is a mean over, where nobody says: asked of the loss itself, once, at the first batch.

A loss that is a mean over samples can be cut into micro-batches and ranks, and put together again. One that is a sum
can, too, if that is known. One that compares the samples of a batch with each other cannot. Which of them a function of
the user's own is, its values tell: those of a batch, and of two parts of it.

All of it is done in evaluation mode, without gradients, with copies of what the user wrote and random numbers given
back, so that nothing of the training changes. What is not here: which count a known criterion has (`forward.py`).
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import cloudpickle
import torch
from torch import Tensor, nn

from quik_nb.training import rng
from quik_nb.training.data.batch import Batch, cut_batch
from quik_nb.training.train_mode import evaluating

IGNORED = -100
"""The label that torch's criteria, and the models of transformers, leave aside."""

ROUNDING = 1e-3
"""Relative difference of two losses that is taken for rounding."""

NOISE = 5.0
"""How many times the difference of two random draws of one loss is taken for chance."""

Verdict = Literal["mean", "sum", "neither", "unknown"]


class Part(NamedTuple):
    """The loss of a batch, or of a part of it."""

    loss: float
    weight: float
    """what it is a mean over, if it is one"""


class Answer(NamedTuple):
    """What a loss turned out to be."""

    verdict: Verdict
    words: str = ""
    """what was seen, for a message"""


def judge(whole: Part, again: Part, parts: list[Part]) -> Answer:
    """Whether the loss of a batch is the mean of its parts' losses, or their sum.

    Args:
        whole: of the batch.
        again: the same with other random numbers.
        parts: of the parts that the batch consists of.

    >>> judge(Part(2.0, 4), Part(2.0, 4), [Part(5.0, 1), Part(1.0, 3)]).verdict
    'mean'
    >>> judge(Part(6.0, 4), Part(6.0, 4), [Part(5.0, 1), Part(1.0, 3)]).verdict
    'sum'
    """
    mean = sum(part.loss * part.weight for part in parts) / max(sum(part.weight for part in parts), 1e-30)
    added = sum(part.loss for part in parts)

    size = max(abs(whole.loss), *(abs(part.loss) for part in parts))
    allowed = ROUNDING * size + NOISE * abs(whole.loss - again.loss)
    from_mean, from_sum = abs(whole.loss - mean), abs(whole.loss - added)

    words = f"{whole.loss:.4g} for a batch, {mean:.4g} as the mean of its parts"
    if from_mean <= allowed and from_mean <= from_sum:
        return Answer("mean", words)
    if from_sum <= allowed:
        return Answer("sum", f"{whole.loss:.4g} for a batch, {added:.4g} for its parts together")
    return Answer("neither", words)


def ask(loss_of: Callable[[Any, int], Part], batch: Batch) -> Answer:
    """What a loss is, by its values for a batch and for two parts of it.

    Args:
        loss_of: the loss of this data with so many samples; it changes nothing.
        batch: of which it is asked; of a single sample nothing can be said.
    """
    data, samples = batch.data, batch.samples
    if samples < 2:
        return Answer("unknown")
    cut = max(1, samples // 3)  # of unequal length: then a mean over parts differs from one over samples
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            again = loss_of(data, samples)
        parts = [
            loss_of(part_of(batch, 0, cut), cut),
            loss_of(part_of(batch, cut, samples), samples - cut),
        ]
        return judge(loss_of(data, samples), again, parts)
    except Exception as error:  # of the user's own code, which may not expect part of a batch
        return Answer(
            "unknown",
            f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            if str(error).strip()
            else type(error).__name__,
        )


def part_of(batch: Batch, start: int, stop: int) -> Any:
    """Some samples of a batch: cut out of it, or collated again where it cannot be cut, as graphs."""
    try:
        return cut_batch(batch.data, start, stop, batch.samples)
    except TypeError:
        if batch.part is None:
            raise
        return batch.part(start, stop)


def looks_like_a_sum(loss: Tensor) -> bool:
    """Whether a loss was added up over the elements of tensors and not divided, as far as its graph shows.

    >>> x = torch.ones(3, requires_grad=True)
    >>> looks_like_a_sum(x.sum() * 0.5), looks_like_a_sum(x.mean()), looks_like_a_sum(x.sum() / 3)
    (True, False, False)
    """
    waiting: list[Any] = [loss.grad_fn]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        name = type(node).__name__
        if node is None or node in seen or name.startswith("Div"):
            continue
        seen.add(node)

        # in the functions of torch.nn.functional, 1 is a mean and 2 a sum
        if name.startswith("SumBackward") or getattr(node, "_saved_reduction", None) == 2:
            return True
        waiting += [inner for inner, _ in node.next_functions if _is_one_number(inner)]
    return False


def _is_one_number(node: Any) -> bool:
    shapes = getattr(node, "_input_metadata", None)
    return shapes is not None and len(shapes) > 0 and len(shapes[0].shape) == 0


def isolated(value: Any) -> Any:
    """A copy of a function or object, with copies of the lists, counters and tensors of the notebook that it uses.

    Raises:
        Exception: whatever prevents it from being copied.
    """
    return cloudpickle.load(io.BytesIO(cloudpickle.dumps(value)))


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients, after which random numbers, modes, buffers and attributes are as before."""
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with rng.preserved(device), evaluating(model):
            yield
    finally:
        for module, before in attributes:
            vars(module).clear()
            vars(module).update(before)
        for buffer, value in buffers:
            # a write would spoil a backward pass that is still to come
            if not torch.equal(buffer, value):
                buffer.copy_(value)

        # or the forward to come would use weights that were cast without gradients
        torch.clear_autocast_cache()


def counted_labels(labels: Any, shifted: bool) -> Tensor | None:
    """How many labels count in the loss of a model that ignores -100; None where they are no class numbers.

    Args:
        labels: of a batch, (samples, ...).
        shifted: whether the model compares each output with the label after it, so that the first column is left out.

    >>> counted_labels(torch.tensor([[3, 1, -100], [2, -100, -100]]), shifted=True)
    tensor(1.)
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype is torch.bool or not labels.ndim:
        return None
    used = labels[:, 1:] if shifted and labels.ndim > 1 else labels
    return (used != IGNORED).sum().float()


def shifts_labels(loss_of: Callable[[Tensor], Tensor], labels: Tensor) -> bool:
    """Whether a model leaves the first column of its labels out of the loss, as one that predicts the next word does.

    Two forwards tell: with a first column that counts, and with one that does not.

    Args:
        loss_of: the loss of the batch with other labels.
        labels: of the batch, (samples, positions).
    """
    known = labels[labels != IGNORED]
    counted, ignored = labels.clone(), labels.clone()
    counted[:, 0] = known[0] if len(known) else 0
    ignored[:, 0] = IGNORED
    one, other = loss_of(counted), loss_of(ignored)
    return bool(torch.isclose(one, other, rtol=1e-6, atol=0.0, equal_nan=True))
