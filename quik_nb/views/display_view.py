"""The live view where the notebook has no ipywidgets: one output, updated in place, and in the end the record."""

from quik_nb.events import EpochEnd, Event, Output, PauseChanged, RunStart
from quik_nb.history import History
from quik_nb.views import html
from quik_nb.views.budget import CLOCK, Budget, Clock
from quik_nb.views.mime import Publish, new_id, to_notebook
from quik_nb.views.output import Printer
from quik_nb.views.static_record import in_place, record
from quik_nb.views.status import RunStatus

ROW, STEP = "row", "step"
BUDGET_SHARES = {ROW: 0.7, STEP: 0.3}
"""What a new row and a step in between may spend of the time for drawing."""


class DisplayView:
    """Draws everything anew under one display id."""

    def __init__(self, history: History, title: str = "", clock: Clock = CLOCK, publish: Publish = to_notebook) -> None:
        self._history = history
        self._publish = publish
        self._status = RunStatus(history, title, clock.wall)
        self._printer = Printer()
        self._budget = Budget(BUDGET_SHARES, clock)
        self._id = new_id()
        self._shown = False
        self._row_is_due = False
        if history.rows:
            self._draw(ROW)

    def show(self, event: Event) -> None:
        """Take one event; redraw if the budget allows it, and sooner for a new row than for a step."""
        if isinstance(event, Output):
            self._printer.show(event)
            return

        self._status.record(event)
        self._row_is_due |= isinstance(event, EpochEnd | RunStart)
        kind = ROW if self._row_is_due else STEP
        if not self._shown or isinstance(event, PauseChanged) or self._budget.allows(kind):
            self._draw(kind)

    def close(self) -> None:
        """Put the static record in place."""
        if self._shown:
            self._status.closed = True
            self._publish(record(self._history, self._status, self._id), self._id, update=True)
            self._shown = False

    def _draw(self, kind: str) -> None:
        with self._budget.spend(kind):
            bundle = in_place(self._history, self._status, self._id, html.INTERRUPT)
            self._publish(bundle, self._id, update=self._shown)
        self._shown = True
        self._row_is_due = False
