"""How numbers, times and the user's own words read in every view."""

import math

SHORT = 120
"""Characters of a user's message that fit one line of a view."""


def number(value: float | None) -> str:
    """A loss or a metric; an em dash where there is none.

    >>> number(0.25), number(3.2e-7), number(float("nan")), number(None)
    ('0.2500', '3.200e-07', 'nan', '—')
    """
    if value is None:
        return "—"
    size = abs(value)
    if value == 0 or 1e-3 <= size < 1e4 or not math.isfinite(value):
        return f"{value:.4f}"
    return f"{value:.3e}"


def duration(seconds: float) -> str:
    """Seconds as mm:ss, from an hour on as h:mm:ss.

    >>> duration(75.4), duration(3671)
    ('01:15', '1:01:11')
    """
    minutes, second = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes:02d}:{second:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


def rate(steps_per_second: float) -> str:
    """A pace that stays readable when a step takes seconds.

    >>> rate(812.3), rate(3.25), rate(0.2)
    ('812 steps/s', '3.2 steps/s', '5.0 s/step')
    """
    if 0 < steps_per_second < 1:
        return f"{1 / steps_per_second:.1f} s/step"
    return f"{steps_per_second:.{1 if steps_per_second < 10 else 0}f} steps/s"


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


def plural(count: int, noun: str) -> str:
    """
    >>> plural(1, "epoch"), plural(3, "epoch")
    ('1 epoch', '3 epochs')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"
