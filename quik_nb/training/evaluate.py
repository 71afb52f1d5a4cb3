"""A pass over a split without training: its exact loss and metrics over all ranks, or the outputs in order."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from quik_nb.errors import RecipeError
from quik_nb.events import Tell
from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.samples import Samples, Source, Tensors
from quik_nb.training import rng, torch_switches
from quik_nb.training.data.batch import Batch, Batches, to_device
from quik_nb.training.data.batches import eval_batches
from quik_nb.training.data.streams import StreamBatches
from quik_nb.training.data.words import describe
from quik_nb.training.forward import ForwardStep, StepContext, criterion_on, main_output, split_batch
from quik_nb.training.metrics import MetricSet, ValueMeans
from quik_nb.training.outputs import Judged, Pieces, join, settled
from quik_nb.training.precision import Autocast
from quik_nb.training.train_mode import evaluating, on_device
from quik_nb.training.world import World, exact
from quik_nb.training.yielding import make_step


class Evaluation:
    """One pass over a split: every sample counts once, on whichever rank it is seen.

    Args:
        recipe: with seed and metrics.
        model: the module itself: ranks need not be in step.
        step: batch to loss and outputs.
        world: this rank among the others.
        autocast: the context of a forward pass.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, step: ForwardStep, world: World, autocast: Autocast) -> None:
        self.recipe = recipe
        self.model = model
        self.step = step
        self.world = world
        self.autocast = autocast
        self.context = StepContext("data", 0, 0, world)
        self.metrics = MetricSet(recipe, recipe.metrics, world)
        self.pieces: Pieces | None = None
        """takes outputs and targets where they are asked for"""
        self.values = ValueMeans()
        self.samples = 0
        """seen so far on this rank"""
        self.cut = False
        """set it to True to end the pass early: then no rank has a loss"""
        self.sum = torch.zeros((), dtype=exact(world.device), device=world.device)
        self.count = torch.zeros_like(self.sum)

    def over(self, batches: Batches) -> Iterator[tuple[int, int | None]]:
        """Walk the split; yields (batches done, batches in all or None), and ends early where it is cut."""
        in_step = isinstance(batches, StreamBatches) and self.world.world_size > 1
        if isinstance(batches, StreamBatches):
            batches.leave = lambda: self.cut  # ranks that read a stream in step must leave it in step
        with evaluating(self.model):
            for done, batch in enumerate(batches.epoch(self.recipe.settings.seed, 0), start=1):
                if batch.samples:
                    self._add(batch, self.context._replace(step=done - 1))
                yield done, batches.steps
                if self.cut and not in_step:
                    return

    def _add(self, batch: Batch, context: StepContext) -> None:
        with self.autocast:
            output = self.step(self.model, batch, context)

        self.samples += batch.samples
        count = batch.samples if output.count is None else output.count
        self.sum += output.loss.to(self.sum.dtype) * (1 if output.reduction == "sum" else count)
        self.count += count
        self.values.add(output.values, batch.samples)
        if self.metrics.names and output.outputs is not None:
            self.metrics.update(output.outputs, output.target, batch.samples)
        if self.pieces is not None and output.outputs is not None:
            self.pieces.add(settled(output.outputs), settled(output.target), batch.samples)

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
                "with samples, or a stream that starts again for each pass (not an exhausted iterator)."
            )
        return float(loss / count)

    def columns(self, prefix: str = "") -> dict[str, float]:
        """The metrics, and the further numbers of a step of the user's own (all ranks participate).

        Args:
            prefix: of the names of those numbers, which training has in columns of the bare names.
        """
        values = self.values.compute(self.world) if self.recipe.step is not None else {}
        return {**self.metrics.compute(), **{f"{prefix}{name}": value for name, value in values.items()}}


class Validation:
    """The validation split of a training, one pass at each epoch's end.

    Args:
        recipe: with the split, if there is one.
        step: batch to loss and outputs.
        world: this rank among the others.
        tell: tells the user something once.
    """

    def __init__(self, recipe: Recipe, step: ForwardStep, world: World, tell: Tell) -> None:
        self.recipe = recipe
        self.step = step
        self.world = world
        self.batches = None if recipe.valid is None else eval_batches(recipe.valid, recipe, world, tell)
        """None where there is no such split"""

    def start(self, model: nn.Module, autocast: Autocast, epoch: int) -> Evaluation:
        """A pass with the weights that this module has now."""
        evaluation = Evaluation(self.recipe, model, self.step, self.world, autocast)
        evaluation.context = StepContext("valid", epoch, 0, self.world)
        return evaluation


def evaluate(recipe: Recipe, source: Source, device: torch.device, split: str = "data") -> dict[str, float]:
    """The mean loss and the metrics of a split in this process: `{"loss": ..., **metrics}`."""
    with _evaluation(recipe, device, split) as evaluation:
        loss = _walk(evaluation, source)
        return {"loss": loss, **evaluation.columns()}


def judge(recipe: Recipe, source: Source, device: torch.device, split: str = "data") -> tuple[float, Judged]:
    """The mean loss of a split in this process, and all outputs with what they are compared with."""
    with _evaluation(replace(recipe, metrics={}), device, split) as evaluation:
        evaluation.pieces = Pieces(evaluation.world, recipe.ignored_label)
        return _walk(evaluation, source), evaluation.pieces.whole()


def _walk(evaluation: Evaluation, source: Source) -> float:
    for _ in evaluation.over(eval_batches(source, evaluation.recipe, evaluation.world)):
        pass
    loss = evaluation.loss()
    assert loss is not None  # nothing cuts it
    return loss


@contextmanager
def _evaluation(recipe: Recipe, device: torch.device, split: str) -> Iterator[Evaluation]:
    with ExitStack() as stack:
        model, world, autocast = stack.enter_context(_on(recipe, device))
        step = make_step(recipe, stack.enter_context(criterion_on(recipe, device)))
        stack.enter_context(step.listening())
        evaluation = Evaluation(recipe, model, step, world, autocast)
        evaluation.context = evaluation.context._replace(split=split)
        yield evaluation


def predict(recipe: Recipe, source: Source, device: torch.device, split: str = "data") -> Any:
    """The outputs for all samples of a source in order, on the CPU, joined by sample.

    Args:
        recipe: with the model, and the step of the user's own, if there is one.
        source: of the samples; a target in its batches is left aside.
        device: where to.
        split: what the source is called. For a split the outputs are those of the step, where it gives them; they are
            the model's where it gives the loss alone, and for data of its own.
    """
    outputs = None
    if split != "data" and recipe.step is not None and batch_width(source) == batch_width(recipe.train):
        outputs = _outputs_of_step(recipe, source, device, split)
    return _outputs_of_model(recipe, source, device) if outputs is None else outputs


def _outputs_of_step(recipe: Recipe, source: Source, device: torch.device, split: str) -> Any:
    """What the step gives beside the loss; None where it gives nothing."""
    parts: list[Any] = []
    samples: list[int] = []
    with _evaluation(replace(recipe, metrics={}), device, split) as evaluation, evaluating(evaluation.model):
        for batch in eval_batches(source, recipe, evaluation.world).epoch(recipe.settings.seed, 0):
            with evaluation.autocast:
                outputs = evaluation.step(evaluation.model, batch, evaluation.context).outputs
            if outputs is None:
                return None
            parts.append(to_device(settled(outputs), torch.device("cpu")))
            samples.append(batch.samples)
    return join(parts, samples)


def _outputs_of_model(recipe: Recipe, source: Source, device: torch.device) -> Any:
    width = batch_width(recipe.train)
    parts: list[Any] = []
    samples: list[int] = []
    with _on(recipe, device) as (model, world, autocast), evaluating(model):
        for batch in eval_batches(source, recipe, world).epoch(recipe.settings.seed, 0):
            inputs = model_inputs(batch.data, width)
            with autocast, note_predict_inputs(inputs, recipe.step is not None):
                outputs = main_output(model(**inputs) if isinstance(inputs, dict) else model(*inputs))
            parts.append(to_device(settled(outputs), torch.device("cpu")))
            samples.append(batch.samples)
    return join(parts, samples)


@contextmanager
def note_predict_inputs(inputs: Any, has_step: bool) -> Iterator[None]:
    """Say of an error in a forward pass what the model was called with: a step of the user's own is not asked here."""
    try:
        yield
    except Exception as error:
        step = " It calls the model alone; predict('valid') gives the outputs of your step." if has_step else ""
        error.add_note(
            f"quik_nb: predict called the model with {describe(inputs)}; where a batch holds more than it takes, "
            f"pass the inputs alone, predict(x).{step}"
        )
        raise


@contextmanager
def _on(recipe: Recipe, device: torch.device) -> Iterator[tuple[nn.Module, World, Autocast]]:
    """The recipe's model on a device for a while, and the user's random numbers left as they are."""
    model = recipe.model
    assert model is not None  # the session has looked
    with on_device(model, device), rng.preserved(device), torch_switches.preserved():
        yield model, World(device=device), Autocast(device, recipe.settings.precision)


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
    if isinstance(batch, Mapping):
        return split_batch(batch)[0]
    if isinstance(batch, tuple | list):
        has_target = len(batch) > 1 if width is None else len(batch) == width
        return tuple(batch[:-1] if has_target else batch)
    return (batch,)
