"""User callbacks by kind of event: what `session.on()` and `session.off()` register and remove.

What is not here: the events themselves (`events.py`), and when they are sent (`run.py`).
"""

from collections.abc import Callable
from typing import Any

from quik_nb.errors import RecipeError, suggest
from quik_nb.recipe.equality import same

EVENTS = {"RunStart": "run_start", "StepEnd": "step_end", "EpochEnd": "epoch_end", "RunEnd": "run_end"}
"""The event names that `session.on()` accepts, by the class name of their record."""


class Listeners:
    """Callbacks by event, in the order in which they were registered."""

    def __init__(self) -> None:
        self._pairs: list[tuple[str, Callable[[Any], None]]] = []

    def add(self, event: str, function: Callable[[Any], None]) -> None:
        """Register a callback; it replaces an equal one from an earlier run of the same cell.

        Args:
            event: a name of `EVENTS`.
            function: called with the event record.

        Raises:
            RecipeError: `event` does not exist or `function` is not callable.
        """
        if event not in EVENTS.values():
            raise RecipeError(f"on: there is no event {event!r}: {suggest(str(event), EVENTS.values())}")
        if not callable(function):
            raise RecipeError(
                f"on: {function!r} is not callable, so it cannot be called with an event: "
                f"use on({event!r}, lambda event: ...)."
            )
        self._pairs = [pair for pair in self._pairs if not same(pair, (event, function))]
        self._pairs.append((event, function))

    def remove(self, event: str | None = None) -> None:
        """Remove the callbacks of one event; None for all of them."""
        self._pairs = [pair for pair in self._pairs if event is not None and pair[0] != event]

    @property
    def functions(self) -> list[Callable[[Any], None]]:
        """All callbacks, for any event."""
        return [function for _, function in self._pairs]

    def call(self, event: Any) -> None:
        """Call the callbacks of an event; their exceptions propagate."""
        name = EVENTS.get(type(event).__name__)
        for registered, function in self._pairs:
            if registered == name:
                function(event)
