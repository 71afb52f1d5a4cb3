"""A split's batches for one rank: for training, and in order for a pass without training."""

from collections.abc import Iterator
from dataclasses import replace

from quik_nb.errors import RecipeError
from quik_nb.events import Tell
from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.samples import Samples, Source, Tensors, loader_options
from quik_nb.training.data.batch import Batch, Batches
from quik_nb.training.data.in_memory import EvalBatches, TensorBatches
from quik_nb.training.data.loaders import SampleBatches
from quik_nb.training.data.streams import StreamBatches
from quik_nb.training.progress import Progress
from quik_nb.training.world import World


def train_batches(recipe: Recipe, world: World, tell: Tell | None = None) -> Batches:
    """The batches of the training split for one rank: shuffled, and in micro-batches.

    Args:
        recipe: with the split, and its settings `batch_size` and `accumulate`.
        world: this rank among the others.
        tell: is told what a user should know of how batches are made.
    """
    settings = recipe.settings
    if recipe.train is None:
        return NoBatches()
    source = _with_workers(recipe.train, settings.num_workers)
    return batches_of(source, settings.batch_size, world, True, settings.accumulate, tell)


class NoBatches:
    """Stands for the batches of a session without data, whose loop brings its own."""

    steps = None

    def epoch(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Refuse what is asked for."""
        raise RecipeError(
            "loader('train'): the session has no training data: use add_data(train=...), or batches of the loop's own."
        )


def step_to_enter(recipe: Recipe, progress: Progress, world: World) -> int:
    """The step of this training at which an epoch goes on that was begun earlier, maybe by another number of ranks.

    It is the same step, except with ready batches, of which a step has at least one for each rank.

    Args:
        recipe: with the training split.
        progress: of the epoch that was begun.
        world: this rank among the others.

    Raises:
        RecipeError: no step of this number of ranks begins there.
    """
    if not getattr(recipe.train, "ready", False) or progress.rng_states is None:
        return progress.step
    before, now = (max(recipe.settings.accumulate, ranks) for ranks in (len(progress.rng_states), world.world_size))
    step, left = divmod(progress.step * before, now)
    if left:
        raise RecipeError(
            f"The unfinished epoch has trained on {progress.step * before} ready batches, {before} in a step, and "
            f"steps of {now} do not begin there, so that some would count twice: finish the epoch with "
            f"processes={len(progress.rng_states)}."
        )
    return step


def eval_batches(source: Source, recipe: Recipe, world: World, tell: Tell | None = None) -> Batches:
    """All samples of a split in order, none of them twice, in forwards of a micro-batch of the training.

    A forward without training needs no more memory than one of the training so, and a model that counts on its batch
    size is called with the size that it knows. Larger ones bring nothing: 0.99 to 1.02 of the time.

    Args:
        source: the split; where it came with a loader, that one's batches count.
        recipe: with the training split and its settings.
        world: this rank among the others.
        tell: is told what a user should know of how batches are made.
    """
    size = micro_batch(recipe)
    if isinstance(source, Tensors):
        low, high = world.shard_bounds(size)
        return EvalBatches(source, max(1, high - low), world)

    source = _with_workers(source, recipe.settings.num_workers)
    if isinstance(source, Samples):
        source = replace(source, shuffle=False, drop_last=False)
    return batches_of(source, size, world, shuffle=False, tell=tell)


def micro_batch(recipe: Recipe) -> int:
    """Samples in a micro-batch of the training over all ranks: of its loader's batches, else of a part of a step."""
    train, settings = recipe.train, recipe.settings
    sampler = getattr(train, "batch_sampler", None)
    size = getattr(train, "batch_size", None) or getattr(sampler, "batch_size", None)
    return size if isinstance(size, int) else -(-settings.batch_size // settings.accumulate)


def _with_workers(source: Source, num_workers: int) -> Source:
    if isinstance(source, Tensors):
        return source
    return replace(source, options=loader_options(source, num_workers))


def batches_of(
    source: Source,
    batch_size: int,
    world: World,
    shuffle: bool,
    micro_batches: int = 1,
    tell: Tell | None = None,
) -> Batches:
    """The batches of a source for one rank.

    Args:
        source: the samples.
        batch_size: samples of all ranks together; a `DataLoader`'s own counts where the source came with one.
        world: this rank among the others.
        shuffle: whether each epoch has an order of its own.
        micro_batches: per step; what comes in batches of a loader's own joins so many of them.
        tell: is told what a user should know of how batches are made.
    """
    match source:
        case Tensors():
            return TensorBatches(source, batch_size, world, shuffle, micro_batches)
        case Samples():
            return SampleBatches(source, batch_size, world, shuffle, micro_batches)
        case _:
            return StreamBatches(source, batch_size, world, micro_batches, tell)
