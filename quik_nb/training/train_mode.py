"""Training and evaluation mode of a model's modules: set for a training, and restored afterwards."""

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
    """Restore the training mode of each module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Move a module to a device, and each of its tensors back to its own afterwards, also where those are several."""
    # by name, as moving a module puts other tensors in the place of its buffers
    before = [
        (part, name, p.device) for part in module.modules() for name, p in part._parameters.items() if p is not None
    ]
    buffers = [
        (part, name, b.device) for part in module.modules() for name, b in part._buffers.items() if b is not None
    ]
    module.to(device)
    try:
        yield
    finally:
        for part, name, original in before:
            parameter = part._parameters.get(name)
            if parameter is not None:
                parameter.data = parameter.data.to(original)
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.to(original)
        for part, name, original in buffers:
            buffer = part._buffers.get(name)
            if buffer is not None:
                part._buffers[name] = buffer.to(original)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode without gradients, and restore its modes afterwards."""
    with preserve_training_mode(model), torch.no_grad():
        model.eval()
        yield


def begin_training_mode(model: nn.Module, eval_modules: str | None) -> None:
    """Set the modes for the beginning of an epoch: training mode, except for modules that stay in evaluation mode.

    Args:
        model: the mode of all its modules is set.
        eval_modules: patterns of names of modules that stay in evaluation mode; None for none.

    >>> model = nn.Sequential(nn.Dropout(), nn.Linear(1, 1))
    >>> begin_training_mode(model, "0")
    >>> [module.training for module in model]
    [False, True]
    """
    model.train()
    for name in eval_parts(model, eval_modules):
        model.get_submodule(name).eval()


def eval_parts(model: nn.Module, eval_modules: str | None) -> list[str]:
    """The names of the parts that stay in evaluation, without those within another one.

    >>> eval_parts(nn.Sequential(nn.Sequential(nn.Dropout()), nn.Linear(1, 1)), "0")
    ['0']
    """
    if eval_modules is None:
        return []
    return outermost([name for name, _ in model.named_modules() if name and fits(name, eval_modules)])


def tell_modes(model: nn.Module, eval_modules: str | None, tell: Tell) -> None:
    """Warn about modules whose mode may not be what the user expects, before the first epoch sets it.

    Args:
        model: as the user passed it.
        eval_modules: patterns of names of modules that stay in evaluation mode; None for none.
        tell: called with a cause and a text.
    """
    named = {name: module for name, module in model.named_modules() if name}
    if eval_modules is not None:
        named = {name: module for name, module in named.items() if not fits(name, eval_modules)}

    in_eval_mode = outermost([name for name, module in named.items() if not module.training and mode_matters(module)])
    if model.training and in_eval_mode:
        names = ", ".join(in_eval_mode)
        tell(
            f"in eval mode: {names}",
            f"{names} was in evaluation mode and the model in training mode. Each epoch begins with model.train(), "
            f"so dropout and batch statistics are active there too: pass eval_modules={names!r} to leave it in "
            f"evaluation mode.",
        )

    frozen = outermost([name for name, module in named.items() if is_frozen(module) and depends_on_mode(module)])
    if frozen:
        names = ", ".join(frozen)
        tell(
            f"frozen with batch statistics or dropout: {names}",
            f"{names} is frozen and has batch statistics or dropout, which are active in training mode, so its outputs "
            f"change although its weights do not: pass eval_modules={names!r} to leave it in evaluation mode, as is "
            f"usual for feature extractors.",
        )


def mode_matters(module: nn.Module) -> bool:
    """Whether training mode may change what a module computes: torch's own layers say, a class of the user's may."""
    custom = any(not type(part).__module__.startswith("torch.") for part in module.modules())
    return custom or depends_on_mode(module)


def is_frozen(module: nn.Module) -> bool:
    """Whether a module has parameters, and none of them requires gradients."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def depends_on_mode(module: nn.Module) -> bool:
    """Whether a module behaves differently in training mode: it has batch statistics, or dropout with `p > 0`."""
    for child in module.modules():
        if isinstance(child, _BatchNorm) and child.track_running_stats:
            return True
        if isinstance(child, _DropoutNd) and child.p > 0:
            return True
    return False


def outermost(names: list[str]) -> list[str]:
    """The module names that are not inside another module of the list.

    >>> outermost(["encoder", "encoder.0", "head.1"])
    ['encoder', 'head.1']
    """
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
