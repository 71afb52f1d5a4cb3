"""What can go wrong, as one small tree.

    QuikError
    ├── RecipeError        what to train is incomplete or does not fit together
    ├── PlacementError     where to train cannot be had on this machine
    ├── WorkerError        a worker process failed, was killed, or hangs
    ├── CheckpointError    a file of weights is missing, damaged or of another model
    └── DivergenceError    the loss is no longer a number

A `QuikWarning` tells what is no error and would otherwise pass in silence: once for each cause and session.

Every message has three parts: what happened, with the value given; why it matters; what to type instead.
"""

import difflib
from collections.abc import Iterable


class QuikError(Exception):
    """The root of all errors that quik_nb raises on purpose."""


class RecipeError(QuikError, ValueError):
    """What to train is incomplete or does not fit together; all faults are in the one message."""


class PlacementError(QuikError, ValueError):
    """Where to train was asked for in a way that this machine cannot give."""


class WorkerError(QuikError, RuntimeError):
    """A worker process failed, was killed by a signal, or hangs; the message names the rank."""


class CheckpointError(QuikError, RuntimeError):
    """A file of weights is missing, damaged, overwritten or of another model; the model is untouched."""


class DivergenceError(QuikError, ArithmeticError):
    """The training loss is NaN or infinite; the weights are those of the last row of the history."""


class QuikWarning(UserWarning):
    """Something that may give other numbers than you expect; the message says what, why, and what to use instead."""


class StopTraining(Exception):  # noqa: N818  a signal like StopIteration, not an error
    """Raise it in a callback to end the run after this event, as the Stop button would; in a step, before its update.

    On several ranks all of them must raise it in the same step.
    """


def message_of(error: BaseException) -> str:
    """What any error says, also one of a class whose own `__str__` fails.

    >>> message_of(KeyError("lr"))
    "'lr'"
    """
    try:
        return str(error)
    except Exception as failure:
        return f"(no message: its __str__ raised {type(failure).__name__})"


def suggest(word: str, known: Iterable[str]) -> str:
    """The words to add to an error about an unknown name: the near one, or all that are known.

    >>> suggest("amsgard", ["amsgrad", "lr"])
    "did you mean 'amsgrad'?"
    """
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known are {', '.join(known)}" if known else "there are none"
