"""Stop, pause and learning rate under a live view, for a run that leaves the kernel free to hear them."""

from collections.abc import Callable
from typing import Any

from quik_nb.errors import QuikError
from quik_nb.views.base import RunControls
from quik_nb.views.format import first_line


class Buttons:
    """A row of stock widgets that call `controls`; what went wrong is said beside them."""

    def __init__(self, controls: RunControls) -> None:
        from ipywidgets import Button, Label, Layout, Text

        self._controls = controls
        width = Layout(width="96px")
        self.stop = Button(
            description="Stop", icon="stop", layout=width, tooltip="End the run at the next step; all is kept"
        )
        self.pause = Button(description="Pause", icon="pause", layout=width, tooltip="Hold the run at the next step")
        self.lr = Text(
            placeholder="new learning rate",
            continuous_update=False,
            layout=Layout(width="150px"),
            tooltip="From the next step on; press Enter",
        )
        self.said = Label()
        self.stop.on_click(lambda _: self._try(self._stop))
        self.pause.on_click(lambda _: self._try(self._pause))
        self.lr.observe(lambda change: self._try(lambda: self._set_lr(change["new"])), names="value")

    @property
    def widgets(self) -> tuple[Any, ...]:
        """In the order in which they stand."""
        return (self.stop, self.pause, self.lr, self.said)

    def show_paused(self, on: bool) -> None:
        """Offer what can be done now, also where the pause or its end was asked for in code."""
        self.pause.description, self.pause.icon = ("Resume", "play") if on else ("Pause", "pause")

    def _try(self, act: Callable[[], None]) -> None:
        # an exception that leaves a widget's callback ends in the log, where nobody looks
        try:
            act()
        except QuikError as error:
            self.said.value = first_line(str(error))

    def _stop(self) -> None:
        self._controls.stop()
        self.stop.disabled = self.pause.disabled = self.lr.disabled = True
        self.said.value = "stopping at the next step"

    def _pause(self) -> None:
        if self.pause.description == "Pause":
            self._controls.pause()
            self.show_paused(True)
        else:
            self._controls.resume()
            self.show_paused(False)
        self.said.value = ""

    def _set_lr(self, words: str) -> None:
        if not words.strip():
            return
        lr = _positive(words)
        if lr is None:
            self.said.value = f"{first_line(words)!r} is no learning rate; use a number above 0, such as 3e-4"
            return
        self._controls.set_lr(lr)
        self.said.value = f"learning rate {lr:g} from the next step on"
        self.lr.value = ""


def _positive(words: str) -> float | None:
    try:
        number = float(words)
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None
