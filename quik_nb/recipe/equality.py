"""Structural equality for values from re-run cells; decides whether training continues.

Tensors and arrays are compared element by element, functions and classes by their code, as re-running a cell creates
new ones. Objects whose `==` gives no truth value, such as torchmetrics' metrics, are the same only if they are one.
"""

import inspect
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NO_BEHAVIOUR = {"__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "__static_attributes__"}
"""Attributes of a class that change nothing of what it does."""


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal in structure.

    >>> same({"weight": torch.ones(2)}, {"weight": torch.ones(2)}), same([1, 2], [1, 3])
    (True, False)
    >>> same(lambda x: 2 * x, lambda x: 2 * x), same(lambda x: 2 * x, lambda x: 3 * x)
    (True, False)
    """
    try:
        return _same(one, other)
    except RecursionError:  # reference cycles
        return False


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True

    for kind, compare in COMPARISONS.items():
        if isinstance(one, kind) and isinstance(other, kind):
            return compare(one, other)

    equal = one == other
    return isinstance(equal, bool | np.bool_) and bool(equal)


def _tensors(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


def _arrays(one: Any, other: Any) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)


def _mappings(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)


def _sequences(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(map(_same, one, other))


def _functions(one: FunctionType, other: FunctionType) -> bool:
    return (
        _same(one.__code__, other.__code__)
        and _same(one.__defaults__, other.__defaults__)
        and _same(one.__kwdefaults__, other.__kwdefaults__)
        and _mappings(_closed_over(one), _closed_over(other))
    )


def _closed_over(function: FunctionType) -> dict[str, Any]:
    """The closure of a function, without itself and the class that it is a method of."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    found = {name: inspect.getclosurevars(function).nonlocals.get(name) for name, _ in cells}
    return {name: value for name, value in found.items() if name != "__class__" and value is not function}


def _codes(one: CodeType, other: CodeType) -> bool:
    """Without file and line numbers: a further line above changes nothing."""
    names = ("co_name", "co_code", "co_names", "co_varnames", "co_freevars", "co_flags")
    return all(getattr(one, n) == getattr(other, n) for n in names) and _sequences(one.co_consts, other.co_consts)


def _classes(one: type, other: type) -> bool:
    """Classes of a notebook by their attributes; any other class exists only once."""
    if one.__module__ != "__main__" or one.__qualname__ != other.__qualname__ or one.__bases__ != other.__bases__:
        return False
    return _mappings(*({n: v for n, v in vars(c).items() if n not in NO_BEHAVIOUR} for c in (one, other)))


def _wrapped(one: Any, other: Any) -> bool:
    """Static methods, class methods and properties, by the functions that they wrap."""
    parts = ("__func__",) if hasattr(one, "__func__") else ("fget", "fset", "fdel")
    return type(one) is type(other) and all(_same(getattr(one, p), getattr(other, p)) for p in parts)


def _modules(one: nn.Module, other: nn.Module) -> bool:
    """Modules without parameters, such as a criterion; a module with parameters equals only itself."""
    if any(True for module in (one, other) for _ in module.parameters()):
        return False
    return _same(type(one), type(other)) and _same(vars(one), vars(other))


COMPARISONS: dict[Any, Callable[[Any, Any], bool]] = {
    Tensor: _tensors,
    np.ndarray: _arrays,
    Mapping: _mappings,
    (tuple, list): _sequences,
    FunctionType: _functions,
    CodeType: _codes,
    type: _classes,
    (staticmethod, classmethod, property): _wrapped,
    nn.Module: _modules,
}


class ByValue:
    """Records whose fields may hold tensors and functions, which plain dataclasses cannot compare."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and same(vars(self), vars(other))

    __hash__ = None  # type: ignore[assignment]
