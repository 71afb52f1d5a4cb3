"""The live view in a notebook: a bar within the epoch, the table and the curve, and in the end a plain record.

The widgets live as long as the run. When it ends, their output is replaced by the static record and they are closed, so
that the saved notebook holds a table and a picture and needs no widget to show them.
"""

from typing import Any

from quik_nb.events import Annotation, EpochEnd, Event, Output, PauseChanged, RunStart, StepEnd
from quik_nb.history import History
from quik_nb.views import html
from quik_nb.views.base import RunControls
from quik_nb.views.budget import CLOCK, Budget, Clock
from quik_nb.views.buttons import Buttons
from quik_nb.views.mime import Publish, new_id, to_notebook
from quik_nb.views.output import Printer
from quik_nb.views.static_record import record
from quik_nb.views.status import RunStatus

TABLE, CURVE, BAR = "table", "curve", "bar"
BUDGET_SHARES = {TABLE: 0.75, CURVE: 0.17, BAR: 0.08}
"""What each may spend of the time for drawing: a row for every epoch matters more than a smooth curve."""
REDRAWS: dict[type, dict[str, float]] = {
    # a step may spend half of the curve's account, so that enough is left when the epoch ends
    RunStart: {BAR: 1.0, TABLE: 1.0, CURVE: 1.0},
    StepEnd: {BAR: 1.0, CURVE: 0.5},
    EpochEnd: {TABLE: 1.0, CURVE: 1.0},
    Annotation: {CURVE: 1.0},
}
"""What an event puts out of date, and how deep the part's account may be drawn on for it."""
NO_WIDGETS = "Training; this page shows no widgets. view='text' prints the rows instead."
VIEW_MIME = "application/vnd.jupyter.widget-view+json"


class WidgetView:
    """Draws with stock ipywidgets, within a time budget; a history that has rows already is drawn at once."""

    def __init__(
        self,
        history: History,
        controls: RunControls | None = None,
        title: str = "",
        clock: Clock = CLOCK,
        publish: Publish = to_notebook,
    ) -> None:
        self._history, self._controls, self._publish = history, controls, publish
        self._status = RunStatus(history, title)
        self._printer = Printer()
        self._budget = Budget(BUDGET_SHARES, clock)
        self._id = new_id()
        self._stale: dict[str, float] = {}  # how deep the account may be drawn on for each part that is out of date
        self._group: WidgetGroup | None = None
        if history.rows or controls is not None:
            self._open()  # also where workers are still starting, since the cell may be over before they have begun

    def show(self, event: Event) -> None:
        """Take one event; draw what it makes stale as far as the budget allows."""
        if isinstance(event, Output):
            self._printer.show(event)
            return
        self._status.record(event)
        if self._group is None:
            self._open()
            return
        if isinstance(event, RunStart):
            self._group.footer.value = html.footer(event.where, self._hint())
        if isinstance(event, PauseChanged):
            self._pause(self._group, event.paused)
        for kind, overdraft in REDRAWS.get(type(event), {}).items():
            self._stale[kind] = max(overdraft, self._stale.get(kind, 0.0))
        self._draw(self._group)

    def _pause(self, group: "WidgetGroup", on: bool) -> None:
        if group.buttons is not None:
            group.buttons.show_paused(on)
        group.parts[BAR].value = self._piece(BAR)  # whatever the budget: nothing else may come for long

    def close(self) -> None:
        """Put the static record in place of the widgets, and close them."""
        if self._group is None:
            return
        self._status.closed = True
        self._publish(record(self._history, self._status.summary()), self._id, update=True)
        self._group.close()
        self._group = None

    def _open(self) -> None:
        where = self._status.start.where if self._status.start else ""
        buttons = Buttons(self._controls) if self._controls else None
        self._group = WidgetGroup(self._pieces(), html.footer(where, self._hint()), buttons)
        bundle = {VIEW_MIME: self._group.view, "text/plain": NO_WIDGETS}
        self._publish(bundle, self._id, update=False)

    def _hint(self) -> str:
        return "" if self._controls else html.INTERRUPT

    def _pieces(self) -> dict[str, str]:
        return {kind: self._piece(kind) for kind in (BAR, TABLE, CURVE)}

    def _piece(self, kind: str) -> str:
        epochs = self._status.start.epochs if self._status.start else None
        match kind:
            case "table":
                return html.rows(self._history, epochs)
            case "curve":
                return html.curve(self._history, epochs)
            case _:
                return html.bar(self._status)

    def _draw(self, group: "WidgetGroup") -> None:
        for kind in (TABLE, BAR, CURVE):
            if kind in self._stale and self._budget.allows(kind, self._stale[kind]):
                with self._budget.spend(kind):
                    group.parts[kind].value = self._piece(kind)
                del self._stale[kind]


class WidgetGroup:
    """The widgets: three parts that change, a footer that stays, buttons where there is someone to hear them."""

    def __init__(self, pieces: dict[str, str], footer: str, buttons: Buttons | None) -> None:
        from ipywidgets import HTML, Box

        # one layout and one style for all parts: each model of its own costs a message when it opens and when it closes
        first = HTML(pieces[BAR], _dom_classes=("quik-wide",))
        shared = {"layout": first.layout, "style": first.style}
        self.parts: dict[str, Any] = {BAR: first}
        self.parts |= {kind: HTML(pieces[kind], **shared) for kind in (TABLE, CURVE)}
        self.footer = HTML(footer, _dom_classes=("quik-wide",), **shared)
        self.buttons = buttons
        row = [Box(buttons.widgets, _dom_classes=("quik-wide", "quik-buttons"))] if buttons else []
        children = (self.parts[BAR], *row, self.parts[TABLE], self.parts[CURVE], self.footer)
        self._box = Box(children, layout=first.layout, _dom_classes=("quik-view",))

    @property
    def view(self) -> dict[str, Any]:
        """What a page needs to find the widgets."""
        return {"version_major": 2, "version_minor": 0, "model_id": self._box.model_id}

    def close(self) -> None:
        """Close every model, their layouts and styles too, so that none is saved with the notebook."""
        for part in (*self.parts.values(), self.footer):
            part.value = ""  # nbclient saves the state of closed widgets as well: let there be nothing in it
        for model in {id(model): model for model in _models(self._box)}.values():
            model.close()


def _models(widget: Any) -> list[Any]:
    """A widget with all that it is made of."""
    own = [widget, widget.layout, *([widget.style] if hasattr(widget, "style") else [])]
    return own + [model for child in getattr(widget, "children", ()) for model in _models(child)]
