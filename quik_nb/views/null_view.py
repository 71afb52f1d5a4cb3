"""The view that draws nothing; what workers print is still printed."""

from quik_nb.events import Event, Output
from quik_nb.views.output import Printer


class NullView:
    """For `view=False`."""

    def __init__(self) -> None:
        self._printer = Printer()

    def show(self, event: Event) -> None:
        """Pass on what a worker printed."""
        if isinstance(event, Output):
            self._printer.show(event)

    def close(self) -> None:
        """Nothing was drawn."""
