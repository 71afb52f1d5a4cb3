"""What the value of a setting may be: the check, the words for a value that fails it, and how text becomes a value.

A `Kind` knows no setting by name. Which setting is of which kind stands in `settings.py`; how a kind becomes an option
of a command line in `cli_options.py`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch


def plain(value: Any) -> Any:
    """Numbers of NumPy and torch as Python's own, so that files and messages hold nothing else."""
    if isinstance(value, tuple | list):
        return type(value)(map(plain, value))
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def is_number(value: object) -> bool:
    """Whether it is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object) -> bool:
    """Whether it is a whole number above 0."""
    return is_whole(value) and value > 0  # type: ignore[operator]


def is_whole(value: object) -> bool:
    """Whether it is an int, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Kind:
    """A kind of values."""

    accepts: Callable[[Any], bool]
    """whether a value is of this kind"""
    problem: str
    """what to say of a value that is not, after "name=value" """
    from_text: Callable[[str], Any] = str
    """reads the value on a command line; raises ValueError where the text is none"""
    metavar: str = "TEXT"
    """what the help shows in the value's place"""
    words: tuple[str, ...] = ()
    """texts that are values, for help and completion"""
    normalize: Callable[[Any], Any] = plain
    """gives a value in the one form that it has from here on"""

    @property
    def is_switch(self) -> bool:
        """Whether its values are True and False, so that an option needs no value."""
        return self.accepts is is_switch

    def fault(self, value: Any) -> str | None:
        """What is wrong with a value, to stand after "name=value"; None for nothing."""
        return None if self.accepts(value) else self.problem


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few values; a near word is proposed for any other."""

    values: Mapping[str, Any] | None = None
    """by the text that means it on a command line"""

    def fault(self, value: Any) -> str | None:
        """What is wrong with a value, with the near one or all that there are."""
        if self.accepts(value):
            return None
        near = get_close_matches(str(value), self.words, n=1)
        if near:
            return f"is not known; did you mean {near[0]!r}?"
        return f"is not known: use one of {', '.join(map(repr, (self.values or {}).values()))}"


def one_of(*values: str | bool) -> Choice:
    """The kind of these values.

    >>> one_of("fp32", "bf16").fault("bf61")
    "is not known; did you mean 'bf16'?"
    """
    by_text = {str(value).lower(): value for value in values}
    return Choice(
        # True is no choice where 1 is one, so types are compared as well
        accepts=lambda value: any(type(value) is type(known) and value == known for known in values),
        problem="is not known",
        from_text=lambda text: by_text.get(text.lower(), text),
        metavar="|".join(by_text),
        words=tuple(by_text),
        values=by_text,
    )


def is_switch(value: object) -> bool:
    """Whether it is True or False."""
    return isinstance(value, bool)


def number_or_word(text: str) -> int | str:
    """A whole number where the text is one, else the text."""
    return int(text) if text.lstrip("+-").isdigit() else text


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value))


def _pair(text: str) -> tuple[float, ...]:
    """Numbers with commas or spaces between them: "0.9, 0.99"."""
    return tuple(float(part) for part in text.replace(",", " ").split())


def _tuple(value: Any) -> Any:
    return tuple(plain(value)) if isinstance(value, list) else plain(value)


def _is_seed(value: Any) -> bool:
    return is_whole(value) and 0 <= value < 2**63


def _is_kept(value: Any) -> bool:
    return is_count(value) or (isinstance(value, str) and re.fullmatch(r"best:[1-9]\d*", value) is not None)


def _device(value: Any) -> Any:
    """A device as torch writes it in text: cuda:1 for torch.device("cuda", 1) and for 1."""
    if isinstance(value, torch.device):
        return str(value)
    value = plain(value)
    return f"cuda:{value}" if is_whole(value) and value >= 0 else value


def _patterns(value: Any) -> Any:
    """Patterns of parameter names, as one text with commas; None where there are none."""
    if isinstance(value, tuple | list) and all(isinstance(part, str) for part in value):
        value = ", ".join(value)
    return None if value == "" else value


COUNT = Kind(is_count, "is not a whole number above 0", int, "N")

COUNT_FROM_ZERO = Kind(lambda value: is_whole(value) and value >= 0, "is not a whole number from 0 up", int, "N")

ABOVE_ZERO = Kind(lambda value: is_number(value) and value > 0, "is not a number above 0", float, "X")

FROM_ZERO = Kind(
    lambda value: is_number(value) and value >= 0,
    "is not a number from 0 up; leave it out for the default",
    float,
    "X",
)

DECAY = Kind(
    lambda value: is_number(value) and 0 < value < 1,
    "is not a decay between 0 and 1, such as 0.999",
    float,
    "X",
)

PAIR = Kind(_is_pair, "are not two numbers such as (0.9, 0.999)", _pair, "X", normalize=_tuple)

SEED = Kind(_is_seed, "is not a whole number from 0 up to 2**63 - 1, which torch takes", int, "N")

SWITCH = Kind(is_switch, "must be True or False")

TEXT = Kind(lambda value: isinstance(value, str), "is not a text such as 'first try'")

FOLDER = Kind(lambda value: isinstance(value, str | Path), "is not a folder: use '.' or 'runs'")

DATE = Kind(
    lambda value: isinstance(value, str) and value.isalnum(),
    "is not a date as in file names: use '20210101'",
)

PATTERNS = Kind(
    lambda value: isinstance(value, str),
    "does not name parameters: use 'encoder' or 'encoder.*, *.bias'",
    normalize=_patterns,
)

DEVICE = Kind(
    lambda value: isinstance(value, str),
    "is not a device: use 'cpu', 'cuda' or 'cuda:1'",
    normalize=_device,
)

COUNT_OR_AUTO = Kind(
    lambda value: value == "auto" or is_count(value),
    "is neither 'auto' nor a whole number above 0",
    number_or_word,
    "N|auto",
    words=("auto",),
)

COUNT_OR_BEST = Kind(
    _is_kept,
    "is neither a whole number above 0 nor as 'best:3'; None keeps all epochs",
    number_or_word,
    "N|best:N",
)
