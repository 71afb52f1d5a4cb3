"""Short tracebacks for scripts: the message and the user's own lines, without the frames of quik_nb and torch.

IPython hides those frames itself (`__tracebackhide__`); plain Python prints every frame of an uncaught exception. Only
the printed text is shortened: code that catches an exception sees its full traceback.
"""

import sys
import traceback
from types import TracebackType

from quik_nb.launch.failure import FOLDED


def show_errors_briefly() -> None:
    """Install a `sys.excepthook` that prints uncaught exceptions without the frames of quik_nb and torch.

    Does nothing in IPython, where another excepthook is installed already, and under `python -X dev`.
    """
    ipython = sys.modules.get("IPython")
    in_shell = ipython is not None and ipython.get_ipython() is not None
    if not in_shell and not sys.flags.dev_mode and sys.excepthook is sys.__excepthook__:
        sys.excepthook = _show


def brief(error: BaseException) -> str:
    """The traceback as text, with frames of the user's code only; causes are shortened the same way.

    >>> try:
    ...     int("x")
    ... except ValueError as error:
    ...     print(brief(error).splitlines()[-1])
    ValueError: invalid literal for int() with base 10: 'x'
    """
    whole = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = whole

    while part is not None:
        part.stack[:] = [frame for frame in part.stack if not frame.filename.startswith(FOLDED)]
        context = None if part.__suppress_context__ else part.__context__
        part = part.__cause__ or context
    return "".join(whole.format())


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(brief(error), end="", file=sys.stderr)
