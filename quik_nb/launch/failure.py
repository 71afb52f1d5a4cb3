"""A worker's failure: an exception as a value that can be sent, and the one error that the user sees.

When one rank fails, the others fail a moment later with errors about a lost connection. Those are secondary: the error
shown is that of the rank that failed by itself, with its own traceback down to the line in the user's cell.
"""

import linecache
import multiprocessing
import pickle
import re
import signal
import sys
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import quik_nb.errors
from quik_nb.errors import RecipeError, WorkerError, message_of
from quik_nb.storage import pickling

COMMUNICATION = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "processgroup", "rendezvous")
"""Words in the errors of a rank whose partner is gone."""

FOLDED = (*(str(Path(str(m.__file__)).parent) for m in (quik_nb.errors, torch, multiprocessing)), "<string>")
"""Where code stands whose frames are folded in the traceback shown."""

MAX_DEPTH = 4
"""Causes of causes that are shown."""
MAX_IN_GROUP = 5
"""Exceptions of a group that are shown."""

Frame = tuple[str, int, str]
"""(file, line, function)"""


@dataclass(frozen=True)
class Failure:
    """What ended a rank."""

    rank: int
    kind: str
    """name of the exception's type"""
    message: str
    frames: tuple[Frame, ...] = ()
    """outermost first"""
    error: bytes | None = None
    """the exception itself, pickled; None where that is impossible or a signal ended the rank"""
    related: "tuple[tuple[str, Failure], ...]" = ()
    """its cause, what was being handled, or the exceptions of a group, each with the words that introduce it"""

    @property
    def secondary(self) -> bool:
        """Whether it only tells of another rank's end."""
        words = f"{self.kind} {self.message}".lower()
        return self.kind in ("RuntimeError", "DistBackendError", "DistNetworkError") and any(
            word in words for word in COMMUNICATION
        )


# ------------------------------------------------------------------ in the worker


def capture(rank: int, error: BaseException) -> Failure:
    """An exception as a value that can be sent; its words and frames in any case, itself where it can be pickled."""
    failure = _in_words(rank, error, MAX_DEPTH)
    return Failure(rank, failure.kind, failure.message, failure.frames, _pickled(error), failure.related)


def _in_words(rank: int, error: BaseException, depth: int) -> Failure:
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    frames = tuple((f.filename, f.lineno or 0, f.name) for f in traceback.extract_tb(error.__traceback__))
    related = tuple((words, _in_words(rank, other, depth - 1)) for words, other in _related(error)) if depth else ()
    return Failure(rank, type(error).__name__, f"{message_of(error)}{notes}", frames, related=related)


def _related(error: BaseException) -> Iterator[tuple[str, BaseException]]:
    """What Python shows before an exception, and what a group consists of."""
    if isinstance(error, BaseExceptionGroup):
        yield from (("It contains", each) for each in error.exceptions[:MAX_IN_GROUP])

    if error.__cause__ is not None:
        yield "It was caused by", error.__cause__
    elif error.__context__ is not None and not error.__suppress_context__ and _is_users(error.__context__):
        yield "It was raised while this was handled", error.__context__


def _is_users(error: BaseException) -> bool:
    """Whether code of the user's takes part; what torch tried and handled is of no use to them."""
    return any(not frame.filename.startswith(FOLDED) for frame in traceback.extract_tb(error.__traceback__))


def _pickled(error: BaseException) -> bytes | None:
    """An exception as bytes of which `pickle.loads` makes one of its type; None where there is no way.

    A class with an `__init__` of its own may pickle and then refuse to be made again, so each way is tried out.
    """
    kind, message = type(error), message_of(error)
    for portable in (error, _Restorable(kind, error.args, vars(error)), _Restorable(kind, (message,), {})):
        try:
            payload = pickling.dumps(portable)
            if isinstance(pickle.loads(payload), BaseException):
                return payload
        except Exception:  # code of the user's own runs here: the next way, or its words alone
            continue
    return None


class _Restorable:
    """An exception that is made again without its `__init__`, which may take arguments that nobody kept."""

    def __init__(self, kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> None:
        self.parts = kind, args, attributes

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, self.parts


def _restored(kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(attributes)
    return error


# ------------------------------------------------------------------ in the launching process


def killed(rank: int, exitcode: int) -> Failure:
    """The failure of a rank that ended without a message."""
    if exitcode >= 0:
        return Failure(rank, "exit", f"ended with exit code {exitcode} without an error of its own")

    name = signal.Signals(-exitcode).name
    causes = {
        "SIGKILL": "most likely memory ran out: use a smaller batch_size, accumulate=, or fewer processes",
        "SIGSEGV": "compiled code crashed: use processes=1 to see where",
        "SIGBUS": "most likely shared memory (/dev/shm) is full: use num_workers=0 in the DataLoader",
        "SIGABRT": "compiled code gave up; its message stands above",
    }
    return Failure(rank, name, f"was killed by {name}; {causes.get(name, 'something outside this session sent it')}")


def root_cause(failures: Sequence[Failure]) -> Failure:
    """The failure that came first by itself: no secondary one where there is another."""
    return next((f for f in failures if not f.secondary), failures[0])


def as_error(failure: Failure, world_size: int) -> BaseException:
    """The error to raise in the launching process: the user's own exception, caused by the worker's traceback."""
    who = f"Rank {failure.rank} of {world_size}"
    if not failure.frames:
        return WorkerError(f"{who} {failure.message}. The state of the last row is kept.")

    error = _known(failure) or _own(failure) or WorkerError(f"{who} raised {failure.kind}: {failure.message}")
    error.__cause__ = WorkerError(f"{who} failed here:\n{shown(failure)}")
    return error


def _known(failure: Failure) -> BaseException | None:
    """What torch complains of at length, in a sentence."""
    if "find_unused_parameters=True" in failure.message:
        return RecipeError(
            "Some parameters of the model took no part in the loss, and DistributedDataParallel waits for their "
            "gradients: pass QuikSession(find_unused_parameters=True), or freeze them with requires_grad_(False)."
        )
    if failure.message.startswith("SyncBatchNorm") and "GPU" in failure.message:
        return RecipeError(
            "sync_batchnorm=True was asked for, and PyTorch synchronises batch statistics on GPUs only: leave it out "
            "on the CPU, where each rank normalises by its own share of the batch, or use nn.GroupNorm."
        )
    return None


def _own(failure: Failure) -> BaseException | None:
    """The user's own exception; none such as SystemExit, which would end this process without a word."""
    if failure.error is None:
        return None
    try:
        error = pickle.loads(failure.error)
    except Exception:  # what it needs may be there in the worker only: its words are shown instead
        return None
    return error if isinstance(error, Exception) else None


# ------------------------------------------------------------------ tracebacks in words


def shown(failure: Failure) -> str:
    """The traceback of a failure, with what is related to it indented below."""
    lines = [shown_frames(failure.frames), f"{failure.kind}: {failure.message}"]
    for words, other in failure.related:
        lines += [f"{words}:", textwrap.indent(shown(other), "  ")]
    return "\n".join(line for line in lines if line)


def shown_frames(frames: Sequence[Frame]) -> str:
    """Frames with their source, from the user's first one on; others are folded."""
    lines: list[str] = []
    folded = 0
    for file, number, name in frames:
        if file.startswith(FOLDED):
            folded += 1
            continue

        if lines and folded:
            lines.append(f"  ({folded} frames in quik_nb and torch)")
        folded = 0

        lines.append(f"  {_place(file, number)}, in {name}")
        if source := linecache.getline(file, number).strip():
            lines.append(f"    {source}")

    if folded:
        lines.append(f"  ({folded} frames in quik_nb and torch, the last: {frames[-1][2]})")
    return "\n".join(lines)


def stack_frames(dump: str) -> list[Frame]:
    """The frames of a stack that faulthandler wrote, outermost first."""
    found = re.findall(r'File "(.*)", line (\d+) in (.*)', dump)
    return [(file, int(line), name) for file, line, name in reversed(found)]


def _place(file: str, number: int) -> str:
    """Where a line is, as IPython names cells: `Cell In[3], line 5`."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    label = shell.compile.format_code_name(file) if shell is not None else None
    if label is not None:
        return f"{label[0]} {label[1]}, line {number}"
    return f'File "{file}", line {number}'
