"""The log of a session's runs: one record per call of train(), with the settings changed since the previous one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quik_nb.events import Row
from quik_nb.history import History, score
from quik_nb.recipe.description import described
from quik_nb.recipe.recipe import Recipe
from quik_nb.session.run import Run

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class RunRecord:
    """One call of train()."""

    settings: Mapping[str, str]
    """settings and parts of the recipe by name, as text"""
    first: int
    """its first epoch"""
    history: History
    run: Run | None
    """None once a later run has started: the traceback of its error may reference large tensors"""
    changed: str = ""
    """what differs from the previous run"""
    final_rows: list[Row] | None = None
    """None until the run has ended"""
    final_state: str = ""
    """`Run.state` at its end, once `run` is None"""

    @property
    def state(self) -> str:
        """The state of the run, as `Run.state`."""
        return self.final_state if self.run is None else self.run.state

    @property
    def rows(self) -> list[Row]:
        """The rows of this run so far."""
        if self.final_rows is not None:
            return self.final_rows
        return [row for row in self.history if row.epoch >= self.first]

    def settle(self) -> None:
        """Fix the rows of this run, whose history a later run may continue."""
        self.final_rows = self.rows

    def drop_run(self) -> None:
        """Drop the reference to the run, and remember only how it ended."""
        self.final_state, self.run = self.state, None


class RunLog:
    """The runs of a session, oldest first."""

    def __init__(self) -> None:
        self.records: list[RunRecord] = []

    def add(self, recipe: Recipe, first: int, run: Run) -> None:
        """Add a run that was started.

        Args:
            recipe: the recipe of the run.
            first: its first epoch.
            run: its handle.
        """
        settings = described(recipe)
        before = self.records[-1].settings if self.records else None
        for record in self.records:
            record.drop_run()
        self.records.append(RunRecord(settings, first, run.record, run, difference(before, settings)))

    def settle(self) -> None:
        """Fix the rows of the latest run, which has ended."""
        self.records[-1].settle()

    def table(self) -> "pd.DataFrame":
        """One line per run: epochs, best epoch and its loss, time in seconds, state, and what was changed."""
        return _table(self.records)

    def histories(self) -> dict[str, History]:
        """The rows of each run that has any, by run number and what was changed for it."""
        named = {}
        for number, record in enumerate(self.records):
            unchanged = "as before" if number else "first"
            if record.rows:
                named[f"{number}: {record.changed or unchanged}"] = History(record.rows)
        return named


def difference(before: Mapping[str, str] | None, now: Mapping[str, str]) -> str:
    """The settings that differ, written as keyword arguments.

    >>> difference({"lr": "0.1", "seed": "1"}, {"lr": "0.2", "seed": "1"})
    'lr=0.2'
    """
    if before is None:
        return ""
    changed = [f"{name}={value}" for name, value in now.items() if before.get(name) != value]
    return ", ".join([*changed, *(f"no {name}" for name in before if name not in now)])


def _table(records: Sequence[RunRecord]) -> "pd.DataFrame":
    import pandas as pd

    lines: list[dict[str, Any]] = []
    for number, record in enumerate(records):
        rows = record.rows
        own = History(rows)
        own.ranking = record.history.ranking
        best = own.best  # a row without a valid_loss is not compared with one that has it
        lines.append(
            {
                "run": number,
                "state": record.state,
                "epochs": f"{rows[0].epoch}-{rows[-1].epoch}" if rows else "none",
                "best_epoch": None if best is None else best.epoch,
                "best_loss": None if best is None else score(best),
                "time": sum(row.time for row in rows),
                "changed": record.changed,
            }
        )
    columns = ["run", "state", "epochs", "best_epoch", "best_loss", "time", "changed"]
    return pd.DataFrame(lines, columns=columns).set_index("run")
