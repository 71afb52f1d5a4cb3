"""cloudpickle with source locations, so that a worker's traceback can show the line in the notebook cell.

Since 3.1.3, cloudpickle replaces the file name of all code with `<dynamic-code>`, so that a re-run cell is pickled to
the same bytes. Here bytes are not compared, and tracebacks need the file name. The module can be passed to `torch.save`
as `pickle_module`; plain `pickle` reads the result wherever quik_nb and cloudpickle are installed.
"""

import io
from collections import ChainMap
from collections.abc import Callable
from types import CodeType
from typing import Any, ClassVar

import cloudpickle
from torch import nn
from torch.nn.utils import parametrize

_Reduced = tuple[Callable[..., Any], tuple[Any, ...]]


def _reduce_code(code: CodeType) -> _Reduced:
    create, parts = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return _restore_code, (create, parts, code.co_filename)


def _restore_code(create: Callable[..., CodeType], parts: tuple[Any, ...], file: str) -> CodeType:
    return create(*parts).replace(co_filename=file)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """A cloudpickle pickler that preserves file names of code and supports parametrized modules."""

    dispatch_table: ClassVar = ChainMap({CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, nn.Module) and parametrize.is_parametrized(value):
            return restore_parametrized, (type(value).__bases__[0], dict(vars(value)))
        return super().reducer_override(value)


def restore_parametrized(kind: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    """Unpickle a module with parametrizations, such as spectral_norm.

    torch creates a class for each such module, with a property for each parametrized tensor, and refuses to pickle it.
    Its `__dict__` can be pickled, so only the class is created again.

    Args:
        kind: the module's class without parametrizations.
        state: the module's `__dict__`.
    """
    module = kind.__new__(kind)
    vars(module).update(state)
    parametrize._inject_new_class(module)
    for name in module.parametrizations:  # type: ignore[union-attr]
        parametrize._inject_property(module, str(name))
    return module


def dumps(value: Any) -> bytes:
    """Pickle a value to bytes; `pickle.loads` restores it.

    Raises:
        Exception: any exception of an object that cannot be pickled.

    >>> import pickle
    >>> code = compile("lambda x: 2 * x", "Cell 3", "eval")
    >>> twice = pickle.loads(dumps(eval(code)))
    >>> twice(21), twice.__code__.co_filename
    (42, 'Cell 3')
    """
    buffer = io.BytesIO()
    Pickler(buffer).dump(value)
    return buffer.getvalue()


def can_pickle(value: Any) -> bool:
    """Whether a value can be pickled, which only trying can tell.

    >>> can_pickle(lambda x: 2 * x), can_pickle(open)
    (True, True)
    """
    try:
        dumps(value)
    except Exception:  # any exception means that it cannot be pickled
        return False
    return True
