"""What to train: a frozen record of the parts as PyTorch names them.

The session changes it part by part. What is not here: whether the parts fit together (`validate.py`), where to train
(`launch/placement.py`) and the training (`training/`).
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from quik_nb.errors import RecipeError
from quik_nb.recipe.equality import ByValue
from quik_nb.recipe.samples import Source, Tensors
from quik_nb.recipe.settings import Settings

LABEL_KEYS = ("labels", "label", "target", "targets", "y")
"""Where the target lies in a batch that is a dict, the first that is there."""

MODEL_NAMES = ("model", "module", "net", "network", "model_or_params")
"""What functions that make an optimizer from a model call their first parameter."""

FLOAT_TARGETS = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss)
"""Criteria that compare element by element and take targets of the outputs' shape and dtype."""

AS_CLASS: dict[Any, Callable[..., nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
}
"""Functions whose class is the same thing: what is known of the class then holds for them."""


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
        return keyword in self.parameters

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Of the signature, by name; empty where it cannot be read, as that of a builtin."""
        try:
            return inspect.signature(self.target).parameters
        except (TypeError, ValueError):
            return {}

    def __call__(self, *args: Any, **defaults: Any) -> Any:
        return self.target(*args, **{**defaults, **self.keywords})

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.keywords.items())})"


@dataclass(frozen=True, repr=False, eq=False)
class Optimizer(Spec):
    """An optimizer's class, its keywords, which parameters it trains, and the keywords of groups of them."""

    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """keywords by pattern of the parameters' names, as `fits` reads it"""
    params: str | None = None
    """pattern of the names of the parameters that it trains; None for those that no other optimizer takes"""

    def __repr__(self) -> str:
        extra = "".join(f", {name}: {dict(words)}" for name, words in self.groups.items())
        of = "" if self.params is None else f" of {self.params}"
        return f"{super().__repr__()}{extra}{of}"

    @property
    def takes_model(self) -> bool:
        """Whether it is a function that makes an optimizer from the model rather than from its parameters."""
        if isinstance(self.target, type):
            return False
        first = next(iter(self.parameters.values()), None)
        if first is None:
            return False
        annotated = isinstance(first.annotation, type) and issubclass(first.annotation, nn.Module)
        return annotated or first.name in MODEL_NAMES

    def method_of(self, model: nn.Module | None) -> str | None:
        """The name of the model's method that it is; None where it is none.

        A method of a copy counts as well: it is called on the model that is trained.
        """
        owner = getattr(self.target, "__self__", None)
        return self.name if isinstance(owner, nn.Module) and type(owner) is type(model) else None


def needs_closure(optimizer: object) -> bool:
    """Whether the step of an optimizer, or of its class, needs a function that computes the loss, as that of LBFGS."""
    step = getattr(optimizer, "step", None)
    if step is None:
        return False
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


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
        if self.keywords.get("t_in_epochs") is False:  # timm's word for it
            return True
        return self.target in (OneCycleLR, CyclicLR) or self.takes("num_training_steps")

    @property
    def watches_loss(self) -> bool:
        """Whether its step takes the loss, as `ReduceLROnPlateau` does."""
        return isinstance(self.target, type) and issubclass(self.target, ReduceLROnPlateau)

    def totals(self, epochs: int, steps_per_epoch: int | None, done: int = 0) -> dict[str, int]:
        """The total that this scheduler needs and was not given, as keywords; in steps or epochs as it counts.

        Args:
            epochs: that the schedule spans.
            steps_per_epoch: optimizer steps; None where unknown.
            done: steps of the first of these epochs that are made already.

        Raises:
            RecipeError: it counts steps, and the length of the data is not known.
        """
        if "total_steps" in self.keywords or {"epochs", "steps_per_epoch"} <= set(self.keywords):
            return {}
        name = next((n for n in ("total_steps", "num_training_steps", "T_max", "t_initial") if self.takes(n)), None)
        if name is None or name in self.keywords:
            return {}
        if not self.per_batch:
            return {name: epochs}
        if steps_per_epoch is None:
            raise RecipeError(
                f"set_scheduler: {self.name} counts steps, and this stream does not know its length: "
                f"use set_scheduler({self.name}, {name}=...)."
            )
        return {name: max(1, epochs * steps_per_epoch - done)}


@dataclass(frozen=True, eq=False)
class Recipe(ByValue):
    """Everything about what to train; a part that is None has not been set."""

    settings: Settings = field(default_factory=Settings)
    train: Source | None = None
    valid: Source | None = None
    test: Source | None = None
    model: nn.Module | None = None
    criterion: Spec | nn.Module | None = None
    optimizers: Mapping[str, Optimizer] = field(default_factory=dict)
    """by name, the first of which is the one whose rate is shown; "" for one without a name"""
    schedulers: Mapping[str, Scheduler] = field(default_factory=dict)
    """by the name of their optimizer; "" for all optimizers that have none of their own"""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """by column name: a function of (outputs, targets), a torchmetrics metric, or a name that `monitor.METRICS` has"""
    metrics_on_train: bool = False
    check_metrics: bool = True
    """whether metrics are tried before a training"""
    step: Callable[..., Any] | None = None
    """`step(model, criterion, batch) -> loss` or `(loss, outputs)`; None for the default"""
    step_reduction: str | None = None
    """"mean" or "sum": how the step makes one number of the losses of a batch; None where it was not said"""

    @property
    def optimizer(self) -> Optimizer | None:
        """The first optimizer; None where none was set."""
        return next(iter(self.optimizers.values()), None)

    @property
    def scheduler(self) -> Scheduler | None:
        """That of the first optimizer; None where it has none."""
        return self.scheduler_of(next(iter(self.optimizers), ""))

    def scheduler_of(self, name: str) -> Scheduler | None:
        """The scheduler of an optimizer: its own, else the one that was set for all."""
        return self.schedulers.get(name, self.schedulers.get(""))

    @property
    def ignored_label(self) -> int:
        """The label that the criterion leaves aside; -100, as torch and transformers have it, where it says none."""
        keywords = self.criterion.keywords if isinstance(self.criterion, Spec) else {}
        return int(keywords.get("ignore_index", getattr(self.criterion, "ignore_index", -100)))

    @property
    def yields(self) -> bool:
        """Whether the step of the user's own yields losses, each with the name of the optimizer that steps by it."""
        step = self.step
        while isinstance(step, partial):
            step = step.func
        call = getattr(type(step), "__call__")  # noqa: B004, B009  of an object that is called as a function
        return inspect.isgeneratorfunction(step) or inspect.isgeneratorfunction(call)

    def make_criterion(self) -> Callable[..., Any] | None:
        """The criterion to call on (outputs, target); None where the model returns its own loss."""
        match self.criterion:
            case Spec(target=type()):
                return self.criterion()  # type: ignore[no-any-return]
            case Spec(target=FunctionType() as function, keywords=keywords) if function in AS_CLASS:
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

    def steps_per_epoch(self, world_size: int = 1) -> int | None:
        """Optimizer steps in an epoch of the training split; None where it is not there, or does not know its length.

        Args:
            world_size: ranks, each of which has at least one of the batches that come ready.
        """
        settings = self.settings
        return None if self.train is None else self.train.steps(settings.batch_size, settings.accumulate, world_size)

    @property
    def loss_from_model(self) -> bool:
        """Whether the loss can come without a criterion: dict batches, or a step of the user's own."""
        return self.step is not None or not isinstance(self.train, Tensors) or self.train.names is not None

    def _usual_criterion(self) -> str:
        """The criterion that most would use for the target."""
        has_numbers = isinstance(self.train, Tensors) and label_tensor(self.train).is_floating_point()
        return "MSELoss" if has_numbers else "CrossEntropyLoss"

    def missing_steps(self) -> dict[str, str]:
        """The call that sets each part that is needed and not set, by the part's name."""
        calls = {
            "train": "add_data(train=(x, y), valid=0.2)",
            "model": "add_model(Net())",
            "criterion": f"set_criterion(nn.{self._usual_criterion()})",
            "optimizer": "set_optimizer(optim.AdamW)",
        }
        if self.loss_from_model and self.train is not None:
            del calls["criterion"]
        return {part: call for part, call in calls.items() if getattr(self, part) is None}


def label_tensor(source: Tensors) -> Tensor:
    """The target of samples in memory: the last tensor of a tuple, the label of a dict."""
    names = source.names or ()
    found = next((name for name in LABEL_KEYS if name in names), None)
    return source.tensors[-1 if found is None else names.index(found)]
