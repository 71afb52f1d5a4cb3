"""All exceptions of quik_nb.

    QuikError
    ├── RecipeError        the recipe is incomplete or invalid
    ├── PlacementError     the machine does not have the requested devices or cores
    ├── WorkerError        a worker process failed, was killed, or hangs
    ├── CheckpointError    a file of weights is missing, damaged or of another model
    └── DivergenceError    the loss became NaN or infinite

A `QuikWarning` reports what is not an error but may be a surprise, once per cause and session.

Every message has three parts: what happened, with the value given; why it matters; what to use instead.
"""

import difflib
from collections.abc import Iterable


class QuikError(Exception):
    """Base class of all errors that quik_nb raises."""


class RecipeError(QuikError, ValueError):
    """The recipe is incomplete or invalid; the message lists all problems."""


class PlacementError(QuikError, ValueError):
    """The machine does not have the requested devices or cores."""


class WorkerError(QuikError, RuntimeError):
    """A worker process failed, was killed by a signal, or hangs; the message names the rank."""


class CheckpointError(QuikError, RuntimeError):
    """A file of weights is missing, damaged, overwritten or of another model; the model is unchanged."""


class DivergenceError(QuikError, ArithmeticError):
    """The training loss is NaN or infinite; the model has the weights of the history's last row."""


class QuikWarning(UserWarning):
    """A training may not do what you expect; the message says what happens, why, and what to use instead."""


class StopTraining(Exception):  # noqa: N818  a signal like StopIteration, not an error
    """Raise it to stop the run, like the Stop button: in a callback, after this event; in a step, before its update.

    In a step or loop on several ranks, all ranks must raise it in the same step.
    """


def message_of(error: BaseException) -> str:
    """The message of any exception, even if its `__str__` raises.

    >>> message_of(KeyError("lr"))
    "'lr'"
    """
    try:
        return str(error)
    except Exception as failure:
        return f"(no message: its __str__ raised {type(failure).__name__})"


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the closest known name, or a list of all of them.

    >>> suggest("amsgard", ["amsgrad", "lr"])
    "did you mean 'amsgrad'?"
    """
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known are {', '.join(known)}" if known else "there are none"
