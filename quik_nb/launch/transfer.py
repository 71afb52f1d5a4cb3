"""One file carries a run to its workers: everything by value, tensors mapped into memory, one copy for all of them.

A file rather than shared memory, because `/dev/shm` has 64 MB in many containers and ends in a bus error when it is
full. The samples are a file of their own, which is not written again as long as they did not change.
"""

import atexit
import os
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quik_nb.errors import RecipeError
from quik_nb.recipe.samples import SPLITS, Source, Tensors, compact
from quik_nb.storage import pickling
from quik_nb.storage.locks import lock
from quik_nb.training.job import Job

PREFIX = "quik_nb_"
LOCK = "lock"
JUST_MADE = 10.0
"""Seconds for which a folder may be without its lock."""


class Scratch:
    """The private folder of this process for what workers read; gone with the process, or swept by the next one."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self._data: WrittenData | None = None
        self._lock: int | None = None
        """the descriptor of the folder's lock, open for as long as this process lives"""

    def folder(self) -> Path:
        """A folder that only this user can read."""
        own_prefix = f"{PREFIX}{os.getpid()}_"  # a process that was forked from this one needs a folder of its own
        if self.path is not None and self.path.exists() and self.path.name.startswith(own_prefix):
            return self.path

        _sweep()
        self.path = Path(tempfile.mkdtemp(prefix=own_prefix))
        self._data = None
        with suppress(OSError):  # without locks no other process dares to clean up
            self._lock = lock(self.path / LOCK)
        atexit.register(shutil.rmtree, self.path, ignore_errors=True)
        return self.path

    def data(self, job: Job) -> Path:
        """The file with the job's samples; the last one is used again while nothing in it changed."""
        sources = tuple(getattr(job.recipe, split) for split in SPLITS)
        now = fingerprint(sources)
        folder = self.folder()

        last = self._data
        if last is not None and now is not None and last.fingerprint == now:
            return last.path
        if last is not None:
            last.path.unlink(missing_ok=True)

        path = folder / f"data_{os.urandom(4).hex()}.pt"
        save({split: compact(source) for split, source in zip(SPLITS, sources, strict=True)}, path, "session")
        self._data = WrittenData(path, now, sources)
        return path


class WrittenData(NamedTuple):
    """A file of samples, and what tells whether they have changed since."""

    path: Path
    fingerprint: object
    sources: tuple[Source | None, ...]
    """never read: while they are referenced, no other tensor can be at their address"""


SCRATCH = Scratch()


def _sweep() -> None:
    """Remove the folders of processes that were killed before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}[0-9]*_*"):
        with suppress(OSError):  # of another user, or gone already
            if _is_abandoned(folder) and (descriptor := lock(folder / LOCK)) is not None:
                os.close(descriptor)
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether a folder can be one of ours whose process is gone; its lock tells for sure."""
    status = folder.lstat()  # others may write into this place: a link could lead to any folder of the user's
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        return False
    return (folder / LOCK).exists() or time.time() - status.st_mtime > JUST_MADE


def fingerprint(sources: tuple[Source | None, ...]) -> object:
    """What changes when the samples change; None where that cannot be known, as for a dataset's own class.

    torch counts the changes that go through it. For memory shared with arrays there is a checksum, at about 0.25 s per
    GB. Nothing cheaper was as safe: a comparison with the last bytes takes 0.15 s and a copy of them, a weighted sum of
    64-bit words 0.1 s, but it misses `array *= -1`.
    """
    marks: list[object] = []
    for source in sources:
        if source is None:
            marks.append(None)
        elif isinstance(source, Tensors):
            rows = [] if source.rows is None else [source.rows]
            marks.append(tuple(map(_mark, [*source.tensors, *rows])))
        else:
            return None
    return tuple(marks)


def _mark(tensor: Tensor) -> object:
    identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version)
    if tensor.untyped_storage().resizable():
        return identity
    # torch marks memory that an array shares as fixed in size
    return *identity, zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def save(value: Any, path: Path, name: str) -> None:
    """Write anything by value; what cannot travel is named by its path.

    Raises:
        RecipeError: something in it cannot be pickled.
    """
    try:
        torch.save(value, path, pickle_module=pickling)
    except Exception as error:
        path.unlink(missing_ok=True)
        where, culprit = next(_culprits(value, name), (name, value))
        raise RecipeError(
            f"{where} is a {type(culprit).__name__}, which cannot be sent to a worker ({error}): make it inside the "
            f"function that needs it, leave it out in __getstate__, or use start_method='fork', which sends nothing."
        ) from error


def _culprits(value: Any, path: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The innermost parts that cannot be pickled, with their paths."""
    if depth > 8 or isinstance(value, Tensor) or pickling.can_pickle(value):
        return
    found = False
    for label, part in _parts(value):
        for culprit in _culprits(part, f"{path}{label}", depth + 1):
            found = True
            yield culprit
    if not found:
        yield path, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r}]" if not isinstance(key, str) else f".{key}", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{i}]", part) for i, part in enumerate(value))
    elif isinstance(value, Job):
        yield from _parts(value.recipe)  # the parts of a session, as its user knows them
    elif is_dataclass(value):
        yield from ((f".{f.name}", getattr(value, f.name)) for f in fields(value))
    elif isinstance(value, nn.Module):
        yield from ((f".{name}", part) for name, part in value.named_children())
        yield from ((f".{name}", part) for name, part in vars(value).items() if not name.startswith("_"))
        yield from _methods(value)
    elif hasattr(value, "__closure__"):
        names = value.__code__.co_freevars
        cells = dict(zip(names, value.__closure__ or (), strict=True))
        cells.pop("__class__", None)  # for super(): the class that this function was found in
        yield from ((f" (its {n})", cell.cell_contents) for n, cell in cells.items())
        yield from ((f" (its {n})", value.__globals__[n]) for n in value.__code__.co_names if n in value.__globals__)
    elif hasattr(value, "__dict__"):
        yield from ((f".{name}", part) for name, part in vars(value).items())
        yield from _methods(value)


def _methods(value: Any) -> Iterator[tuple[str, Any]]:
    """The functions of its class; those of a class from a cell travel by value, with the globals that they use."""
    yield from ((f".{name}", part) for name, part in vars(type(value)).items() if isinstance(part, FunctionType))


def write_job(job: Job, folder: Path) -> None:
    """Write all of a job but its samples."""
    recipe = replace(job.recipe, train=None, valid=None, test=None)
    save(replace(job, recipe=recipe), folder / "job.pt", "session")


def read_job(folder: Path, data: Path) -> Job:
    """The job that was written, its tensors mapped and shared by all who read it; written to, a page is one's own."""
    job: Job = torch.load(folder / "job.pt", map_location="cpu", mmap=True, weights_only=False)
    sources = torch.load(data, map_location="cpu", mmap=True, weights_only=False)
    return replace(job, recipe=replace(job.recipe, **sources))
