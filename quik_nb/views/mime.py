"""The one way in which a view reaches a notebook's output: a mime bundle under a display id.

Updates by display id find their output from any thread, and after the cell has ended.
"""

import sys
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

Bundle = Mapping[str, Any]


class Publish(Protocol):
    """Puts a mime bundle on the screen; with `update`, in place of what was shown under the same id."""

    def __call__(self, bundle: Bundle, display_id: str, update: bool) -> None: ...


def to_notebook(bundle: Bundle, display_id: str, update: bool) -> None:
    """Publish in the notebook of this kernel."""
    from IPython.display import publish_display_data

    publish_display_data(dict(bundle), transient={"display_id": display_id}, update=update)  # type: ignore[no-untyped-call]


def shell() -> Any:
    """IPython's shell in this process, None where there is none; IPython is only asked where it is loaded already."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def new_id() -> str:
    """An id for one output."""
    return uuid.uuid4().hex
