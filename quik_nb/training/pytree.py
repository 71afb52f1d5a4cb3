"""Values that lie in tuples, lists and dicts: batches, outputs and state dicts are walked in this one way."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


def tree_map(function: Callable[[Any], Any], value: Any) -> Any:
    """The same nest, with the function called on everything in it that is no dict, tuple or list.

    >>> tree_map(lambda number: 2 * number, {"a": 1, "b": (2, [3])})
    {'a': 2, 'b': (4, [6])}
    """
    match value:
        case dict():
            return {key: tree_map(function, inner) for key, inner in value.items()}
        case tuple() | list():
            return rebuild_like(value, (tree_map(function, inner) for inner in value))
    return function(value)


def rebuild_like(like: Any, values: Iterable[Any]) -> Any:
    """A tuple or list of the same type with other values; a named tuple takes them one by one."""
    return type(like)(*values) if hasattr(like, "_fields") else type(like)(values)


def to_cpu_copy(value: Any) -> Any:
    """A deep copy of a state dict on the CPU, which later training does not change."""
    return tree_map(lambda v: v.detach().to("cpu", copy=True) if isinstance(v, Tensor) else v, value)
