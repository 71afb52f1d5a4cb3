"""Medians and ratios of times that were taken in turn, so that a machine's moods meet every contestant alike."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Seconds(NamedTuple):
    """What one training took."""

    wall: float
    cpu: float
    """of the processor in this process: it says the same on a busy machine, where wall does not"""


Timed = Callable[[int], Seconds]
"""Trains once, for the round of this number."""


def in_turn(
    reference: Timed, others: Mapping[str, Timed], rounds: int
) -> tuple[list[Seconds], dict[str, list[Seconds]]]:
    """Run reference, A, reference, B, reference, ... for some rounds after one that is not counted.

    Returns:
        The seconds of the reference, and for each other its ratios to the mean of the two references beside it.
    """
    reference(0)
    for other in others.values():
        other(0)
    seconds: list[Seconds] = []
    ratios: dict[str, list[Seconds]] = {name: [] for name in others}
    for number in range(rounds):
        before = reference(number)
        seconds.append(before)
        for name, other in others.items():
            taken = other(number)
            after = reference(number)
            seconds.append(after)
            ratios[name].append(
                Seconds(2 * taken.wall / (before.wall + after.wall), 2 * taken.cpu / (before.cpu + after.cpu))
            )
            before = after
    return seconds, ratios


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and in brackets the least and the greatest.

    >>> spread([0.7, 0.9, 0.8])
    '0.80 [0.70-0.90]'
    """
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} [{least:.{digits}f}-{most:.{digits}f}]"


def both(values: Sequence[Seconds], digits: int = 2) -> str:
    """Wall and processor time."""
    wall, cpu = zip(*values, strict=True)
    return f"{spread(wall, digits)} (cpu {spread(cpu, digits)})"
