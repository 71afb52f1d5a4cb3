"""Values that lie in mappings, tuples, lists and dataclasses: batches, outputs and state dicts are walked in one way.

| what is walked                                         | comes back as                                        |
|--------------------------------------------------------|------------------------------------------------------|
| a dict, or any other `collections.abc.Mapping`         | one of the same class, with what else it holds       |
| a tuple, list or named tuple                           | one of the same class                                |
| an instance of a dataclass                             | one of the same class                                |
| a packed sequence                                      | one with other data and the same lengths             |
| anything else: tensors, words, graphs and other objects | what the function gives for it                       |
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def tree_map(function: Callable[[Any], Any], value: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """The same nest, with the function called on everything in it that is no container.

    Args:
        function: of one leaf.
        value: the nest.
        is_leaf: what else the function is called on, though it is a container; None for nothing.

    >>> tree_map(lambda number: 2 * number, {"a": 1, "b": (2, [3])})
    {'a': 2, 'b': (4, [6])}
    """
    if is_leaf is not None and is_leaf(value):
        return function(value)

    def inner(part: Any) -> Any:
        return tree_map(function, part, is_leaf)

    match value:
        case PackedSequence():  # a named tuple, of which the rest are lengths and orders
            return value._replace(data=function(value.data))
        case Mapping():
            return _mapping_like(value, {key: inner(part) for key, part in value.items()})
        case tuple() | list():
            return rebuild_like(value, (inner(part) for part in value))
    if is_record(value):
        return _record_like(value, {name: inner(part) for name, part in record_items(value)})
    return function(value)


def tree_leaves(value: Any) -> Iterator[Any]:
    """Everything in a nest that is no container, in its order.

    >>> list(tree_leaves({"a": 1, "b": (2, [3])}))
    [1, 2, 3]
    """
    parts = children(value)
    if parts is None:
        yield value
    else:
        for part in parts:
            yield from tree_leaves(part)


def children(value: Any) -> list[Any] | None:
    """What lies directly in a container; None for what is none.

    >>> children({"a": 1, "b": [2]}), children(3)
    ([1, [2]], None)
    """
    match value:
        case PackedSequence():
            return [value.data]
        case Mapping():
            return list(value.values())
        case tuple() | list():
            return list(value)
    return [part for _, part in record_items(value)] if is_record(value) else None


def rebuild_like(like: Any, values: Iterable[Any]) -> Any:
    """A tuple or list of the same class with other values; a named tuple takes them one by one."""
    if type(like) is list:
        return list(values)
    if isinstance(like, list):  # its class may be made by other arguments
        new = copy(like)
        new[:] = values
        return new
    return type(like)(*values) if hasattr(like, "_fields") else type(like)(values)


def is_record(value: Any) -> bool:
    """Whether it is an instance of a dataclass."""
    return is_dataclass(value) and not isinstance(value, type)


def record_items(value: Any) -> list[tuple[str, Any]]:
    """The fields of an instance of a dataclass that are set, by name."""
    return [(f.name, getattr(value, f.name)) for f in fields(value) if hasattr(value, f.name)]


def to_cpu_copy(value: Any) -> Any:
    """A deep copy of a state dict on the CPU, which later training does not change."""
    return tree_map(lambda v: v.detach().to("cpu", copy=True) if isinstance(v, Tensor) else v, value)


def _mapping_like(like: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    """A mapping of the same class, with whatever it holds beside its items."""
    if type(like) is dict:
        return values
    if not hasattr(like, "__setitem__"):  # one that cannot be changed
        new: Callable[..., Any] = type(like)
        return new(values)
    copied: Any = copy(like)
    for key, part in values.items():
        copied[key] = part
    return copied


def _record_like(like: Any, values: dict[str, Any]) -> Any:
    """An instance of the same dataclass, which may be frozen, and is not initialized again."""
    new = copy(like)
    for name, part in values.items():
        object.__setattr__(new, name, part)
    return new
