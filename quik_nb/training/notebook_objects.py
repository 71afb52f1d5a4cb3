"""What a step, loop or callback reads of its notebook: lists, dicts and counters that a worker has a copy of.

A worker trains with copies of everything. What a step appends to a list there never comes back, and what a callback
resets in the notebook is not seen there: both look as if they worked. Here it is noticed, so that it can be told.
"""

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

MUTABLE = (list, dict, set, bytearray)
"""Containers that are looked at, with their subclasses: Counter, defaultdict, OrderedDict among them."""

LARGEST = 10_000
"""Elements beyond which only the length of a container is compared."""


def objects_of(*functions: Callable[..., Any] | None) -> dict[str, Any]:
    """The containers and numbers that these functions read from around them, by name.

    Functions that they call by name are looked into, where they are of the user's notebook or script.

    >>> seen = []
    >>> objects_of(lambda: seen.append(1))
    {'seen': []}
    """
    found: dict[str, Any] = {}
    looked_at: set[int] = set()
    waiting = [plain_function(function) for function in functions]
    while waiting:
        function = waiting.pop()
        if function is None or id(function) in looked_at:
            continue
        looked_at.add(id(function))
        for name, value in names_of(function).items():
            if isinstance(value, FunctionType) and value.__module__ == function.__module__:
                waiting.append(value)
            elif isinstance(value, MUTABLE) or (isinstance(value, int | float) and not isinstance(value, bool)):
                found.setdefault(name, value)
    return found


def plain_function(value: Any) -> FunctionType | None:
    """The Python function behind a callable: its own, a method's, or a `__call__` of the user's."""
    value = getattr(value, "func", value)  # of functools.partial
    value = getattr(value, "__func__", value)
    if not isinstance(value, FunctionType):
        value = vars(type(value)).get("__call__")
    return value if isinstance(value, FunctionType) else None


def names_of(function: FunctionType) -> dict[str, Any]:
    """What a function takes from around it: its closure, and the globals that it names."""
    code = function.__code__
    found = {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def fingerprints(objects: Mapping[str, Any]) -> dict[str, Any]:
    """What tells whether objects were changed: a shallow copy of small ones, the length of large ones."""
    return {name: fingerprint(value) for name, value in objects.items()}


def fingerprint(value: Any) -> Any:
    """Of one object; identities of elements, so that nothing of the user's is compared.

    >>> fingerprint([1, 2]) == fingerprint([1, 2]), fingerprint([1]) == fingerprint([1, 2])
    (True, False)
    """
    if not isinstance(value, MUTABLE):
        return value
    if len(value) > LARGEST:
        return len(value)
    parts = value.items() if isinstance(value, dict) else [(None, part) for part in value]
    return [(key, part if isinstance(part, int | float | str | None) else id(part)) for key, part in parts]


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names whose fingerprints differ."""
    return [name for name, value in now.items() if name in before and before[name] != value]


def shared(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names in one that mean the very same container as a name in the other."""
    others = {id(value) for value in other.values() if isinstance(value, MUTABLE)}
    return [name for name, value in one.items() if isinstance(value, MUTABLE) and id(value) in others]
