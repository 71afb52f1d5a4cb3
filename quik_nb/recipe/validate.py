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
from quik_nb.recipe.data import Source, Tensors
from quik_nb.recipe.kinds import is_number
from quik_nb.recipe.recipe import FLOAT_TARGETS, Recipe, Spec, fits, label_tensor

CLASS_TARGETS = (nn.CrossEntropyLoss, nn.NLLLoss)
"""Criteria that take class numbers."""


def check(recipe: Recipe, own_loop: bool = False) -> None:
    """Raise a RecipeError that names everything that is missing or does not fit, if anything does.

    Args:
        recipe: what is to be trained.
        own_loop: whether a loop of the user's own trains it, which may do what ours does not.
    """
    missing = recipe.missing_steps()
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
    yield from _optimizer(recipe, own_loop)
    yield from _criterion(recipe)
    yield from _scheduler(recipe)
    if recipe.model is not None:
        yield from _model(recipe, recipe.model)
        yield from _names(recipe, recipe.model)
    if recipe.step is None and isinstance(recipe.train, Tensors):
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


def _optimizer(recipe: Recipe, own_loop: bool) -> Iterator[str]:
    spec = recipe.optimizer
    if spec is None:
        return
    first = list(spec.parameters)[:1]  # the model's parameters, whatever it calls them
    yield from _keywords("set_optimizer", spec, first, list(recipe.settings.optimizer_defaults()))
    for pattern, keywords in spec.groups.items():
        group = Spec(spec.target, {**spec.keywords, **keywords})
        where = f"set_optimizer(groups={{{pattern!r}: ...}})"
        yield from _keywords(where, group, first, list(spec.parameters))
        if not (is_number(lr := keywords.get("lr", 0.0)) and lr >= 0):
            yield f"{where}: lr={lr!r} is not a number from 0 up"

    if not own_loop and _needs_closure(spec):
        yield (
            f"set_optimizer: {spec.name} computes the loss again and again within a step, by a closure that train() "
            f"does not give: use another optimizer, or write that loop yourself and run it by session.traverse(loop)"
        )


def _needs_closure(spec: Spec) -> bool:
    """Whether the optimizer's step cannot be called without a function that computes the loss, as that of LBFGS."""
    step = getattr(spec.target, "step", None)
    if step is None:
        return False
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _criterion(recipe: Recipe) -> Iterator[str]:
    if isinstance(spec := recipe.criterion, Spec):
        compared = [] if isinstance(spec.target, type) else list(spec.parameters)[:2]  # outputs and target
        yield from _keywords("set_criterion", spec, compared)


def _scheduler(recipe: Recipe) -> Iterator[str]:
    spec = recipe.scheduler
    if spec is None:
        return
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
    groups = getattr(recipe.optimizer, "groups", {})
    patterns = [(f"set_optimizer(groups={{{p!r}: ...}})", p) for p in groups]
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


def short(dtype: torch.dtype) -> str:
    """A dtype as one says it: float32."""
    return str(dtype).removeprefix("torch.")
