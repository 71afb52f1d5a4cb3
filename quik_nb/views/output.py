"""What workers print goes to the output that the run belongs to, with the rank in front where it is not rank 0."""

import contextvars
import sys

from quik_nb.events import Output


class Printer:
    """Prints as the cell that made it would: a thread's own prints are shown under no cell or under a wrong one.

    The kernel keeps "which cell does this belong to" in context variables; a copy of the context carries it along.
    """

    def __init__(self) -> None:
        self._context = contextvars.copy_context()

    def show(self, event: Output) -> None:
        """Print the text with each line told from whom it is."""
        self._context.copy().run(write, event)


def write(event: Output) -> None:
    """Write to `sys.stdout` or `sys.stderr` as they are now; rank 0 as it stands, the others line by line."""
    text = event.text
    if event.rank > 0:
        text = "".join(f"[rank {event.rank}] {line}\n" for line in text.splitlines())
    (sys.stderr if event.stream == "stderr" else sys.stdout).write(text)
