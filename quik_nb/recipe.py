"""What to train: a frozen record of the parts as PyTorch names them, which checks itself before anything starts.

The session changes it part by part; `check()` reports every fault at once. What is not here: where to train
(`placement.py`) and the training (`training/`).
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from quik_nb.errors import RecipeError, suggest
from quik_nb.settings import Settings
from quik_nb.sources import Source, Tensors

LABEL_KEYS = ("labels", "label", "target", "targets", "y")
"""Where the target lies in a batch that is a dict, the first that is there."""

FLOAT_TARGETS = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss)
"""Criteria that compare element by element and take targets of the outputs' shape and dtype."""

AS_CLASS: dict[Any, Callable[..., nn.Module]] = {F.cross_entropy: nn.CrossEntropyLoss, F.nll_loss: nn.NLLLoss}
"""Functions whose class is the same thing: what is known of the class then holds for them."""


def same(one: Any, other: Any) -> bool:
    """Whether two values mean the same, as those of a cell that was run again; tensors and arrays by what they hold.

    >>> same({"weight": torch.ones(2)}, {"weight": torch.ones(2)}), same([1, 2], [1, 3])
    (True, False)
    """
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    equal = one == other  # of which some classes, torchmetrics' for one, make something else than a truth
    return isinstance(equal, bool | np.bool_) and bool(equal)


class ByValue:
    """Records whose fields may hold tensors, which plain dataclasses cannot compare."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and same(vars(self), vars(other))

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Spec(ByValue):
    """A class or function and its keywords, to be called once the other parts are there."""

    target: Callable[..., Any]
    keywords: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return getattr(self.target, "__name__", type(self.target).__name__)

    def takes(self, keyword: str) -> bool:
        """Whether the signature has this keyword by name."""
        return keyword in _parameters(self.target)

    def faults(self, step: str, filled: tuple[str, ...] = ()) -> Iterator[str]:
        """Keywords that the target does not take, and those that it needs and were not given."""
        parameters = _parameters(self.target)
        if not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return
        named = [n for n, p in parameters.items() if p.kind is not p.VAR_POSITIONAL and n != "self"]
        offered = [n for n in named if n not in filled]
        for keyword in self.keywords:
            if keyword not in offered:
                yield f"{step}: {self.name} takes no keyword {keyword!r}: {suggest(keyword, offered)}"

    def __call__(self, *args: Any, **defaults: Any) -> Any:
        return self.target(*args, **{**defaults, **self.keywords})

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.keywords.items())})"


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return {}


@dataclass(frozen=True, repr=False, eq=False)
class Optimizer(Spec):
    """An optimizer's class, its keywords, and those of groups of parameters."""

    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """keywords by pattern of the parameters' names, as `fits` reads it"""

    def __repr__(self) -> str:
        extra = "".join(f", {name}: {dict(words)}" for name, words in self.groups.items())
        return f"{super().__repr__()}{extra}"


def fits(name: str, pattern: str) -> bool:
    """Whether a parameter's name fits one of the patterns, which commas join: "encoder" means all within it.

    >>> fits("encoder.0.weight", "encoder"), fits("head.bias", "encoder, *.bias"), fits("header.bias", "head")
    (True, True, False)
    """
    parts = [part.strip() for part in pattern.split(",")]
    return any(name == part or name.startswith(f"{part}.") or fnmatchcase(name, part) for part in parts)


@dataclass(frozen=True, repr=False, eq=False)
class Scheduler(Spec):
    """A learning-rate scheduler and when it is stepped."""

    per: str | None = None
    """"batch", "epoch", or None for what this scheduler is meant for"""

    @property
    def per_batch(self) -> bool:
        """Whether it is stepped after each optimizer step rather than after each epoch."""
        if self.per is not None:
            return self.per == "batch"
        return self.target in (OneCycleLR, CyclicLR) or self.takes("num_training_steps")

    @property
    def watches_loss(self) -> bool:
        """Whether its step takes the loss, as `ReduceLROnPlateau` does."""
        return isinstance(self.target, type) and issubclass(self.target, ReduceLROnPlateau)

    def totals(self, epochs: int, steps_per_epoch: int | None) -> dict[str, int]:
        """The total that this scheduler needs and was not given, as keywords; in steps or epochs as it counts.

        Raises:
            RecipeError: it counts steps, and the length of the data is not known.
        """
        if "total_steps" in self.keywords or {"epochs", "steps_per_epoch"} <= set(self.keywords):
            return {}
        name = next((n for n in ("total_steps", "num_training_steps", "T_max") if self.takes(n)), None)
        if name is None or name in self.keywords:
            return {}
        if not self.per_batch:
            return {name: epochs}
        if steps_per_epoch is None:
            raise RecipeError(
                f"set_scheduler: {self.name} counts steps, and this stream does not know its length: "
                f"type set_scheduler({self.name}, {name}=...)."
            )
        return {name: epochs * steps_per_epoch}


@dataclass(frozen=True, eq=False)
class Recipe(ByValue):
    """Everything about what to train; a part that is None has not been set."""

    settings: Settings = field(default_factory=Settings)
    train: Source | None = None
    valid: Source | None = None
    test: Source | None = None
    model: nn.Module | None = None
    criterion: Spec | nn.Module | None = None
    optimizer: Optimizer | None = None
    scheduler: Scheduler | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """by column name: a function of (outputs, targets) or a torchmetrics metric"""
    metrics_on_train: bool = False
    step: Callable[..., Any] | None = None
    """`step(model, criterion, batch) -> loss` or `(loss, outputs)`; None for the default"""

    def make_criterion(self) -> Callable[..., Any] | None:
        """The criterion to call on (outputs, target); None where the model returns its own loss."""
        match self.criterion:
            case Spec(target=type()):
                return self.criterion()  # type: ignore[no-any-return]
            case Spec(target=function, keywords=keywords) if function in AS_CLASS:
                return AS_CLASS[function](**keywords)
            case Spec(target=function, keywords=keywords):
                return lambda outputs, target: function(outputs, target, **keywords)
            case criterion:
                return criterion

    @property
    def reduction(self) -> str:
        """How the criterion makes one number of the losses of a batch: "mean" where it does not say."""
        keywords = self.criterion.keywords if isinstance(self.criterion, Spec) else {}
        return str(keywords.get("reduction", getattr(self.criterion, "reduction", "mean")))

    @property
    def gives_loss(self) -> bool:
        """Whether the loss can come without a criterion: dict batches, or a step of the user's own."""
        return self.step is not None or not isinstance(self.train, Tensors) or self.train.names is not None

    def missing(self) -> dict[str, str]:
        """What to type for each part that is needed and not set, by the part's name."""
        calls = {
            "train": "add_data(train=(x, y), valid=0.2)",
            "model": "add_model(Net())",
            "criterion": "set_criterion(nn.CrossEntropyLoss)",
            "optimizer": "set_optimizer(optim.AdamW)",
        }
        if self.gives_loss and self.train is not None:
            del calls["criterion"]
        return {part: call for part, call in calls.items() if getattr(self, part) is None}

    def faults(self) -> Iterator[str]:
        """One sentence for each thing that does not fit."""
        yield from self.settings.faults()
        if self.optimizer is not None:
            yield from self.optimizer.faults("set_optimizer", filled=("params",))
        if isinstance(self.criterion, Spec) and isinstance(self.criterion.target, type):
            yield from self.criterion.faults("set_criterion")
        if self.scheduler is not None:
            yield from self.scheduler.faults("set_scheduler", filled=("optimizer",))
        if self.model is not None:
            yield from self._name_faults(self.model)
        if self.step is None and isinstance(self.train, Tensors):
            yield from self._dtype_faults(self.train)

    def _name_faults(self, model: nn.Module) -> Iterator[str]:
        """Patterns of parameter names that fit none, and a model of which nothing is left to train."""
        names = [name for name, _ in model.named_parameters()]
        patterns = {f"set_optimizer(groups={{{p!r}: ...}})": p for p in getattr(self.optimizer, "groups", {})}
        if self.settings.freeze is not None:
            patterns[f"freeze={self.settings.freeze!r}"] = self.settings.freeze
        for where, pattern in patterns.items():
            if not any(fits(name, pattern) for name in names):
                parents = {name.rsplit(".", 1)[0] for name in names}
                yield f"{where} fits no parameter of {type(model).__name__}: {suggest(pattern, parents)}"
        frozen = self.settings.freeze
        if not any(p.requires_grad and not (frozen and fits(n, frozen)) for n, p in model.named_parameters()):
            yield "add_model: the model has no parameter that can be trained (requires_grad)"

    def _dtype_faults(self, train: Tensors) -> Iterator[str]:
        criterion = self.criterion.target if isinstance(self.criterion, Spec) else type(self.criterion)
        if train.names is None and len(train.tensors) == 1:
            yield "add_data: train has one tensor, and a batch needs inputs and a target: pass (x, y), or set_step"
            return
        target = label_tensor(train)
        if criterion in FLOAT_TARGETS and not target.is_floating_point():
            name = getattr(criterion, "__name__", criterion)
            yield f"set_criterion: {name} compares numbers, and the target is {_short(target.dtype)}: pass y.float()"
        if criterion is nn.CrossEntropyLoss and target.is_floating_point() and target.ndim == 1:
            dtype = _short(target.dtype)
            yield f"set_criterion: CrossEntropyLoss takes class numbers, and the target is {dtype}: pass y.long()"
        floats = {p.dtype for p in self.model.parameters() if p.is_floating_point()} if self.model else set()
        for i, tensor in enumerate(train.tensors[:-1]):
            if len(floats) == 1 and tensor.is_floating_point() and tensor.dtype not in floats:
                dtype = _short(next(iter(floats)))
                yield (
                    f"add_data: tensor {i} of train is {_short(tensor.dtype)} and the model's weights are {dtype}, "
                    f"which torch does not mix: pass x.to(torch.{dtype})"
                )

    def check(self) -> None:
        """Raise a RecipeError that names everything that is missing or does not fit, if anything does."""
        missing, faults = self.missing(), list(self.faults())
        parts = []
        if missing:
            parts.append(
                "This session cannot train yet; still to type:\n" + "\n".join(f"    .{m}" for m in missing.values())
            )
        if faults:
            parts.append("These do not fit:\n" + "\n".join(f"    {fault}" for fault in faults))
        if parts:
            raise RecipeError("\n".join(parts))


def label_tensor(source: Tensors) -> Tensor:
    """The target of samples in memory: the last tensor of a tuple, the label of a dict."""
    names = source.names or ()
    found = next((name for name in LABEL_KEYS if name in names), None)
    return source.tensors[-1 if found is None else names.index(found)]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
