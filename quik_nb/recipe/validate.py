"""Whether the parts of a recipe fit together, checked before anything starts; all faults come in one message.

Each check gives sentences of three parts: what was given, why it cannot be used, what to use instead. What only shows
when a batch goes through the model is said there (`training/forward.py`).
"""

import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from quik_nb.errors import RecipeError, suggest
from quik_nb.recipe.assignment import assignment_faults
from quik_nb.recipe.kinds import is_number
from quik_nb.recipe.monitor import monitor_faults
from quik_nb.recipe.patterns import fits
from quik_nb.recipe.recipe import FLOAT_TARGETS, Optimizer, Recipe, Scheduler, Spec, label_tensor, needs_closure
from quik_nb.recipe.samples import Source, Tensors

CLASS_TARGETS = (nn.CrossEntropyLoss, nn.NLLLoss)
"""Criteria that take class numbers."""


def check(recipe: Recipe, own_loop: bool = False) -> None:
    """Raise a RecipeError that names everything that is missing or does not fit, if anything does.

    Args:
        recipe: what is to be trained.
        own_loop: whether a loop of the user's own trains it, which may do what ours does not.
    """
    missing = recipe.missing_steps()
    if own_loop:  # which may bring its own data, loss and optimizers
        missing = {part: call for part, call in missing.items() if part == "model"}
    found = list(faults(recipe, own_loop))

    parts = []
    if missing:
        lines = "\n".join(f"    .{call}" for call in missing.values())
        parts.append(f"This session cannot train yet; missing:\n{lines}")
    if found:
        parts.append("These do not fit:\n" + "\n".join(f"    {fault}" for fault in found))

    if parts:
        raise RecipeError("\n".join(parts))


def faults(recipe: Recipe, own_loop: bool = False) -> Iterator[str]:
    """One sentence for each thing that does not fit."""
    yield from recipe.settings.faults()
    for name, optimizer in recipe.optimizers.items():
        yield from _optimizer(recipe, optimizer)
        if not own_loop and needs_closure(optimizer.target):
            yield from _closure(recipe, name, optimizer)
    yield from _criterion(recipe)
    for name, scheduler in recipe.schedulers.items():
        yield from _scheduler(recipe, name, scheduler)
    if recipe.yields and not own_loop:
        yield from _yields(recipe)
    yield from monitor_faults(recipe, own_loop)
    if recipe.model is not None:
        yield from _model(recipe, recipe.model)
        yield from _names(recipe, recipe.model)
        yield from assignment_faults(recipe)
    if recipe.step is None and not own_loop and isinstance(recipe.train, Tensors):
        yield from _dtypes(recipe, recipe.train)
    for split in ("valid", "test"):
        yield from _further_split(recipe.train, getattr(recipe, split), split)


def _keywords(step: str, spec: Spec, filled: Sequence[str] = (), given: Sequence[str] = ()) -> Iterator[str]:
    """Keywords that a class or function does not take, and those that it needs and nobody gives.

    Args:
        step: of the session, for the message.
        spec: with the user's keywords.
        filled: parameters that are not the user's to give.
        given: parameters that may come from elsewhere.
    """
    parameters = {n: p for n, p in spec.parameters.items() if p.kind is not p.VAR_POSITIONAL and n not in filled}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD]

    for keyword in spec.keywords:
        if spec.parameters and keyword not in named and not takes_any:
            yield f"{step}: {spec.name} takes no keyword {keyword!r}: {suggest(keyword, named)}"

    needed = [n for n in named if parameters[n].default is inspect.Parameter.empty]
    absent = [n for n in needed if n not in spec.keywords and n not in given]
    if absent:
        keywords = ", ".join(f"{name}=..." for name in absent)
        yield f"{step}: {spec.name} needs {', '.join(absent)}: use {step}({spec.name}, {keywords})"


def _optimizer(recipe: Recipe, spec: Optimizer) -> Iterator[str]:
    first = [] if spec.method_of(recipe.model) else list(spec.parameters)[:1]  # parameters, whatever it calls them
    if spec.takes_model and (spec.groups or spec.params is not None):
        yield (
            f"set_optimizer: {spec.name} makes the optimizer from the whole model, so groups= and params= cannot say "
            f"which parameters it trains: leave them out, or pass the optimizer's class"
        )
    yield from _keywords("set_optimizer", spec, first, list(recipe.settings.optimizer_defaults()))
    for pattern, keywords in spec.groups.items():
        group = Spec(spec.target, {**spec.keywords, **keywords})
        where = f"set_optimizer(groups={{{pattern!r}: ...}})"
        yield from _keywords(where, group, first, list(spec.parameters))
        if not (is_number(lr := keywords.get("lr", 0.0)) and lr >= 0):
            yield f"{where}: lr={lr!r} is not a number from 0 up"


def _closure(recipe: Recipe, name: str, spec: Optimizer) -> Iterator[str]:
    """What cannot be done where an optimizer computes the loss again and again within a step."""
    settings = recipe.settings
    where = f"set_optimizer: {spec.name} computes the loss again and again within a step"
    if settings.precision == "fp16":
        yield f"{where}, and fp16 scales losses from step to step: use precision='fp32' or 'bf16'"
    if settings.clip_norm is not None or settings.clip_value is not None:
        yield f"{where}, and a line search needs gradients that are not clipped: leave out clip_norm= and clip_value="
    if len(recipe.optimizers) > 1:
        yield f"{where}, while other optimizers move their part of the model: use it alone, or another for {name!r}"
    if recipe.yields:
        yield f"{where}, and a step that yields goes on after each loss: use another optimizer, or return the loss"


def _yields(recipe: Recipe) -> Iterator[str]:
    """What cannot be done where the step of the user's own yields its losses."""
    if recipe.settings.accumulate > 1:
        yield (
            f"set_step: accumulate={recipe.settings.accumulate} was asked for, and this step yields losses: an "
            f"optimizer steps at each of them, so gradients cannot add up over micro-batches: leave accumulate out, or "
            f"use a smaller batch_size"
        )
    if "" in recipe.optimizers:
        yield (
            "set_step: this step yields losses with the names of their optimizers, and the optimizer has no name: use "
            "set_optimizer(optim.Adam, params='generator', name='generator')"
        )


def _criterion(recipe: Recipe) -> Iterator[str]:
    if isinstance(spec := recipe.criterion, Spec):
        compared = [] if isinstance(spec.target, type) else list(spec.parameters)[:2]  # outputs and target
        yield from _keywords("set_criterion", spec, compared)


def _scheduler(recipe: Recipe, name: str, spec: Scheduler) -> Iterator[str]:
    if name and name not in recipe.optimizers:
        known = suggest(name, list(recipe.optimizers))
        yield f"set_scheduler: optimizer={name!r} is the name of no optimizer: {known}"
    yield from _keywords("set_scheduler", spec, list(spec.parameters)[:1], list(spec.totals(1, 1)))
    if spec.watches_loss and spec.per_batch:
        yield f"set_scheduler: {spec.name} watches the loss of an epoch, so it is stepped once an epoch: leave out per="


def _model(recipe: Recipe, model: nn.Module) -> Iterator[str]:
    name = type(model).__name__
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        yield f"add_model: {name} has lazy layers, whose sizes are not known yet: call it once before, as model(x[:2])"
    if any(p.is_meta for p in model.parameters()):
        yield (
            f"add_model: the weights of {name} are on the device 'meta', without values: make it on the CPU, or give "
            f"it memory with model.to_empty(device='cpu') and load weights"
        )

    frozen = recipe.settings.freeze
    trained = [parameter for parameter, p in model.named_parameters() if p.requires_grad]
    if not list(model.parameters()):
        yield f"add_model: {name} has no parameters, so there is nothing to train"
    elif not trained:
        yield f"add_model: {name} has no parameter that can be trained: switch some on with requires_grad_(True)"
    elif frozen and all(fits(parameter, frozen) for parameter in trained):
        yield f"freeze={frozen!r} freezes every parameter of {name}: use a narrower pattern"


def _names(recipe: Recipe, model: nn.Module) -> Iterator[str]:
    """Patterns of parameter names that fit none."""
    names = [name for name, _ in model.named_parameters()]
    optimizers = recipe.optimizers.values()
    patterns = [(f"set_optimizer(groups={{{p!r}: ...}})", p) for spec in optimizers for p in spec.groups]
    patterns += [
        (f"set_optimizer(params={spec.params!r})", spec.params) for spec in optimizers if spec.params is not None
    ]
    if recipe.settings.freeze is not None:
        patterns.append((f"freeze={recipe.settings.freeze!r}", recipe.settings.freeze))

    for where, pattern in patterns:
        for part in map(str.strip, pattern.split(",")):
            if not any(fits(name, part) for name in names):
                parents = {name.rsplit(".", 1)[0] for name in names}
                yield f"{where}: {part!r} fits no parameter of {type(model).__name__}: {suggest(part, parents)}"

    parts = [name for name, _ in model.named_modules() if name]
    for part in map(str.strip, (recipe.settings.eval_modules or "").split(",")):
        if part and not any(fits(name, part) for name in parts):
            where = f"eval_modules={recipe.settings.eval_modules!r}"
            yield f"{where}: {part!r} fits no part of {type(model).__name__}: {suggest(part, parts)}"


def _dtypes(recipe: Recipe, train: Tensors) -> Iterator[str]:
    criterion = recipe.criterion.target if isinstance(recipe.criterion, Spec) else type(recipe.criterion)
    if train.names is None and len(train.tensors) == 1:
        yield "add_data: train has one tensor, and a batch needs inputs and a target: pass (x, y), or set_step"
        return

    target = label_tensor(train)
    dtype = short(target.dtype)
    if criterion in FLOAT_TARGETS and not target.is_floating_point():
        name = getattr(criterion, "__name__", criterion)
        count = outputs_of(recipe.model)
        if target.ndim == 1 and target.dtype is not torch.bool and count > 1:
            yield (
                f"set_criterion: {name} compares numbers, and the target is class numbers ({dtype}) for a model with "
                f"{count} outputs: use set_criterion(nn.CrossEntropyLoss)"
            )
        else:
            yield f"set_criterion: {name} compares numbers, and the target is {dtype}: pass y.float()"

    if criterion in CLASS_TARGETS:
        name = getattr(criterion, "__name__", criterion)
        if (target.is_floating_point() and target.ndim == 1) or target.dtype in (torch.bool, torch.int32, torch.int16):
            yield f"set_criterion: {name} takes class numbers, and the target is {dtype}: pass y.long()"
        elif not target.is_floating_point() and target.ndim == 2 and target.shape[1] == 1:
            shape = f"({len(target)}, 1)"
            yield f"set_criterion: {name} takes one class number for each sample, not {shape}: pass y[:, 0]"

    parameters = [] if recipe.model is None else recipe.model.parameters()
    floats = {p.dtype for p in parameters if p.is_floating_point()}
    for i, tensor in enumerate(train.tensors[:-1]):
        if len(floats) == 1 and tensor.is_floating_point() and tensor.dtype not in floats:
            wanted = short(next(iter(floats)))
            yield (
                f"add_data: tensor {i} of train is {short(tensor.dtype)} and the model's weights are {wanted}, "
                f"which torch does not mix: pass x.to(torch.{wanted})"
            )


def _further_split(train: Source | None, other: Source | None, split: str) -> Iterator[str]:
    """Tensors that cannot be batches of the same model: found now rather than after the first epoch."""
    if not isinstance(train, Tensors) or not isinstance(other, Tensors):
        return

    if train.names != other.names:
        wanted, got = (", ".join(s.names) if s.names else "a tuple" for s in (train, other))
        yield f"add_data: {split} is {got}, and train is {wanted}: give both in one form"
    elif len(train.tensors) != len(other.tensors):
        yield f"add_data: {split} has {len(other.tensors)} tensors and train {len(train.tensors)}: give both alike"
    else:
        for i, (one, two) in enumerate(zip(train.tensors, other.tensors, strict=True)):
            if one.ndim == two.ndim == 2 and one.shape[1] != two.shape[1] and one.is_floating_point():
                yield (
                    f"add_data: tensor {i} of {split} has {two.shape[1]} columns, and that of train {one.shape[1]}: "
                    f"give both the same columns"
                )


def outputs_of(model: nn.Module | None) -> int:
    """How many outputs the last linear layer or convolution of a model has; 0 where there is none.

    >>> outputs_of(nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1)))
    3
    """
    modules = [] if model is None else list(model.modules())
    counts = [getattr(module, "out_features", getattr(module, "out_channels", None)) for module in modules]
    return next((count for count in reversed(counts) if isinstance(count, int)), 0)


def short(dtype: torch.dtype) -> str:
    """A dtype as one says it: float32."""
    return str(dtype).removeprefix("torch.")
