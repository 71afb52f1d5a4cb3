"""The live view in a notebook: bars, the table and the curve, and in the end a plain record in the same places.

Two outputs make it. The widgets live as long as the run. In front of them stands a plain output with the rows so far,
which they hide: a page that is loaded again while the kernel is busy, and a notebook that is opened without its kernel,
cannot draw the widgets and show that output instead. When the run ends it becomes the record, and the widgets are
closed, so that the saved notebook needs none to show them.
"""

from typing import Any

from quik_nb.events import Annotation, EpochEnd, Event, Output, PauseChanged, RunStart, StepEnd
from quik_nb.history import History
from quik_nb.views import html
from quik_nb.views.base import RunControls
from quik_nb.views.budget import CLOCK, Budget, Clock
from quik_nb.views.buttons import Buttons
from quik_nb.views.format import short_path
from quik_nb.views.mime import Publish, new_id, to_notebook
from quik_nb.views.output import Printer
from quik_nb.views.static_record import record, stand_in
from quik_nb.views.status import RunStatus

TABLE, CURVE, BAR, SAVED = "table", "curve", "bar", "saved"
BUDGET_SHARES = {TABLE: 0.56, CURVE: 0.22, BAR: 0.09, SAVED: 0.13}
"""What each may spend of the time for drawing: a row for every epoch matters more than a smooth curve."""
SAVED_SECONDS = 3.0
"""Before the first and between two updates of what a saved notebook holds, which saves itself every two minutes."""
REDRAWS: dict[type, dict[str, float]] = {
    # a step may spend a third of the curve's account, so that enough is left when the epoch ends
    RunStart: {BAR: 1.0, TABLE: 1.0, CURVE: 1.0},
    StepEnd: {BAR: 1.0, CURVE: 0.35},
    EpochEnd: {TABLE: 1.0, CURVE: 1.0, SAVED: 1.0},
    Annotation: {CURVE: 1.0},
}
"""What an event puts out of date, and how deep the part's account may be overdrawn for it."""
VIEW_MIME = "application/vnd.jupyter.widget-view+json"
NOTHING = {"text/html": "", "text/plain": ""}
"""Of no height in a notebook, and in nbconvert no reason to warn, as an empty bundle would be."""
NOTHING_YET = {"text/html": html.STYLE, "text/plain": ""}
"""A place in the page for what comes later. Its height is 0, or the page would jump before the widgets are there; it
has the style, so that these are in their places from the first."""


class WidgetView:
    """Draws with stock ipywidgets, within a time budget; a history that has rows already is drawn at once.

    Args:
        history: has taken in each event before it is shown here.
        controls: what the buttons may do; None for none.
        title: the session's name.
        folder: the run folder by which the run can be resumed; empty where there is none.
        clock: for the budget.
        publish: puts outputs on the page.
    """

    def __init__(
        self,
        history: History,
        controls: RunControls | None = None,
        title: str = "",
        folder: str = "",
        clock: Clock = CLOCK,
        publish: Publish = to_notebook,
    ) -> None:
        self._history = history
        self._controls = controls
        self._folder = folder
        self._status = RunStatus(history, title, clock.wall)
        self._printer = Printer()
        self._budget = Budget(BUDGET_SHARES, clock, {SAVED: SAVED_SECONDS})
        self._outputs = _Outputs(publish)
        self._stale: dict[str, float] = {}
        """how deep the account may be overdrawn for each part that is out of date"""
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
            self._group.footer.value = self._footer()
        if isinstance(event, PauseChanged):
            self._pause(self._group, event.paused)

        for kind, overdraft in REDRAWS.get(type(event), {}).items():
            self._stale[kind] = max(overdraft, self._stale.get(kind, 0.0))
        if isinstance(event, StepEnd) and not self._history.rows:
            self._stale[SAVED] = 1.0  # the first epoch may take an hour
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
        self._outputs.end(record(self._history, self._status, self._outputs.uid))
        self._group.close()
        self._group = None

    def _open(self) -> None:
        buttons = Buttons(self._controls) if self._controls else None
        pieces = {kind: self._piece(kind) for kind in (BAR, TABLE, CURVE)}
        self._group = WidgetGroup(pieces, self._footer(), buttons)
        self._outputs.begin(self._group.view)
        if self._history.rows:
            self._save()

    def _footer(self) -> str:
        hint = "" if self._controls else html.INTERRUPT
        return self._outputs.style + html.footer(self._history, self._status, hint)

    def _piece(self, kind: str) -> str:
        match kind:
            case "table":
                return html.rows(self._history, html.outlook(self._status))
            case "curve":
                return html.curve(self._history, self._status)
            case _:
                return html.bar(self._status)

    def _save(self) -> None:
        """Put the rows so far where a page finds them that cannot draw the widgets."""
        go_on = "As of the last save of this notebook. session.show() follows the run while its kernel lives"
        if self._folder:
            go_on += f"; QuikSession.resume({short_path(self._folder)!r}) goes on from it after that"
        self._outputs.save(stand_in(self._history, self._status, self._outputs.uid, go_on + "."))

    def _draw(self, group: "WidgetGroup") -> None:
        for kind in (TABLE, BAR, CURVE, SAVED):
            if kind not in self._stale or not self._budget.allows(kind, self._stale[kind]):
                continue
            with self._budget.spend(kind):
                if kind == SAVED:
                    self._save()
                else:
                    group.parts[kind].value = self._piece(kind)
            del self._stale[kind]


class _Outputs:
    """The two outputs under the cell: the plain one in front, and behind it the widgets that hide it."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self.uid = new_id()
        self._plain_id = new_id()
        self._widget_id = new_id()

    @property
    def style(self) -> str:
        """Lives within the widgets, and hides the plain output for as long as they do."""
        return f"<style>.quik-{self.uid} {{ display: none; }}</style>"

    def begin(self, view: dict[str, Any]) -> None:
        """Open both; `view` is what a page needs to find the widgets."""
        self._publish(NOTHING_YET, self._plain_id, update=False)
        # the empty words are what a page takes that cannot draw widgets, and then the plain output is not hidden
        self._publish({VIEW_MIME: view, "text/html": ""}, self._widget_id, update=False)

    def save(self, bundle: dict[str, str]) -> None:
        """Put a bundle into the plain output."""
        self._publish(_with_rule(bundle, self.uid), self._plain_id, update=True)

    def end(self, bundle: dict[str, str]) -> None:
        """Put the last bundle into the plain output, and take the widgets away in one step."""
        self._publish(bundle, self._plain_id, update=True)
        self._publish(NOTHING, self._widget_id, update=True)


def _with_rule(bundle: dict[str, str], uid: str) -> dict[str, str]:
    """Hide "Error displaying widget", which JupyterLab shows behind the plain output where the widgets are gone."""
    rule = (
        f"<style scoped>.jp-OutputArea-child:has(.quik-{uid}) + .jp-OutputArea-child > .lm-Panel:not(:has(*)) "
        f"{{ display: none; }}</style>"
    )
    return bundle | {"text/html": bundle["text/html"] + rule}


class WidgetGroup:
    """The widgets: three parts that change, a footer that stays, buttons where there is someone to hear them."""

    def __init__(self, pieces: dict[str, str], footer: str, buttons: Buttons | None) -> None:
        from ipywidgets import HTML, Box

        # one layout and one style for all parts: each model of its own costs a message when it opens and when it closes
        first = HTML(pieces[BAR], _dom_classes=("quik-wide",))
        shared = {"layout": first.layout, "style": first.style}
        self.parts: dict[str, Any] = {BAR: first}
        self.parts[TABLE] = HTML(pieces[TABLE], **shared)
        self.parts[CURVE] = HTML(pieces[CURVE], _dom_classes=("quik-curve",), **shared)
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
