"""What a view is: it is shown each event of a training, in order, and draws them as it likes."""

from typing import Protocol

from quik_nb.events import Event


class View(Protocol):
    """Draws a training. It knows events and the history, and no torch."""

    def show(self, event: Event) -> None:
        """Take one event; draw if there is something to draw and the time budget allows it."""

    def close(self) -> None:
        """Leave the final picture behind; called once, also after an error or an interrupt."""


class RunControls(Protocol):
    """What a view's buttons may do to the run they stand under."""

    def stop(self) -> None:
        """End the run at the next step boundary and keep everything."""

    def pause(self) -> None:
        """Hold the run at the next step boundary."""

    def resume(self) -> None:
        """Go on after a pause."""

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all parameter groups from the next step on."""
