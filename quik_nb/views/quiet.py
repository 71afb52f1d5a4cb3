"""The view that draws nothing; what workers print is still printed."""

from quik_nb.events import Event, Printed
from quik_nb.views.printed import Printer


class QuietView:
    """For `view=False`."""

    def __init__(self) -> None:
        self._printer = Printer()

    def show(self, event: Event) -> None:
        """Pass on what a worker printed."""
        if isinstance(event, Printed):
            self._printer.show(event)

    def close(self) -> None:
        """Nothing was drawn."""
