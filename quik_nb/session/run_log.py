"""The runs of a session: a record for each call of train(), with the settings changed since the one before."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quik_nb.events import Row
from quik_nb.history import History, score
from quik_nb.recipe.data import SPLITS
from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.settings import SETTINGS
from quik_nb.session.run import Run

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class RunRecord:
    """One call of train()."""

    settings: Mapping[str, str]
    """what was trained how, in words, by name"""
    first: int
    """the epoch it began with"""
    history: History
    run: Run | None
    """None once a later run was started: an error that it ended with may hold on to all that was computed then"""
    changed: str = ""
    """what differs from the run before"""
    rows: list[Row] | None = None
    """None until it is over"""
    ended: str = ""

    @property
    def state(self) -> str:
        """Of its run, as `Run.state`."""
        return self.ended if self.run is None else self.run.state

    @property
    def own(self) -> list[Row]:
        """The rows of this run, also while it runs."""
        return [row for row in self.history if row.epoch >= self.first] if self.rows is None else self.rows

    def settle(self) -> None:
        """Keep the rows of this run, which a later one may go on from."""
        self.rows = self.own

    def let_go(self) -> None:
        """Keep no more of its run than how it ended."""
        self.ended, self.run = self.state, None


class RunLog:
    """The runs of a session, the oldest first."""

    def __init__(self) -> None:
        self.records: list[RunRecord] = []

    def add(self, recipe: Recipe, first: int, run: Run) -> None:
        """Note a run that was started.

        Args:
            recipe: what it trains by.
            first: the epoch it begins with.
            run: its handle.
        """
        words = described(recipe)
        before = self.records[-1].settings if self.records else None
        for record in self.records:
            record.let_go()
        self.records.append(RunRecord(words, first, run.record, run, difference(before, words)))

    def settle(self) -> None:
        """Keep the rows of the latest run, which is over."""
        self.records[-1].settle()

    def table(self) -> "pd.DataFrame":
        """One line for each run: epochs, the best loss and where, seconds, state, and what was changed."""
        return _table(self.records)

    def histories(self) -> dict[str, History]:
        """The rows of each run that has some, by its number and what was changed for it."""
        named = {}
        for number, record in enumerate(self.records):
            unchanged = "as before" if number else "first"
            if record.own:
                named[f"{number}: {record.changed or unchanged}"] = History(record.own)
        return named


def described(recipe: Recipe) -> dict[str, str]:
    """The parts of a recipe in words, and its settings without those of the screen and the files, by name."""
    parts = {"model": type(recipe.model).__name__, "criterion": recipe.criterion}
    parts |= {f"optimizer {name}".strip(): spec for name, spec in recipe.optimizers.items()}

    for split in SPLITS:
        source = getattr(recipe, split)
        with suppress(TypeError):  # a stream may not know
            parts[split] = None if source is None else f"{len(source):,} samples"

    parts |= {f"scheduler {name}".strip(): spec for name, spec in recipe.schedulers.items()}
    parts["metrics"] = ", ".join(recipe.metrics) or None
    parts["step"] = None if recipe.step is None else getattr(recipe.step, "__name__", "own")
    parts = {name: value for name, value in parts.items() if value is not None}

    settings = {n: v for n, v in vars(recipe.settings).items() if SETTINGS[n].scope != "screen"}
    return {name: f"{value}" for name, value in {**parts, **settings}.items()}


def difference(before: Mapping[str, str] | None, now: Mapping[str, str]) -> str:
    """The settings that differ, as one would write them.

    >>> difference({"lr": "0.1", "seed": "1"}, {"lr": "0.2", "seed": "1"})
    'lr=0.2'
    """
    if before is None:
        return ""
    changed = [f"{name}={value}" for name, value in now.items() if before.get(name) != value]
    return ", ".join([*changed, *(f"no {name}" for name in before if name not in now)])


def _table(records: Sequence[RunRecord]) -> "pd.DataFrame":
    """One line for each run: epochs, the best loss and where, seconds, state, and what was changed."""
    import pandas as pd

    lines: list[dict[str, Any]] = []
    for number, record in enumerate(records):
        rows = record.own
        best = History(rows).best  # a row without its validation is no match for one with it
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
