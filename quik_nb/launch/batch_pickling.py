"""What a DataLoader's processes send back: batches and errors of classes that cannot be pickled by name.

A DataLoader's processes pickle by name. A class of a cell has no name that a worker could import, nor has one that was
made in a function; the queue then prints an error, drops the batch, and the loader waits for it for ever. Here what has
no name is pickled by value, and what cannot be pickled at all is raised where the batch is waited for.

Not for jobs, which travel whole by `transfer.py`.
"""

import io
import sys
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from operator import attrgetter
from types import FunctionType
from typing import Any, ClassVar

from torch._utils import ExceptionWrapper
from torch.utils.data import get_worker_info

from quik_nb.errors import RecipeError
from quik_nb.launch.stdlib_patches import forking_pickler_dumps
from quik_nb.storage import pickling


@contextmanager
def batches_by_value() -> Iterator[None]:
    """Within it, DataLoaders that start their processes by fork can send whatever can be pickled by value.

    Batches that can be pickled by name are, and cost nothing more.
    """
    with forking_pickler_dumps(_Dumps()):
        yield


class _Dumps:
    """In place of `ForkingPickler.dumps`, of which the original is handed on."""

    def __init__(self) -> None:
        self.by_value = False
        """whether something had no name so far: then the next batch has none either, and a failed attempt leaves a file
        descriptor behind for each tensor that it came to"""

    def __call__(self, original: Callable[..., Any], value: Any, protocol: int | None = None) -> Any:
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], ExceptionWrapper):
            _make_raisable(value[1])
        if self.by_value:
            return _dumps_by_value(value, protocol)
        try:
            return original(value, protocol)
        except Exception:  # of many types, as classes may raise what they like
            self.by_value = True
            return _dumps_by_value(value, protocol)


def _make_raisable(wrapper: ExceptionWrapper) -> None:
    """Have an error of a DataLoader's process raised as RuntimeError where torch could not, or would pass over it.

    torch makes a new exception of the type from its words. A StopIteration then ends the epoch in silence, and of an
    exception group comes a TypeError that tells nothing.
    """
    if issubclass(wrapper.exc_type, StopIteration | BaseExceptionGroup):
        wrapper.exc_type = RuntimeError


def _dumps_by_value(value: Any, protocol: int | None) -> Any:
    try:
        return _by_value(value, protocol)
    except Exception as error:
        worker = get_worker_info()
        if worker is None or not isinstance(value, tuple) or len(value) != 2:
            raise
        # of a DataLoader's process come pairs of (number of the batch, batch)
        number, batch = value
        return _by_value((number, _cannot_be_sent(batch, error, worker.id)), protocol)


def _cannot_be_sent(batch: Any, error: Exception, worker: int) -> ExceptionWrapper:
    """The error to raise where the batch is waited for."""
    refused = RecipeError(
        f"A batch of type {type(batch).__name__} cannot be sent from a DataLoader's worker "
        f"({type(error).__name__}: {error}), and the training would wait for it for ever: return tensors, or what can "
        f"be pickled, from the dataset and collate_fn, or use num_workers=0."
    )
    where = f"in DataLoader worker process {worker}"
    return ExceptionWrapper((type(refused), refused, None), where)  # type: ignore[no-untyped-call]


def _by_value(value: Any, protocol: int | None) -> Any:
    file = io.BytesIO()
    _BatchPickler(file, protocol).dump(value)
    return file.getbuffer()


class _BatchPickler(pickling.Pickler):
    """By value where there is no name; tensors are shared as `ForkingPickler` shares them."""

    dispatch_table: ClassVar = ChainMap(ForkingPickler._extra_reducers, pickling.Pickler.dispatch_table)  # type: ignore[attr-defined]

    def reducer_override(self, obj: Any) -> Any:
        """How cloudpickle is asked; it would pickle all of `__main__` by value, also where that can be imported."""
        if isinstance(obj, type | FunctionType) and _has_name(obj):
            return NotImplemented
        return super().reducer_override(obj)


def _has_name(thing: Any) -> bool:
    """Whether a class or function is found where it says it stands."""
    module = sys.modules.get(thing.__module__)
    try:
        return attrgetter(thing.__qualname__)(module) is thing
    except AttributeError:
        return False
