"""The functions that a user wants called with the events of a training, by the kind of event."""

from collections.abc import Callable
from typing import Any

from quik_nb.errors import RecipeError, suggest
from quik_nb.recipe.equality import same

EVENTS = {"RunStart": "run_start", "StepEnd": "step_end", "EpochEnd": "epoch_end", "RunEnd": "run_end"}
"""The events that `on` knows, by the name of their record."""


class Listeners:
    """Functions by event, in the order in which they were added."""

    def __init__(self) -> None:
        self._pairs: list[tuple[str, Callable[[Any], None]]] = []

    def add(self, event: str, function: Callable[[Any], None]) -> None:
        """Add a function, in place of the same one of a cell that was run before.

        Raises:
            RecipeError: there is no such event, or it is no function.
        """
        if event not in EVENTS.values():
            raise RecipeError(f"on: there is no event {event!r}: {suggest(str(event), EVENTS.values())}")
        if not callable(function):
            raise RecipeError(f"on: {function!r} is no function of an event: use on({event!r}, lambda event: ...).")
        self._pairs = [pair for pair in self._pairs if not same(pair, (event, function))]
        self._pairs.append((event, function))

    def remove(self, event: str | None = None) -> None:
        """Remove the functions of one event, or all of them."""
        self._pairs = [pair for pair in self._pairs if event is not None and pair[0] != event]

    @property
    def functions(self) -> list[Callable[[Any], None]]:
        """All of them, for whichever event."""
        return [function for _, function in self._pairs]

    def call(self, event: Any) -> None:
        """Call those that wait for events of this kind; what they raise comes through."""
        name = EVENTS.get(type(event).__name__)
        for wanted, function in self._pairs:
            if wanted == name:
                function(event)
