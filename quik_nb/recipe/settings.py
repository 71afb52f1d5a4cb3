"""The settings of a session, each described once: default, unit, check, scope, and the names that others give it.

`Settings` holds the values. What is known of a setting stands in its `Setting`, and everything else reads that:
options and their help (`cli_options.py`), the summary, the table of runs, docstrings. What a value of a kind may be
is in `kinds.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

from quik_nb.errors import RecipeError, suggest
from quik_nb.recipe.kinds import (
    ABOVE_ZERO,
    COUNT,
    COUNT_FROM_ZERO,
    COUNT_OR_AUTO,
    COUNT_OR_BEST,
    DATE,
    DECAY,
    DEVICE,
    FOLDER,
    FROM_ZERO,
    PAIR,
    PATTERNS,
    SEED,
    SWITCH,
    TEXT,
    Kind,
    one_of,
)
from quik_nb.recipe.other_names import NOT_SETTINGS, TRANSLATIONS

Scope = Literal["numbers", "where", "output"]
"""What a setting changes: what is learned; where and how fast; only the view, the files and the messages."""


@dataclass(frozen=True)
class Setting:
    """What is known of one setting."""

    default: Any
    doc: str
    kind: Kind
    scope: Scope
    optional: bool = False
    """whether None is a value as well"""
    optimizer_keyword: bool = False
    """whether every optimizer gets it that takes it"""
    changes_batches: bool = False
    """whether another value makes other batches, so that an unfinished epoch cannot go on"""
    in_summary: Literal["always", "if changed", "on another line"] = "if changed"
    also_called: tuple[str, ...] = ()
    """names elsewhere for the same value"""
    short_option: str = ""
    """of a command line, beside the option of its name"""

    def fault(self, value: Any) -> str | None:
        """What is wrong with a value, to stand after "name=value"; None for nothing."""
        return None if value is None and self.optional else self.kind.fault(value)

    def line(self, name: str) -> str:
        """The setting as a line of a docstring."""
        return f"{name}: {self.doc} (default: {self.default!r})"


def _setting(default: Any, doc: str, kind: Kind, scope: Scope = "numbers", **more: Any) -> Any:
    """A field of Settings with its description; None as the default makes it optional."""
    more.setdefault("optional", default is None)
    return field(default=default, metadata={"setting": Setting(default, doc, kind, scope, **more)})


def _of_optimizer(default: float | None, kind: Kind, what: str, **more: Any) -> Any:
    """A setting that every optimizer gets which takes it; None leaves the optimizer its own default."""
    doc = f"{what} that the optimizer gets" + ("; None for the optimizer's own" if default is None else "")
    return _setting(default, doc, kind, optimizer_keyword=True, in_summary="on another line", **more)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything about a training that is one value; `None` leaves a choice to torch or to quik_nb."""

    epochs: int = _setting(
        5,
        "passes over the training split in one call of train()",
        COUNT,
        in_summary="always",
        also_called=("max_epochs", "num_epochs"),
        short_option="-e",
    )
    batch_size: int = _setting(
        64,
        "samples per optimizer step over all ranks; a DataLoader of one's own has its own",
        COUNT,
        changes_batches=True,
        in_summary="on another line",
        also_called=("bs",),
        short_option="-bs",
    )
    lr: float = _of_optimizer(
        1e-3,
        ABOVE_ZERO,
        "learning rate",
        also_called=("learning_rate",),
        short_option="-lr",
    )
    weight_decay: float | None = _of_optimizer(None, FROM_ZERO, "weight decay", short_option="-wd")
    betas: tuple[float, float] | None = _of_optimizer(None, PAIR, "betas")
    eps: float | None = _of_optimizer(None, FROM_ZERO, "eps", short_option="-eps")
    seed: int = _setting(
        42,
        "seed of shuffling, splits, dropout, and of a model that a function makes",
        SEED,
        changes_batches=True,
        in_summary="always",
    )
    precision: str = _setting(
        "fp32",
        "fp32, bf16, fp16 or auto (bf16 where the GPU has it, else fp32)",
        one_of("fp32", "bf16", "fp16", "auto"),
        in_summary="always",
    )
    processes: int | str = _setting(
        "auto",
        "ranks of DistributedDataParallel; auto: one per GPU if there are several",
        COUNT_OR_AUTO,
        "where",
        also_called=("num_processes",),
    )
    device: str | None = _setting(None, "cpu, cuda, cuda:1, mps; None for the best there is", DEVICE, "where")
    clip_norm: float | None = _setting(None, "largest norm of all gradients together", ABOVE_ZERO)
    clip_value: float | None = _setting(None, "largest absolute value of a gradient's element", ABOVE_ZERO)
    accumulate: int = _setting(
        1, "micro-batches per optimizer step: parts of batch_size, or so many batches of a DataLoader", COUNT
    )
    num_workers: int = _setting(
        0,
        "processes that load the samples of a dataset; a DataLoader of one's own keeps its own",
        COUNT_FROM_ZERO,
        "where",
        also_called=("workers",),
        short_option="-nw",
    )
    name: str = _setting("", "a name for the run, shown in the view and in the run folder's name", TEXT, "output")
    data_date: str | None = _setting(None, "date in file names, such as 20210101; None for today", DATE, "output")
    base_dir: str | Path = _setting(".", "folder in which data/ lies", FOLDER, "output")  # noqa: RUF009  a field
    view: str | bool = _setting(
        "auto",
        "auto, widget, text or False",
        one_of("auto", "widget", "text", False),
        "output",
    )
    save: bool = _setting(True, "save the weights at each epoch's end", SWITCH, "output")
    keep: int | str | None = _setting(
        None,
        "files that stay: 3 (newest, and the best), best:3, or None for all",
        COUNT_OR_BEST,
        "output",
    )
    checkpoint_minutes: float | None = _setting(
        10.0,
        "minutes between checkpoints within an epoch; None for none",
        FROM_ZERO,
        "output",
        optional=True,
    )
    monitor: str | None = _setting(
        None,
        "the column that makes an epoch the best, such as accuracy; None for valid_loss, else train_loss",
        TEXT,
    )
    monitor_mode: str | None = _setting(
        None,
        "whether what is monitored gets better as it falls (min) or rises (max); None for what its name tells",
        one_of("min", "max"),
    )
    patience: int | None = _setting(
        None,
        "early stopping: epochs without a better one, by the monitor, after which training ends; None for never",
        COUNT,
    )
    min_delta: float = _setting(0.0, "by how much an epoch must be better to count for patience", FROM_ZERO)
    ema: float | None = _setting(
        None,
        "decay per step of averaged weights, which are then validated and saved",
        DECAY,
    )
    freeze: str | None = _setting(
        None,
        "names of parameters that are not trained: 'encoder' or 'encoder.*, *.bias'",
        PATTERNS,
    )
    eval_modules: str | None = _setting(
        None,
        "names of parts of the model that stay in evaluation mode while it trains: 'encoder' or 'encoder.*, *.norm'",
        PATTERNS,
    )
    compile: bool = _setting(False, "run the model through torch.compile", SWITCH, "where")
    start_method: str = _setting(
        "forkserver",
        "how workers start: forkserver, fork or spawn",
        one_of("forkserver", "fork", "spawn"),
        "where",
    )
    timeout: float = _setting(
        1800.0,
        "seconds without a heartbeat after which hanging workers are ended",
        ABOVE_ZERO,
        "where",
    )
    find_unused_parameters: bool = _setting(
        False,
        "DDP: allow parameters that take no part in the loss",
        SWITCH,
        "where",
    )
    sync_batchnorm: bool = _setting(False, "DDP: batch statistics over all ranks", SWITCH)
    output: str = _setting(
        "logger",
        "whose prints are shown: logger (rank 0) or all",
        one_of("logger", "all"),
        "output",
    )

    def faults(self) -> list[str]:
        """One sentence for each value that cannot be used."""
        checked = ((name, value, SETTINGS[name].fault(value)) for name, value in vars(self).items())
        return [f"{name}={value!r} {fault}" for name, value, fault in checked if fault]

    def changed(self, changes: Mapping[str, Any]) -> "Settings":
        """These settings with some changed.

        Raises:
            RecipeError: a name is unknown or a value cannot be used; all faults are in the one message.

        >>> Settings().changed({"epochs": 3}).epochs
        3
        """
        known = {name: SETTINGS[name].kind.normalize(value) for name, value in changes.items() if name in SETTINGS}
        new = replace(self, **known)

        unknown = [_unknown(name, value) for name, value in changes.items() if name not in SETTINGS]
        if faults := unknown + new.faults():
            raise RecipeError("; ".join(faults))
        return new

    @property
    def date(self) -> str:
        """The date in file names: `data_date`, or today."""
        return self.data_date or date.today().strftime("%Y%m%d")

    def optimizer_defaults(self) -> dict[str, Any]:
        """The keywords that any optimizer gets which takes them."""
        return {name: getattr(self, name) for name in OPTIMIZER_DEFAULTS if getattr(self, name) is not None}

    def same_batches(self, other: "Settings") -> bool:
        """Whether both cut the same samples into the same batches, so that an unfinished epoch can go on."""
        names = [name for name, setting in SETTINGS.items() if setting.changes_batches]
        return all(getattr(self, name) == getattr(other, name) for name in names)


def _described() -> dict[str, Setting]:
    found: dict[str, Setting] = {f.name: f.metadata["setting"] for f in fields(Settings)}
    return found


SETTINGS: Mapping[str, Setting] = _described()
"""What is known of each setting, by name, in the order of their definition."""

OPTIMIZER_DEFAULTS = tuple(name for name, setting in SETTINGS.items() if setting.optimizer_keyword)
"""Settings that are keywords of any optimizer which takes them."""


def setting_names() -> list[str]:
    """The names of all settings, in the order of their definition."""
    return list(SETTINGS)


def settings_doc() -> str:
    """All settings as a section of a docstring, for what Shift-Tab shows of Settings and of a session."""
    lines = "\n".join(f"        {setting.line(name)}" for name, setting in SETTINGS.items())
    return f"    Settings:\n{lines}\n"


def translated(name: str, value: Any) -> dict[str, Any]:
    """What a name that others use means as settings; empty where it means none.

    >>> translated("learning_rate", 0.1), translated("gpus", "none"), translated("depth", 3)
    ({'lr': 0.1}, {'processes': 1, 'device': 'cpu'}, {})
    """
    if name in TRANSLATIONS:
        return TRANSLATIONS[name](value)
    return {known: value for known, setting in SETTINGS.items() if name in setting.also_called}


def _unknown(name: str, value: Any) -> str:
    """A sentence about a name that is no setting, with what is meant by it here."""
    meant = ", ".join(f"{known}={v!r}" for known, v in translated(name, value).items())
    if meant:
        return f"there is no setting {name!r}: use {meant}"
    return f"there is no setting {name!r}: {NOT_SETTINGS.get(name) or suggest(name, SETTINGS)}"


Settings.__doc__ = f"{Settings.__doc__}\n\n{settings_doc()}"
