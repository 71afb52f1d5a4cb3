"""Metrics are tried before a training, on some of the validation samples, so that a fault does not cost an epoch.

Nothing changes by it: functions and steps are copied where they can be, random numbers, modes, buffers and attributes
of the model are given back, and streams are read from a copy.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from quik_nb.recipe.monitor import known_columns
from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.samples import Samples, Source, Tensors
from quik_nb.training.data.batches import eval_batches
from quik_nb.training.forward import ForwardStep, StepContext
from quik_nb.training.precision import Autocast
from quik_nb.training.reduction import isolated, undisturbed
from quik_nb.training.world import World

SAMPLES = 256
"""The most samples that metrics are tried on."""


def try_metrics(
    recipe: Recipe, model: nn.Module, step: ForwardStep, world: World, evaluation_of: Callable[..., Any]
) -> tuple[str, ...]:
    """The columns that rows will have, after the metrics were tried; one rank does it for all.

    Args:
        recipe: with metrics and validation split.
        model: on its device.
        step: batch to loss and outputs.
        world: this rank among the others.
        evaluation_of: makes an `Evaluation` of recipe, model, step, world and autocast.

    Raises:
        Exception: whatever a metric raises, with a note that says which one.
    """
    known = known_columns(recipe)
    source = None if recipe.valid is None else some_samples(recipe.valid)
    if source is None or not world.is_logger or not recipe.check_metrics or not _is_worth_it(recipe):
        return tuple(known)

    metrics = {name: copied(metric) for name, metric in recipe.metrics.items()}
    settings = replace(recipe.settings, num_workers=0)
    alone = World(device=world.device)
    bare = replace(recipe, metrics=metrics, settings=settings)
    evaluation = evaluation_of(bare, model, step.twin(), alone, Autocast(world.device, settings.precision))
    evaluation.context = StepContext("valid", 0, 0, alone)
    _count_alone(evaluation)

    seen = 0
    with undisturbed(model, world.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of some samples, in which a class may be missing
        try:
            for done, _ in evaluation.over(eval_batches(source, bare, alone)):
                seen = done
                if evaluation.samples >= SAMPLES:
                    break
            columns = evaluation.columns() if seen else {}
        except Exception as error:
            error.add_note(
                f"quik_nb: the metrics were tried on {evaluation.samples} validation samples before the training, so "
                f"nothing was trained; set_metrics(..., check=False) leaves the trial out."
            )
            raise

    names = [name for name in known if name not in recipe.metrics and name.removeprefix("train_") not in recipe.metrics]
    on_train = [f"train_{name}" for name in evaluation.metrics.columns if recipe.metrics_on_train]
    values = [name.removeprefix("valid_") for name in columns if name not in evaluation.metrics.columns]
    return tuple(dict.fromkeys([*names, *columns, *on_train, *values]))


def _is_worth_it(recipe: Recipe) -> bool:
    """Whether there are metrics to try, or a column is monitored that only a step could give."""
    monitor = recipe.settings.monitor
    return bool(recipe.metrics) or (monitor is not None and monitor not in known_columns(recipe))


def copied(value: Any) -> Any:
    """A copy of what the user wrote, or the thing itself where it cannot be copied."""
    with suppress(Exception):  # of whatever a function refers to, such as an open file
        return isolated(value)
    return value


def some_samples(source: Source) -> Source | None:
    """At most `SAMPLES` samples of a split, evenly spread, as it may be sorted by class; None where they cannot be had
    without a trace."""
    if isinstance(source, Tensors):
        rows = spread(len(source)).to(source.tensors[0].device)
        return replace(source, rows=rows if source.rows is None else source.rows[rows.to(source.rows.device)])

    options = {name: value for name, value in source.options.items() if name in ("collate_fn", "pin_memory")}
    if isinstance(source, Samples):
        if source.sampler is not None or source.batch_sampler is not None:
            return replace(source, options=options)
        return replace(source, dataset=Subset(source.dataset, spread(len(source)).tolist()), options=options)
    try:
        return isolated(replace(source, options=options))  # type: ignore[no-any-return]
    except Exception:  # of whatever a stream reads from
        return None


def spread(samples: int) -> torch.Tensor:
    """At most `SAMPLES` positions, evenly spread.

    >>> spread(3).tolist(), len(spread(1000)), spread(1000)[-1].item()
    ([0, 1, 2], 256, 999)
    """
    return torch.linspace(0, samples - 1, min(samples, SAMPLES)).round().long()


def _count_alone(evaluation: Any) -> None:
    """Have torchmetrics ask no other rank: those are not here."""
    for state in evaluation.metrics.states.values():
        members: Mapping[str, Any] = dict(state.named_modules()) if isinstance(state, nn.Module) else {}
        for member in members.values():
            if hasattr(member, "distributed_available_fn"):
                member.distributed_available_fn = nobody_else


def nobody_else() -> bool:
    """Whether there are other ranks to add up with: not in a trial."""
    return False
