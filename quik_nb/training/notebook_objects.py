"""Finds the notebook variables that a step, loop or callback uses: lists, dicts and counters.

A worker has copies of all variables: what a step appends to a list there is never returned, and what a callback resets
in the notebook is not seen by the worker. Both would fail silently, so such variables are detected for a warning.
"""

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

MUTABLE = (list, dict, set, bytearray)
"""Containers to check, including subclasses such as Counter, defaultdict and OrderedDict."""

MAX_ELEMENTS = 10_000
"""Of larger containers, only the length is compared."""


def objects_of(*functions: Callable[..., Any] | None) -> dict[str, Any]:
    """The containers and numbers that these functions use from their closures and globals, by name.

    Functions of the same notebook or script that they call are included.

    >>> seen = []
    >>> objects_of(lambda: seen.append(1))
    {'seen': []}
    """
    found: dict[str, Any] = {}
    visited: set[int] = set()
    queue = [plain_function(function) for function in functions]

    while queue:
        function = queue.pop()
        if function is None or id(function) in visited:
            continue
        visited.add(id(function))

        for name, value in names_of(function).items():
            if isinstance(value, FunctionType) and value.__module__ == function.__module__:
                queue.append(value)
            elif isinstance(value, MUTABLE) or (isinstance(value, int | float) and not isinstance(value, bool)):
                found.setdefault(name, value)
    return found


def plain_function(value: Any) -> FunctionType | None:
    """The Python function behind a callable: itself, or that of a partial, a method, or a `__call__`."""
    value = getattr(value, "func", value)  # of functools.partial
    value = getattr(value, "__func__", value)
    if not isinstance(value, FunctionType):
        value = vars(type(value)).get("__call__")
    return value if isinstance(value, FunctionType) else None


def names_of(function: FunctionType) -> dict[str, Any]:
    """The variables of a function's closure, and the globals that it uses."""
    code = function.__code__
    found = {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def fingerprints(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Values that differ if the objects were changed: shallow copies, or lengths of large containers."""
    return {name: fingerprint(value) for name, value in objects.items()}


def fingerprint(value: Any) -> Any:
    """The fingerprint of one object, with ids of elements, so that no `__eq__` of the user is called.

    >>> fingerprint([1, 2]) == fingerprint([1, 2]), fingerprint([1]) == fingerprint([1, 2])
    (True, False)
    """
    if not isinstance(value, MUTABLE):
        return value
    if len(value) > MAX_ELEMENTS:
        return len(value)
    parts = value.items() if isinstance(value, dict) else [(None, part) for part in value]
    return [(key, part if isinstance(part, int | float | str | None) else id(part)) for key, part in parts]


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names whose fingerprints differ."""
    return [name for name, value in now.items() if name in before and before[name] != value]


def shared(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names in `one` whose container is also in `other`, by identity."""
    others = {id(value) for value in other.values() if isinstance(value, MUTABLE)}
    return [name for name, value in one.items() if isinstance(value, MUTABLE) and id(value) in others]
