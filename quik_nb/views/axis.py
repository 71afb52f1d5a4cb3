"""Values to positions along one axis, and the round numbers to write beside it."""

import math
from dataclasses import dataclass

from quik_nb.views.format import short_exponent


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps `low..high` of the data onto `start..end` of the picture (pixels); `end` may be the smaller one."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The position of a value, in pixels."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5, whole: bool = False) -> list[float]:
        """Some `count` round numbers within the axis; `whole` keeps to whole numbers."""
        if self.log:
            return log_ticks(self.low, self.high, count)
        step = round_step((self.high - self.low) / count)
        if whole:
            step = max(1.0, step)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        if first >= last and not whole:
            return self.ticks(count + 1)  # one number alone says nothing of the scale
        return [i * step for i in range(first, last + 1)]


def around(values: list[float], start: float, end: float, log: bool = False) -> Axis:
    """An axis that holds all values with a little air above and below."""
    low, high = min(values), max(values)
    if log:
        air = max(1.05, (high / low) ** 0.06)
        return Axis(low / air, high * air, start, end, log=True)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - air, high + air, start, end)


def round_step(rough: float) -> float:
    """The nearest step of 1, 2 or 5 times a power of ten that is not below `rough`.

    >>> round_step(0.13), round_step(31)
    (0.2, 50.0)
    """
    # a Python power of a negative integer is rounded twice: 5 / 10**3 stays 0.005, 5 * 10**-3 need not
    power = math.floor(math.log10(rough))
    for lead in (1, 2, 5, 10):
        step = lead * 10.0**power if power >= 0 else lead / 10.0**-power
        if step >= rough * (1 - 1e-9):
            return step
    return rough


def log_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers for a logarithmic axis: powers of ten, with 2 and 5 between where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    stride = max(1, round(len(powers) / count))
    for leads, every in (((1,), stride), ((1, 2, 5), 1)):
        ticks = [float(f"{lead}e{power}") for power in powers if power % every == 0 for lead in leads]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return ticks
    return Axis(low, high, 0, 1).ticks(count)  # less than a decade: evenly spaced numbers say more


def tick_words(ticks: list[float], log: bool = False) -> list[str]:
    """The ticks in words; those of a linear axis all have the same number of digits.

    >>> tick_words([0.0, 0.2, 0.4]), tick_words([0.01, 0.1, 1.0], log=True), tick_words([2e-7, 4e-7])
    (['0.0', '0.2', '0.4'], ['0.01', '0.1', '1'], ['2e-7', '4e-7'])
    >>> tick_words([16_000.0, 18_000.0])
    ['16,000', '18,000']
    """
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if log or len(ticks) < 2 or largest >= 1e6 or largest < 1e-3:
        return [_tick_word(tick) for tick in ticks]
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return [f"{tick:,.{digits}f}" for tick in ticks]


def _tick_word(tick: float) -> str:
    whole = abs(tick) >= 1e3 and abs(tick) < 1e6
    return f"{tick:,.0f}" if whole else short_exponent(f"{tick:.4g}")
