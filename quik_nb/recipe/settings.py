"""The keyword settings of a session: their defaults, their units, and what is wrong with a value.

All settings that code, the magic and the command line take are the fields of `Settings`, and nowhere else.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from quik_nb.errors import RecipeError, suggest

PRECISIONS = ("fp32", "bf16", "fp16", "auto")
START_METHODS = ("forkserver", "fork", "spawn")
VIEWS = ("auto", "widget", "text", False)

OPTIMIZER_DEFAULTS = ("lr", "weight_decay", "betas", "eps")
"""Settings that are keywords of any optimizer which takes them."""

ELSEWHERE = {
    "learning_rate": "type lr=1e-3",
    "max_epochs": "type epochs=5",
    "num_epochs": "type epochs=5",
    "gpus": "type processes=4",
    "num_processes": "type processes=4",
    "amp": "type precision='bf16'",
    "fp16": "type precision='fp16'",
    "bf16": "type precision='bf16'",
    "momentum": "it is a keyword of the step, set_optimizer(optim.SGD, momentum=0.9)",
    "optimizer": "it is a step, .set_optimizer(optim.AdamW)",
    "scheduler": "it is a step, .set_scheduler(...)",
    "model": "it is a step, .add_model(Net())",
    "num_workers": "pass a DataLoader(dataset, num_workers=2) to add_data",
    "shuffle": "training data is shuffled; pass a DataLoader(dataset, shuffle=False) to add_data for another order",
}
"""What others call a setting, or where it is set here."""

NONE = type(None)
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "save": ((bool,), "is a switch: type save=True or save=False"),
    "compile": ((bool,), "is a switch: type compile=True or compile=False"),
    "find_unused_parameters": ((bool,), "is a switch: type True or False"),
    "sync_batchnorm": ((bool,), "is a switch: type True or False"),
    "name": ((str,), "is not a text such as 'first try'"),
    "base_dir": ((str, Path), "is not a folder: type it as '.' or 'runs'"),
    "freeze": ((str, NONE), "does not name parameters: type it as 'encoder' or 'encoder.*, *.bias'"),
    "device": ((str, NONE), "is not a device: type it as 'cpu', 'cuda' or 'cuda:1'"),
}
"""What the values of some settings are, and what to say of others."""


def _setting(default: Any, doc: str) -> Any:
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything about a training that is one value; `None` leaves a choice to torch or to quik_nb."""

    epochs: int = _setting(5, "passes over the training split in one call of train()")
    batch_size: int = _setting(64, "samples per optimizer step over all ranks")
    lr: float = _setting(1e-3, "learning rate handed to the optimizer")
    weight_decay: float | None = _setting(None, "handed to the optimizer; None for the optimizer's own default")
    betas: tuple[float, float] | None = _setting(None, "handed to the optimizer; None for the optimizer's own default")
    eps: float | None = _setting(None, "handed to the optimizer; None for the optimizer's own default")
    seed: int = _setting(42, "of shuffling, splits, dropout and a model that is made by a function")
    precision: str = _setting("fp32", "fp32, bf16, fp16 or auto (bf16 where the GPU has it, else fp32)")
    processes: int | str = _setting("auto", "ranks of DistributedDataParallel; auto: one per GPU if there are several")
    device: str | None = _setting(None, "cpu, cuda, cuda:1, mps; None for the best there is")
    clip_norm: float | None = _setting(None, "largest norm of all gradients together")
    clip_value: float | None = _setting(None, "largest absolute value of a gradient's element")
    accumulate: int = _setting(1, "micro-batches per optimizer step: the same numbers with less memory")
    name: str = _setting("", "a name for the run, shown in the view and in the run folder's name")
    data_date: str | None = _setting(None, "the date in file names, such as 20210101; None for today")
    base_dir: str | Path = _setting(".", "the folder in which data/ lies")  # noqa: RUF009  a field, not a call
    view: str | bool = _setting("auto", "auto, widget, text or False")
    save: bool = _setting(True, "save the weights at each epoch's end")
    keep: int | str | None = _setting(None, "files that stay: 3 (newest, and the best), best:3, or None for all")
    checkpoint_minutes: float | None = _setting(10.0, "minutes between checkpoints within an epoch; None for none")
    patience: int | None = _setting(None, "epochs without a better loss after which training ends; None for never")
    min_delta: float = _setting(0.0, "by how much a loss must fall to count as better for patience")
    ema: float | None = _setting(None, "decay per step of averaged weights, which are then validated and saved")
    freeze: str | None = _setting(None, "names of parameters that are not trained: 'encoder' or 'encoder.*, *.bias'")
    compile: bool = _setting(False, "run the model through torch.compile")
    start_method: str = _setting("forkserver", "how workers start: forkserver, fork or spawn")
    timeout: float = _setting(1800.0, "seconds without a sign of life after which hanging workers are ended")
    find_unused_parameters: bool = _setting(False, "DDP: allow parameters that take no part in the loss")
    sync_batchnorm: bool = _setting(False, "DDP: batch statistics over all ranks")
    output: str = _setting("logger", "whose prints are shown: logger (rank 0) or all")

    def faults(self) -> Iterator[str]:
        """One sentence for each value that cannot be used."""
        for name in ("epochs", "batch_size", "accumulate"):
            if not _is_count(getattr(self, name)):
                yield f"{name}={getattr(self, name)!r} is not a whole number above 0"
        for name in ("lr", "timeout", "clip_norm", "clip_value"):
            value = getattr(self, name)
            if (value is not None or name in ("lr", "timeout")) and (not is_number(value) or value <= 0):
                yield f"{name}={value!r} is not a number above 0"
        for name in ("weight_decay", "eps", "min_delta", "checkpoint_minutes"):
            value = getattr(self, name)
            if (value is not None or name == "min_delta") and (not is_number(value) or value < 0):
                yield f"{name}={value!r} is not a number from 0 up; leave it out for the default"
        for name, (kinds, advice) in KINDS.items():
            if not isinstance(getattr(self, name), kinds):
                yield f"{name}={getattr(self, name)!r} {advice}"
        yield from self._other_faults()
        yield from self._choice_faults()

    def _other_faults(self) -> Iterator[str]:
        if self.betas is not None and not (
            isinstance(self.betas, tuple | list) and len(self.betas) == 2 and all(is_number(b) for b in self.betas)
        ):
            yield f"betas={self.betas!r} are not two numbers such as (0.9, 0.999)"
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**63:
            yield f"seed={self.seed!r} is not a whole number from 0 up to 2**63 - 1, which torch takes"
        if self.keep is not None and not _is_count(self.keep) and not re.fullmatch(r"best:[1-9]\d*", str(self.keep)):
            yield f"keep={self.keep!r} is neither a whole number above 0 nor as 'best:3'; None keeps all epochs"
        if self.patience is not None and not _is_count(self.patience):
            yield f"patience={self.patience!r} is not a whole number above 0"
        if self.ema is not None and not (is_number(self.ema) and 0 < self.ema < 1):
            yield f"ema={self.ema!r} is not a decay between 0 and 1, such as 0.999"
        if self.processes != "auto" and not _is_count(self.processes):
            yield f"processes={self.processes!r} is neither 'auto' nor a whole number above 0"

    def _choice_faults(self) -> Iterator[str]:
        choices: dict[str, tuple[Any, ...]] = {
            "precision": PRECISIONS,
            "start_method": START_METHODS,
            "view": VIEWS,
            "output": ("logger", "all"),
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                near = get_close_matches(str(value), [str(k) for k in known], n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f": type one of {', '.join(map(repr, known))}"
                yield f"{name}={value!r} is not known{hint}"
        if self.data_date is not None and not (isinstance(self.data_date, str) and self.data_date.isalnum()):
            yield f"data_date={self.data_date!r} is not a date as in file names: type it as '20210101'"

    def changed(self, changes: Mapping[str, Any]) -> "Settings":
        """These settings with some changed.

        Raises:
            RecipeError: a name is unknown or a value cannot be used; all faults are in the one message.

        >>> Settings().changed({"epochs": 3}).epochs
        3
        """
        known = setting_names()
        unknown = [name for name in changes if name not in known]
        new = replace(self, **{k: _read(k, v) for k, v in changes.items() if k in known})
        faults = [f"there is no setting {name!r}: {ELSEWHERE.get(name) or suggest(name, known)}" for name in unknown]
        faults += new.faults()
        if faults:
            raise RecipeError("; ".join(faults))
        return new

    @property
    def date(self) -> str:
        """The date in file names: `data_date`, or today."""
        return self.data_date or date.today().strftime("%Y%m%d")

    def optimizer_defaults(self) -> dict[str, Any]:
        """The keywords that any optimizer gets which takes them."""
        return {name: getattr(self, name) for name in OPTIMIZER_DEFAULTS if getattr(self, name) is not None}


def setting_names() -> list[str]:
    """The names of all settings, in the order of their definition."""
    return [f.name for f in fields(Settings)]


def _read(name: str, value: Any) -> Any:
    """A value as it may be typed, as the one form that it has from here on."""
    if name == "device" and isinstance(value, torch.device):
        return str(value)
    if name == "device" and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return f"cuda:{value}"
    if name == "freeze" and isinstance(value, tuple | list) and all(isinstance(part, str) for part in value):
        return ", ".join(value) or None
    if name == "freeze" and value == "":
        return None
    return plain(value)


def plain(value: Any) -> Any:
    """Numbers of NumPy and torch as Python's own, so that files and messages hold nothing else."""
    if isinstance(value, tuple | list):
        return type(value)(map(plain, value))
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: object) -> bool:
    """Whether it is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
