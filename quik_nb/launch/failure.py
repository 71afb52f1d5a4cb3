"""A worker's failure: an exception as a value on its way home, and the one error that the user sees.

When one rank fails, the others fail a moment later with errors about a lost connection. Those are secondary: the error
shown is that of the rank that failed by itself, with its own traceback down to the line in the user's cell.
"""

import linecache
import multiprocessing
import pickle
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import quik_nb.errors
from quik_nb.errors import RecipeError, WorkerError
from quik_nb.storage import pickling

COMMUNICATION = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "processgroup", "rendezvous")
"""Words in the errors of a rank whose partner is gone."""

OWN = (*(str(Path(str(m.__file__)).parent) for m in (quik_nb.errors, torch, multiprocessing)), "<string>")
"""Code whose frames are folded in the traceback shown."""


@dataclass(frozen=True)
class Failure:
    """What ended a rank."""

    rank: int
    kind: str
    """name of the exception's type"""
    message: str
    frames: tuple[tuple[str, int, str], ...] = ()
    """(file, line, function), outermost first"""
    error: bytes | None = None
    """the exception itself, pickled; None where that is impossible or a signal ended the rank"""

    @property
    def secondary(self) -> bool:
        """Whether it only tells of another rank's end."""
        words = f"{self.kind} {self.message}".lower()
        return self.kind in ("RuntimeError", "DistBackendError", "DistNetworkError") and any(
            word in words for word in COMMUNICATION
        )


def capture(rank: int, error: BaseException) -> Failure:
    """An exception as a value that can travel."""
    frames = traceback.extract_tb(error.__traceback__)
    error.__traceback__ = error.__context__ = None
    try:
        payload = pickling.dumps(error)
        pickle.loads(payload)  # an exception with an __init__ of its own may pickle and then refuse to come back
    except Exception:  # the words and the frames travel in any case
        payload = None
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    located = tuple((f.filename, f.lineno or 0, f.name) for f in frames)
    return Failure(rank, type(error).__name__, f"{error}{notes}", located, payload)


def killed(rank: int, exitcode: int) -> Failure:
    """The failure of a rank that ended without a word."""
    if exitcode >= 0:
        return Failure(rank, "exit", f"ended with exit code {exitcode} without an error of its own")
    name = signal.Signals(-exitcode).name
    cause = {
        "SIGKILL": "most likely memory ran out: take a smaller batch_size, accumulate=, or fewer processes",
        "SIGSEGV": "compiled code crashed: try processes=1 to see where",
        "SIGBUS": "most likely shared memory (/dev/shm) is full: take num_workers=0 in the DataLoader",
        "SIGABRT": "compiled code gave up; its message stands above",
    }.get(name, "something outside this session sent it")
    return Failure(rank, name, f"was killed by {name}; {cause}")


def root_cause(failures: Sequence[Failure]) -> Failure:
    """The failure that came first by itself: no secondary one where there is another."""
    return next((f for f in failures if not f.secondary), failures[0])


def as_error(failure: Failure, world_size: int) -> BaseException:
    """The error to raise at home: the user's own exception, caused by the story of the worker."""
    who = f"Rank {failure.rank} of {world_size}"
    if not failure.frames:
        return WorkerError(f"{who} {failure.message}. The state of the last row is kept.")
    story = WorkerError(f"{who} failed here:\n{_traceback(failure)}")
    if "find_unused_parameters=True" in failure.message:
        error: BaseException = RecipeError(
            "Some parameters of the model took no part in the loss, and DistributedDataParallel waits for their "
            "gradients: pass QuikSession(find_unused_parameters=True), or freeze them with requires_grad_(False)."
        )
    elif failure.message.startswith("SyncBatchNorm") and "GPU" in failure.message:
        error = RecipeError(
            "sync_batchnorm=True was asked for, and PyTorch synchronises batch statistics on GPUs only: leave it out "
            "on the CPU, where each rank normalises by its own share of the batch, or take nn.GroupNorm."
        )
    else:
        error = WorkerError(f"{who} raised {failure.kind}: {failure.message}")
        if failure.error is not None and isinstance(own := pickle.loads(failure.error), Exception):
            error = own  # not a SystemExit, which would end this process without a word
    error.__cause__ = story
    return error


def _traceback(failure: Failure) -> str:
    return f"{shown_frames(failure.frames)}\n{failure.kind}: {failure.message}"


def shown_frames(frames: Sequence[tuple[str, int, str]]) -> str:
    """Frames as (file, line, function) with their source, from the user's first one on; others are folded."""
    lines: list[str] = []
    folded = 0
    for file, number, name in frames:
        if file.startswith(OWN):
            folded += 1
            continue
        if lines and folded:
            lines.append(f"  ({folded} frames in quik_nb and torch)")
        folded = 0
        lines.append(f"  {_place(file, number)}, in {name}")
        source = linecache.getline(file, number).strip()
        lines += [f"    {source}"] if source else []
    if folded and frames:
        lines.append(f"  ({folded} frames in quik_nb and torch, the last: {frames[-1][2]})")
    return "\n".join(lines)


def stack_frames(dump: str) -> list[tuple[str, int, str]]:
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
