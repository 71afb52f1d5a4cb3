"""Which view draws a run, decided in one place, with the reason in words.

`FrontEnd.detect()` gives the facts, `decide` decides, `choose` builds. A kernel cannot be asked whether the page at the
other end shows widgets; one that does not shows the words that stand beside the widget, and `view="text"` is for it.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from quik_nb.errors import RecipeError, suggest
from quik_nb.history import History
from quik_nb.views.base import RunControls, View
from quik_nb.views.mime import shell

Kind = Literal["widget", "display", "text", "null"]
KNOWN = ("auto", "widget", "text")


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """What there is to draw with."""

    kernel: bool
    """this process is a Jupyter kernel"""
    widgets: bool
    """ipywidgets can be imported"""

    @classmethod
    def detect(cls) -> "FrontEnd":
        """The facts about this process."""
        return cls(kernel=getattr(shell(), "kernel", None) is not None, widgets=find_spec("ipywidgets") is not None)


def decide(view: str | bool, front_end: FrontEnd) -> tuple[Kind, str]:
    """The kind of view for what was asked for (`"auto" | "widget" | "text" | False`), and why."""
    if view is False:
        return "null", "view=False draws nothing"
    if view == "text":
        return "text", "view='text' was asked for"
    if view not in KNOWN:
        raise RecipeError(_unknown(view))
    if not front_end.kernel:
        asked = "view='widget' was asked for, but " if view == "widget" else ""
        return "text", f"{asked}this is no notebook kernel, so rows are printed"
    if not front_end.widgets:
        return "display", "ipywidgets is not installed, so one output is updated in place"
    return "widget", "a notebook kernel with ipywidgets"


def runs_headless() -> bool:
    """Whether cells are run by a program that leaves when the last one has ended, such as nbclient or papermill.

    Those execute without a way to ask the user anything, which is what the request then says.
    """
    kernel = getattr(shell(), "kernel", None)
    if kernel is None:
        return shell() is None  # a script would end too; a terminal stays

    request = kernel.get_parent("shell") if hasattr(kernel, "get_parent") else {}
    return not request.get("content", {}).get("allow_stdin", True)


def cell_number() -> int | None:
    """The number of the cell that runs now; None outside IPython."""
    return getattr(shell(), "execution_count", None)


def choose(
    view: str | bool, history: History, controls: RunControls | None = None, title: str = "", folder: str = ""
) -> tuple[View, str]:
    """The view that draws this history from now on, and the reason for it.

    Args:
        view: what was asked for: "auto", "widget", "text" or False.
        history: what it draws.
        controls: what its buttons may do; None for no buttons.
        title: the session's name.
        folder: by which `QuikSession.resume` finds the run; empty where nothing is saved.

    Raises:
        RecipeError: there is no such view.
    """
    kind, reason = decide(view, FrontEnd.detect())
    return _build(kind, history, controls, title, folder), reason


def _build(kind: Kind, history: History, controls: RunControls | None, title: str, folder: str) -> View:
    # imported when chosen: a script does not load what only a notebook needs
    match kind:
        case "widget":
            from quik_nb.views.widget import WidgetView

            return WidgetView(history, controls, title, folder)
        case "display":
            from quik_nb.views.display_view import DisplayView

            return DisplayView(history, title)
        case "text":
            from quik_nb.views.text import TextView

            return TextView(history, title)
        case "null":
            from quik_nb.views.null_view import NullView

            return NullView()


def _unknown(view: object) -> str:
    hint = suggest(view, KNOWN) if isinstance(view, str) else f"known are {', '.join(KNOWN)} and False"
    return (
        f"view={view!r} is not known: {hint}\n"
        "It says how a run is drawn, so a training cannot start without it.\n"
        "Use view='auto' (the default), 'widget', 'text', or False for nothing at all."
    )
