"""How numbers, times and the user's own words read in every view."""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

SHORT = 120
"""Characters of a user's message that fit one line of a view."""

MOST_DECIMALS = 7
"""Decimals that a column of numbers gets at most so that a change is seen."""


def number(value: float | None, more: int = 0) -> str:
    """A loss or a metric with at least five digits; an em dash where there is none.

    Args:
        value: what to write.
        more: further decimals.

    >>> number(0.25), number(17_940.4), number(3.2e-7), number(8.4329e10), number(None)
    ('0.2500', '17,940', '3.200e-7', '8.4329e10', '—')
    """
    if value is None:
        return "—"
    size = abs(value)
    if not math.isfinite(value):
        return f"{value}"
    if 0 < size < 1e-3:
        return short_exponent(f"{value:.{3 + more}e}")
    if size >= 1e9:
        return short_exponent(f"{value:.{4 + more}e}")

    decimals = 4
    if size >= 1e3:
        decimals = 2 if size < 1e4 else 0
    return f"{value:,.{decimals + more}f}"


def column(values: Sequence[float | None]) -> list[str]:
    """Numbers that stand below each other: with as many decimals as it takes to tell one row from the next.

    >>> column([0.69314, 0.69312])
    ['0.69314', '0.69312']
    """
    finite = [value for value in values if value is not None and math.isfinite(value)]
    pairs = [pair for pair in pairwise(finite) if pair[0] != pair[1]]
    more = 0
    while more < MOST_DECIMALS - 4 and any(number(one, more) == number(two, more) for one, two in pairs):
        more += 1
    return [number(value, more) for value in values]


def short_exponent(words: str) -> str:
    """
    >>> short_exponent("2e+05"), short_exponent("3.2e-07")
    ('2e5', '3.2e-7')
    """
    return re.sub(r"e\+?(-?)0*(?=\d)", r"e\1", words)


def learning_rate(lr: float) -> str:
    """
    >>> learning_rate(0.001), learning_rate(3e-7), learning_rate(0.000_123_45)
    ('0.001', '3e-7', '0.000123')
    """
    return short_exponent(f"{lr:.3g}")


def clock_time(seconds: float) -> str:
    """Seconds as a clock shows them: mm:ss, from an hour on h:mm:ss.

    >>> clock_time(75.4), clock_time(3671)
    ('01:15', '1:01:11')
    """
    minutes, second = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes:02d}:{second:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


def duration(seconds: float, clock_from: float = 0.95) -> str:
    """As `clock_time`, and below so many seconds with the digits that say something.

    >>> duration(75.4), duration(1.2), duration(0.3), duration(0.017)
    ('01:15', '00:01', '0.3 s', '0.02 s')
    """
    if seconds >= clock_from:
        return clock_time(seconds)
    if seconds >= 0.095:
        return f"{seconds:.1f} s"
    return f"{seconds:.2f} s" if seconds >= 0.005 else f"{seconds:.3f} s"


def rate(steps_per_second: float) -> str:
    """A pace that stays readable when a step takes seconds.

    >>> rate(812.3), rate(3.25), rate(0.2)
    ('812 steps/s', '3.2 steps/s', '5.0 s/step')
    """
    if 0 < steps_per_second < 1:
        return f"{1 / steps_per_second:.1f} s/step"
    return f"{steps_per_second:,.{1 if steps_per_second < 10 else 0}f} steps/s"


def samples_rate(samples_per_second: float) -> str:
    """
    >>> samples_rate(51_234.5), samples_rate(3.25)
    ('51,234 samples/s', '3.2 samples/s')
    """
    return f"{samples_per_second:,.{1 if samples_per_second < 10 else 0}f} samples/s"


def gigabytes(size: int) -> str:
    """
    >>> gigabytes(1_234_567_890), gigabytes(12_345_678)
    ('1.2 GB', '0.01 GB')
    """
    return f"{size / 1e9:.{1 if size >= 1e8 else 2}f} GB"


def short_path(path: str) -> str:
    """A path as one would write it here: from the working folder on where it lies in it."""
    inside = Path(path).is_relative_to(Path.cwd())
    return str(Path(path).relative_to(Path.cwd())) if inside else path


def one_line(text: str, limit: int = SHORT) -> str:
    """The user's words on one line, without control characters, cut with an ellipsis after `limit` characters.

    >>> one_line("CUDA error:  out of\\nmemory"), one_line("abcdef", limit=4)
    ('CUDA error: out of memory', 'abc…')
    """
    words = "".join(c if c.isprintable() else " " for c in text).split()
    line = " ".join(words)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def first_line(message: str) -> str:
    """The first line of a message that says something."""
    return one_line(next((line for line in message.splitlines() if line.strip()), ""))
