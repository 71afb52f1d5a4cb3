"""Errors of a script: the message and the user's own lines, without the frames of quik_nb and torch.

In a notebook IPython leaves those out by itself (`__tracebackhide__`); a plain Python shows every frame of an error
that nobody caught. Errors themselves are not changed: who catches one has all of it.
"""

import sys
import traceback
from types import TracebackType

from quik_nb.launch.failure import FOLDED


def show_errors_briefly() -> None:
    """From here on, show an error that ends this script without the frames that are not the user's.

    Nothing changes in IPython, where something else shows errors already, and under `python -X dev`.
    """
    ipython = sys.modules.get("IPython")
    in_shell = ipython is not None and ipython.get_ipython() is not None
    if not in_shell and not sys.flags.dev_mode and sys.excepthook is sys.__excepthook__:
        sys.excepthook = _show


def brief(error: BaseException) -> str:
    """The text of a traceback, with the user's lines only; causes are shown the same way.

    >>> try:
    ...     int("x")
    ... except ValueError as error:
    ...     print(brief(error).splitlines()[-1])
    ValueError: invalid literal for int() with base 10: 'x'
    """
    told: traceback.TracebackException | None = traceback.TracebackException.from_exception(error)
    shown = told
    while told is not None:
        told.stack[:] = [frame for frame in told.stack if not frame.filename.startswith(FOLDED)]
        told = told.__cause__ or (None if told.__suppress_context__ else told.__context__)
    return "" if shown is None else "".join(shown.format())


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(brief(error), end="", file=sys.stderr)
