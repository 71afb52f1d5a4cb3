"""The view in a terminal and in a log: one line per epoch as it finishes; in a terminal a bar for the run."""

import sys
from typing import TYPE_CHECKING, Any, TextIO

from quik_nb.events import EpochEnd, Event, Output, Row, RunEnd, RunFailed, RunStart, StepEnd
from quik_nb.history import History
from quik_nb.views.observations import observation
from quik_nb.views.output import Printer
from quik_nb.views.status import RunStatus
from quik_nb.views.table import aligned, all_columns, cells, header, mark_best, text

if TYPE_CHECKING:
    from tqdm import tqdm

NARROW = 9
"""Characters of a column at least, so that the table of a run lines up although its rows come one by one."""


class TextView:
    """Prints rows to `out`; draws the bar on `err` if that is a terminal, else nothing there."""

    def __init__(self, history: History, title: str = "", out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._history = history
        self._out = out
        self._err = err
        self._status = RunStatus(history, title)
        self._printer = Printer()
        self._bar: tqdm[Any] | None = None
        self._columns: list[str] = []
        self._shown = False

    def show(self, event: Event) -> None:
        """Print what is finished, move the bar."""
        self._status.record(event)
        match event:
            case RunStart():
                self._shown = True
                self._begin(event)
            case StepEnd():
                self._move()
            case EpochEnd(row=row, best=best):
                self._end_bar()
                self._print_row(row, best)
            case Output():
                self._printed(event)
            case RunEnd() | RunFailed():
                self._end_bar()

    def close(self) -> None:
        """Print how it ended; the table of a history that no run was shown of."""
        self._end_bar()
        self._status.closed = True
        if self._shown:
            self._print(self._status.summary())
            self._print(observation(self._history, self._status.data_wait))
        elif self._history.rows:
            self._print(text(self._history))
        self._shown = False

    def _begin(self, event: RunStart) -> None:
        """Where it trains, and the rows that it has by now; those of earlier runs stand above, or elsewhere."""
        self._print(event.where)
        for row in self._history.rows:
            if row.epoch >= event.epoch and row.fraction == 1.0:
                self._print_row(row, best=False)

    def _print(self, line: str) -> None:
        out = self._out or sys.stdout
        words = line + "\n" if line else ""
        try:
            out.write(words)
        except UnicodeEncodeError:  # a terminal or a log of few letters
            known = getattr(out, "encoding", None) or "ascii"
            out.write(words.encode(known, "replace").decode(known))
        out.flush()  # a log that is followed shows each epoch when it ends

    def _print_row(self, row: Row, best: bool) -> None:
        columns = all_columns(self._history, self._status.columns)
        names = header(columns)
        widths = [max(NARROW, len(name) + 1) for name in names]
        if columns != self._columns:
            self._columns = columns
            self._print(aligned(names, widths))

        values = cells(row, columns)
        self._print(aligned(mark_best(values, row) if best else values, widths))

    def _printed(self, event: Output) -> None:
        if self._bar is not None:
            self._bar.clear()
        self._printer.show(event)
        if self._bar is not None:
            self._bar.refresh()

    def _move(self) -> None:
        err = self._err or sys.stderr
        if not err.isatty():
            return

        if self._bar is None:
            self._bar = _bar(err)
        words = [self._status.status(), self._status.facts()]
        self._bar.set_description_str(" · ".join(filter(None, words)), refresh=False)
        self._bar.n = round(100 * self._status.run_share)
        self._bar.refresh()

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _bar(err: TextIO) -> "tqdm[Any]":
    """A bar for the whole run, in percent."""
    from tqdm import tqdm

    # the words are those of the other views; steps come some ten times a second at most, so each is drawn
    form = "{percentage:3.0f}% |{bar:12}| {desc}"
    bar: tqdm[Any] = tqdm(total=100, bar_format=form, file=err, leave=False, dynamic_ncols=True, mininterval=0)
    return bar
