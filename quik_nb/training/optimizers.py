"""The recipe's classes made into objects: optimizer and scheduler.

The user's own keywords win over the session's settings, and those over what is filled in here.
"""

from typing import Any

import torch
from torch import nn, optim
from torch.optim.lr_scheduler import LRScheduler

from quik_nb.errors import RecipeError
from quik_nb.recipe.recipe import Optimizer, Recipe, Spec, fits


def optimizer_keywords(spec: Spec, recipe: Recipe) -> dict[str, Any]:
    """All keywords the optimizer gets: the step's own, those of the settings that it takes, and `fused` where it pays.

    >>> from torch import optim
    >>> optimizer_keywords(Spec(optim.SGD, {"momentum": 0.9}), Recipe())
    {'lr': 0.001, 'momentum': 0.9}
    """
    defaults = {k: v for k, v in recipe.settings.optimizer_defaults().items() if spec.takes(k)}
    keywords = {**defaults, **spec.keywords}
    if recipe.model is not None and _can_fuse(spec, recipe.model):
        keywords["fused"] = True
    return keywords


def _can_fuse(spec: Spec, model: nn.Module) -> bool:
    """Whether torch's fused form of this optimizer exists and the user did not choose another form.

    One kernel for all parameters took 0.77 times as long as the default on small steps; the sums are the same.
    """
    chosen = {"fused", "foreach", "differentiable", "capturable"} & set(spec.keywords)
    if chosen or not spec.takes("fused") or not getattr(spec.target, "__module__", "").startswith("torch.optim"):
        return False
    parameters = [p for p in model.parameters() if p.requires_grad]
    if spec.target is optim.Adagrad and any(p.device.type != "cpu" for p in parameters):
        return False  # whose fused form some versions of torch have on the CPU only
    sparse = any(getattr(module, "sparse", False) for module in model.modules())
    return not sparse and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


def make_optimizer(recipe: Recipe, model: nn.Module) -> optim.Optimizer:
    """The optimizer over the model's trainable parameters.

    Raises:
        RecipeError: the optimizer refuses its keywords; the message shows them.
    """
    assert recipe.optimizer is not None  # Recipe.check has seen to it
    keywords = optimizer_keywords(recipe.optimizer, recipe)
    try:
        return recipe.optimizer.target(parameter_groups(recipe.optimizer, model), **keywords)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        shown = ", ".join(f"{k}={v!r}" for k, v in keywords.items())
        raise RecipeError(f"set_optimizer: {recipe.optimizer.name}({shown}) was refused: {error}.") from error


def parameter_groups(spec: Optimizer, model: nn.Module) -> list[Any]:
    """The trainable parameters as torch's optimizers take them: those of no group first, then each group in turn.

    A parameter that fits several patterns belongs to the first of them.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not spec.groups:
        return [p for _, p in named]
    groups: dict[str | None, list[nn.Parameter]] = {None: [], **{pattern: [] for pattern in spec.groups}}
    for name, parameter in named:
        groups[next((pattern for pattern in spec.groups if fits(name, pattern)), None)].append(parameter)
    return [{"params": ps, **(spec.groups[p] if p else {})} for p, ps in groups.items() if ps]


def make_scheduler(
    recipe: Recipe, optimizer: optim.Optimizer, epochs: int, steps_per_epoch: int | None, done: int = 0
) -> LRScheduler | None:
    """The scheduler, with the totals it needs; None where the recipe has none.

    Args:
        recipe: with the scheduler's class and keywords.
        optimizer: whose rates it sets.
        epochs: the whole plan, over which a schedule with an end is spread.
        steps_per_epoch: optimizer steps; None where unknown.
        done: steps of the first of these epochs that are made already.
    """
    spec = recipe.scheduler
    if spec is None:
        return None
    try:
        return spec(optimizer, **spec.totals(epochs, steps_per_epoch, done))  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise RecipeError(f"set_scheduler: {spec!r} was refused: {error}.") from error


def step_scheduler(scheduler: Any, loss: float | None = None) -> None:
    """Step it; one that watches the loss is given it."""
    if loss is None:
        scheduler.step()
    else:
        scheduler.step(loss)


def set_lr(optimizer: optim.Optimizer, scheduler: Any, lr: float) -> None:
    """Set the rate of the first group, and scale the other groups and the schedule's own numbers alike.

    A schedule computes the next rate from its base rates, so these are scaled too, or the change would last one step.
    Where it stands at zero, as at the start of a warm-up, `lr` becomes its base rate.
    """
    first = optimizer.param_groups[0]
    factor = lr / (first["lr"] or first.get("initial_lr") or lr)
    for group in optimizer.param_groups:
        for key in ("lr", "initial_lr", "max_lr", "min_lr"):
            if key in group:
                group[key] = group[key] * factor
    _scale(scheduler, factor)
    first["lr"] = lr  # exactly what was asked for, without rounding


def _scale(scheduler: Any, factor: float) -> None:
    """A schedule's own rates, and those of the schedules that it is made of."""
    for name in ("base_lrs", "max_lrs"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, [rate * factor for rate in getattr(scheduler, name)])
    for inner in getattr(scheduler, "_schedulers", ()):
        _scale(inner, factor)


def resolve_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on this device; None for none.

    >>> resolve_precision("bf16", torch.device("cpu"))
    torch.bfloat16
    """
    if precision == "auto":
        precision = (
            "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        )
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
