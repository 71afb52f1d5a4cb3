"""A model's modes (training, evaluation), module by module: set for a training, and given back as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from quik_nb.events import Tell
from quik_nb.recipe.patterns import fits


@contextmanager
def preserve_training_mode(model: nn.Module) -> Iterator[None]:
    """Whatever modes are set inside, each module is afterwards in its own, also one that was set by hand."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode without gradients, for a while."""
    with preserve_training_mode(model), torch.no_grad():
        model.eval()
        yield


def begin_training_mode(model: nn.Module, eval_modules: str | None) -> None:
    """Set the modes in which an epoch begins: training, as in every loop, but for the parts that stay in evaluation.

    Args:
        model: all of whose modules are set.
        eval_modules: names of those that stay in evaluation, as patterns; None for none.

    >>> model = nn.Sequential(nn.Dropout(), nn.Linear(1, 1))
    >>> begin_training_mode(model, "0")
    >>> [module.training for module in model]
    [False, True]
    """
    model.train()
    if eval_modules is not None:
        for name, module in model.named_modules():
            if name and fits(name, eval_modules):
                module.eval()


def tell_modes(model: nn.Module, eval_modules: str | None, tell: Tell) -> None:
    """Tell of parts whose mode may not be what their owner thinks, before the first epoch sets them.

    Args:
        model: as it was handed in.
        eval_modules: names of parts that stay in evaluation.
        tell: is called with a cause and a text.
    """
    named = {name: module for name, module in model.named_modules() if name}
    open_parts = {name: m for name, m in named.items() if eval_modules is None or not fits(name, eval_modules)}

    evaluating_parts = outermost([name for name, module in open_parts.items() if not module.training])
    if model.training and evaluating_parts:
        names = ", ".join(evaluating_parts)
        tell(
            f"in eval mode: {names}",
            f"{names} stood in evaluation mode and the model in training mode. Each epoch begins with model.train(), "
            f"so that dropout and batch statistics work there too: pass "
            f"eval_modules={', '.join(evaluating_parts)!r} to leave it in evaluation.",
        )

    frozen = outermost([name for name, module in open_parts.items() if is_frozen(module) and has_chance(module)])
    if frozen:
        names = ", ".join(frozen)
        tell(
            f"frozen with batch statistics or dropout: {names}",
            f"{names} is frozen and has batch statistics or dropout, which go on in training mode: its outputs change "
            f"although its weights do not. Pass eval_modules={names!r} to leave it in evaluation mode, as feature "
            f"extractors mostly are.",
        )


def is_frozen(module: nn.Module) -> bool:
    """Whether a module has parameters, and trains none of them."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def has_chance(module: nn.Module) -> bool:
    """Whether something in a module is different in training mode: batch statistics, or dropout that drops."""
    for part in module.modules():
        if isinstance(part, _BatchNorm) and part.track_running_stats:
            return True
        if isinstance(part, _DropoutNd) and part.p > 0:
            return True
    return False


def outermost(names: list[str]) -> list[str]:
    """The names that do not lie within another one.

    >>> outermost(["encoder", "encoder.0", "head.1"])
    ['encoder', 'head.1']
    """
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
