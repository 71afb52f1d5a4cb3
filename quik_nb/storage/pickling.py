"""Pickles by value, by cloudpickle, that keep where code stands, so that an error can show the line in its cell.

cloudpickle names all code that it packs `<dynamic-code>` (since 3.1.3), so that a cell that is run again gives the same
bytes. Here bytes are never compared, and a worker's traceback needs the cell. The module serves as `pickle_module` of
`torch.save`; what it writes is read by plain `pickle` wherever quik_nb and cloudpickle are installed.
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


def _with_its_file(code: CodeType) -> _Reduced:
    make, parts = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return _restored, (make, parts, code.co_filename)


def _restored(make: Callable[..., CodeType], parts: tuple[Any, ...], file: str) -> CodeType:
    return make(*parts).replace(co_filename=file)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, with the file of each code object beside it, and for parametrized modules, too."""

    dispatch_table: ClassVar = ChainMap({CodeType: _with_its_file}, cloudpickle.Pickler.dispatch_table)

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, nn.Module) and parametrize.is_parametrized(value):
            return parametrized, (type(value).__bases__[0], dict(vars(value)))
        return super().reducer_override(value)


def parametrized(kind: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    """A module with parametrizations, such as spectral_norm's, as it was pickled.

    torch gives such a module a class of its own, with a property for each parametrized tensor, and refuses to pickle
    it. Its state pickles like any other; the class is made again.

    Args:
        kind: the module's class without parametrizations.
        state: what the module holds.
    """
    module = kind.__new__(kind)
    vars(module).update(state)
    parametrize._inject_new_class(module)
    for name in module.parametrizations:  # type: ignore[union-attr]
        parametrize._inject_property(module, str(name))
    return module


def dumps(value: Any) -> bytes:
    """A value as bytes; `pickle.loads` makes it again.

    Raises:
        Exception: whatever a part raises that cannot be pickled.

    >>> import pickle
    >>> code = compile("lambda x: 2 * x", "Cell 3", "eval")
    >>> twice = pickle.loads(dumps(eval(code)))
    >>> twice(21), twice.__code__.co_filename
    (42, 'Cell 3')
    """
    packed = io.BytesIO()
    Pickler(packed).dump(value)
    return packed.getvalue()


def can_pickle(value: Any) -> bool:
    """Whether a value can be written: anything may be in a recipe, and only trying tells.

    >>> can_pickle(lambda x: 2 * x), can_pickle(open)
    (True, True)
    """
    try:
        dumps(value)
    except Exception:  # whatever the reason, it cannot
        return False
    return True
