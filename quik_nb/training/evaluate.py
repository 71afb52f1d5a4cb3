"""A pass over a split without training: its exact loss and metrics over all ranks, or the outputs in order."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from quik_nb.errors import RecipeError
from quik_nb.recipe.data import Samples, Source, Tensors
from quik_nb.recipe.recipe import Recipe
from quik_nb.training import rng
from quik_nb.training.data.batch import Batch, Batches, bytes_of, to_device
from quik_nb.training.data.batches import eval_batches
from quik_nb.training.data.in_memory import EvalBatches
from quik_nb.training.data.loaders import StreamBatches
from quik_nb.training.forward import Step, describe, main_output, split_batch
from quik_nb.training.metrics import MetricSet, detached, exact, join
from quik_nb.training.optimizers import resolve_precision
from quik_nb.training.train_mode import evaluating
from quik_nb.training.world import World

Autocast = Callable[[], AbstractContextManager[None]]


class Evaluation:
    """One pass over a split: every sample counts once, on whichever rank it is seen.

    Args:
        recipe: with batch size and metrics.
        model: the module itself, without a DDP wrapper: ranks need not be in step.
        step: batch to loss and outputs.
        world: this rank among the others.
        autocast: the context of a forward pass.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, step: Step, world: World, autocast: Autocast) -> None:
        self.recipe, self.model, self.step, self.world, self.autocast = recipe, model, step, world, autocast
        self.metrics = MetricSet(recipe.metrics, world)
        self.cut = False
        """set it to True to end the pass early: then no rank has a loss"""
        self.sum = torch.zeros((), dtype=exact(world.device), device=world.device)
        self.count = torch.zeros_like(self.sum)

    def over(self, batches: Batches) -> Iterator[tuple[int, int | None]]:
        """Walk the split; yields (batches done, batches in all or None), and ends early where it is cut."""
        in_step = isinstance(batches, StreamBatches) and self.world.is_ddp
        if isinstance(batches, StreamBatches):
            batches.leave = lambda: self.cut  # ranks that read a stream in step must leave it in step
        with evaluating(self.model):
            for done, batch in enumerate(batches.epoch(self.recipe.settings.seed, 0), start=1):
                if batch.samples:
                    outputs = self._take(batch)
                    if done == 1 and outputs is not None:
                        grow(batches, batch, outputs)
                yield done, batches.steps
                if self.cut and not in_step:
                    return

    def _take(self, batch: Batch) -> Any:
        with self.autocast():
            result = self.step(self.model, batch.data)
        count = batch.samples if result.counted is None else result.counted
        self.sum += result.loss.to(self.sum.dtype) * (1 if self.step.sums else count)
        self.count += count
        if self.metrics.names and result.outputs is not None:
            self.metrics.update(result.outputs, result.target)
        return result.outputs

    def loss(self) -> float | None:
        """The mean loss over the samples of all ranks (all ranks participate); None if any of them was cut.

        Raises:
            RecipeError: there was no sample.
        """
        total = self.world.sum(torch.stack([self.sum, self.count, self.sum.new_tensor(self.cut)]))
        loss, count, cut = total.tolist()
        if cut:
            return None
        if not count:
            raise RecipeError(
                "There was nothing to validate with: the split came out empty, or all its labels are ignored. Pass one "
                "with samples, or a stream that starts anew for each pass (not an exhausted iterator)."
            )
        return float(loss / count)


def evaluate(recipe: Recipe, source: Source, device: torch.device) -> dict[str, float]:
    """The mean loss and the metrics of a split in this process: `{"loss": ..., **metrics}`."""
    with _on(recipe, device) as (model, world, autocast), closing(Step(recipe, device)) as step:
        evaluation = Evaluation(recipe, model, step, world, autocast)
        for _ in evaluation.over(eval_batches(source, recipe.settings, world)):
            pass
        loss = evaluation.loss()
        assert loss is not None  # nothing cuts it
        return {"loss": loss, **evaluation.metrics.compute()}


def predict(recipe: Recipe, source: Source, device: torch.device) -> Any:
    """The outputs for all samples of a source in order, on the CPU; a target in the batches is left aside."""
    width, parts = batch_width(recipe.train), []
    with _on(recipe, device) as (model, world, autocast), evaluating(model):
        batches = eval_batches(source, recipe.settings, world)
        for batch in batches.epoch(recipe.settings.seed, 0):
            inputs = model_inputs(batch.data, width)
            with autocast(), told(inputs):
                outputs = main_output(model(**inputs) if isinstance(inputs, dict) else model(*inputs))
            parts.append(to_device(detached(outputs), torch.device("cpu")))
            if len(parts) == 1:
                grow(batches, batch, outputs)
    return join(parts)


@contextmanager
def told(inputs: Any) -> Iterator[None]:
    """Say of an error in a forward pass what the model was called with: a step of the user's own is not asked here."""
    try:
        yield
    except Exception as error:
        error.add_note(
            f"quik_nb: predict called the model with {describe(inputs)}; where a batch holds more than it takes, "
            f"pass the inputs alone, predict(x)."
        )
        raise


def grow(batches: Batches, batch: Batch, outputs: Any) -> None:
    """Once the outputs of a batch are known, take as many rows at once as fit in memory with theirs."""
    if isinstance(batches, EvalBatches):
        batches.fit(bytes_of(outputs) // batch.samples)


@contextmanager
def _on(recipe: Recipe, device: torch.device) -> Iterator[tuple[nn.Module, World, Autocast]]:
    """The recipe's model on a device for a while, and the user's random numbers left as they are."""
    assert recipe.model is not None  # the session has seen to it
    home = next((p.device for p in recipe.model.parameters()), device)
    dtype = resolve_precision(recipe.settings.precision, device)
    try:
        with rng.preserved(device):
            yield recipe.model.to(device), World(device=device), lambda: autocast(device, dtype)
    finally:
        recipe.model.to(home)


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """The context of a forward pass: mixed precision where there is a dtype, nothing otherwise."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def batch_width(source: Source | None) -> int | None:
    """Of how many parts a batch is made, the target included; None where only reading a stream would tell."""
    match source:
        case Tensors(names=None, tensors=tensors):
            return len(tensors)
        case Samples():
            with rng.preserved():
                batch = source.options.get("collate_fn", default_collate)([source.sample()])
            return len(batch) if isinstance(batch, tuple | list) else None
    return None


def model_inputs(batch: Any, width: int | None) -> Any:
    """What the model takes of a batch: a tuple or dict without the target, if there is one."""
    if isinstance(batch, dict):
        return split_batch(batch)[0]
    if isinstance(batch, tuple | list):
        has_target = len(batch) > 1 if width is None else len(batch) == width
        return tuple(batch[:-1] if has_target else batch)
    return (batch,)
