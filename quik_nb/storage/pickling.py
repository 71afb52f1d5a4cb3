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

_Reduced = tuple[Callable[..., Any], tuple[Any, ...]]


def _with_its_file(code: CodeType) -> _Reduced:
    make, parts = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return _restored, (make, parts, code.co_filename)


def _restored(make: Callable[..., CodeType], parts: tuple[Any, ...], file: str) -> CodeType:
    return make(*parts).replace(co_filename=file)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, with the file of each code object beside it."""

    dispatch_table: ClassVar = ChainMap({CodeType: _with_its_file}, cloudpickle.Pickler.dispatch_table)


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
