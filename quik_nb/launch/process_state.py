"""What a worker takes over from the launching process beside its job: environment, torch's switches, logging.

In process a training sees whatever a cell has set before it. A worker is forked from a clean server, so all of that is
sent along. What is not here: what a fork must be rid of (`worker.py`).
"""

import logging
import logging.handlers
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quik_nb.training import torch_switches


@dataclass(frozen=True)
class ProcessState:
    """The state of a process that a training depends on: plain values that can be pickled."""

    environment: dict[str, str]
    switches: torch_switches.Switches
    log_levels: dict[str, int] = field(default_factory=dict)
    """by logger's name: those that were set; "root" for the root logger"""

    @classmethod
    def capture(cls) -> "ProcessState":
        """The state of this process now."""
        loggers = {name: logging.getLogger(name) for name in list(logging.root.manager.loggerDict)}
        levels = {name: logger.level for name, logger in loggers.items() if logger.level != logging.NOTSET}
        return cls(dict(os.environ), torch_switches.capture(), {**levels, "root": logging.root.level})

    def restore(self) -> None:
        """Take it over in this process."""
        os.environ.clear()
        os.environ.update(self.environment)
        torch_switches.restore(self.switches)
        for name, level in self.log_levels.items():
            logging.getLogger(None if name == "root" else name).setLevel(level)


class RecordSender(logging.handlers.QueueHandler):
    """A handler that sends the records of a worker to the launching process.

    Args:
        send: takes a record that can be pickled.
    """

    def __init__(self, send: Callable[[Any], None]) -> None:
        super().__init__(queue=None)  # type: ignore[arg-type]  # `enqueue` is all that knows of it
        self._send = send

    def enqueue(self, record: logging.LogRecord) -> None:
        self._send(record)


def send_logs(send: Callable[[Any], None] | None) -> None:
    """Have the root logger of this process send its records, instead of what handled them in the process it came from.

    Args:
        send: takes a record; None drops them.
    """
    logging.root.handlers = [logging.NullHandler() if send is None else RecordSender(send)]


def handle_log(record: logging.LogRecord) -> None:
    """Handle a worker's record here, as the logger of its name is set up."""
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
