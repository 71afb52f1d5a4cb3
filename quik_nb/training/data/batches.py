"""A source's batches for one rank: for training, and in order for a pass without training."""

from dataclasses import replace

from quik_nb.recipe.data import Samples, Source, Tensors
from quik_nb.recipe.settings import Settings
from quik_nb.training.data.batch import Batches
from quik_nb.training.data.in_memory import EvalBatches, TensorBatches
from quik_nb.training.data.loaders import SampleBatches, StreamBatches
from quik_nb.training.world import World


def batches(source: Source, batch_size: int, world: World, shuffle: bool, parts: int = 1) -> Batches:
    """The batches of a source for one rank, to train on.

    Args:
        source: the samples.
        batch_size: samples per optimizer step over all ranks.
        world: this rank among the others.
        shuffle: whether each epoch has an order of its own.
        parts: micro-batches per step.
    """
    match source:
        case Tensors():
            return TensorBatches(source, batch_size, world, shuffle, parts)
        case Samples():
            return SampleBatches(source, batch_size, world, shuffle, parts)
        case _:
            return StreamBatches(source, batch_size, world, parts)


def eval_batches(source: Source, settings: Settings, world: World) -> Batches:
    """All samples of a source in order, none of them twice; the first batch is as large as those of the training."""
    if isinstance(source, Tensors):
        return EvalBatches(source, max(1, settings.batch_size // (settings.accumulate * world.world_size)), world)
    if isinstance(source, Samples):
        source = replace(source, shuffle=False, drop_last=False)
    return batches(source, settings.batch_size, world, shuffle=False)
