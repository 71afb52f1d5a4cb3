"""The training that a session has under way: how far it has come, its history, and where its files are."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quik_nb.errors import CheckpointError
from quik_nb.history import History, score
from quik_nb.recipe.data import SPLITS
from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.settings import Settings
from quik_nb.storage.checkpointer import Saver
from quik_nb.storage.files import Files, weights_in
from quik_nb.storage.locks import hold
from quik_nb.storage.run_folder import write_history, write_recipe
from quik_nb.training.progress import Progress, Snapshot
from quik_nb.training.pytree import to_cpu_copy


@dataclass
class State:
    """From the first epoch on, over all calls of train(), until the model is replaced or the session is reset."""

    history: History = field(default_factory=History)
    progress: Progress = field(default_factory=Progress)
    trained: Recipe | None = None
    """the recipe of the last call of train()"""
    original: dict[str, Any] | None = None
    """the weights of before the first epoch"""
    held: int | None = None
    """the epoch whose weights were loaded back, until training goes on from them"""
    folder: Path | None = None
    """the run folder, once something was saved there"""
    earlier: tuple[Path, int] | None = None
    """the run folder of an earlier session whose weights are ours, and up to which epoch"""
    held_folder: int | None = None
    """the lock of the run folder, while a training writes there"""

    def _saver(self, settings: Settings, at_once: bool) -> Saver | None:
        """What writes this training's files; None where none are wanted."""
        if not settings.save:
            return None
        files = Files(Path(settings.base_dir), settings.date)
        if self.folder is None:
            parts = ["run", files.date, time.strftime("%H%M%S"), settings.name]
            self.folder = _made(files.folder / "_".join(filter(None, parts)))
        written = [epoch for epoch, path in self.saved().items() if path.parent == self.folder]
        scores = dict.fromkeys(written, math.inf) | {row.epoch: score(row) for row in self.history.comparable}
        return Saver(self.folder, files, keep=settings.keep, at_once=at_once, written=written, scores=scores)

    def begin(self, recipe: Recipe, at_once: bool) -> Saver | None:
        """Before a call of train(): remember the weights, and write what another kernel needs to go on.

        Args:
            recipe: to train by.
            at_once: whether an epoch's files must be there when its row is told of, however short it is.
        """
        assert recipe.model is not None  # Recipe.check has seen to it
        if self.original is None:
            self.original = to_cpu_copy(recipe.model.state_dict())
        self.release()
        if recipe.settings.save and self.folder is not None:
            self._hold(self.folder)
        new = self.folder is None
        saver = self._saver(recipe.settings, at_once)
        if saver is not None and new:
            self._hold(saver.folder)
        if saver is not None:  # whole, as calls that saved nothing, or that could not, have left gaps
            write_history(self.history, saver.folder)
        if saver is not None and (new or recipe != self.trained):
            others = new or not self._same_samples(recipe)
            write_recipe(recipe, self.original, saver.folder, samples=others, before=None if new else self.trained)
        self.trained = recipe
        return saver

    def _hold(self, folder: Path) -> None:
        """Have a folder for ourselves; where another session trains in it, as in a kernel that lives on, leave it."""
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # without locks there is nobody to ask
            self.held_folder = hold(folder)
            if self.held_folder is None:
                self.earlier, self.folder = (folder, self.progress.epoch), None

    @contextmanager
    def released_on_error(self) -> Iterator[None]:
        """Within it, a training that fails, also before it has begun, lets go of the run folder."""
        try:
            yield
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let others write into the run folder."""
        if self.held_folder is not None:
            os.close(self.held_folder)
            self.held_folder = None

    def _same_samples(self, recipe: Recipe) -> bool:
        before = self.trained
        return before is not None and all(getattr(before, s) is getattr(recipe, s) for s in SPLITS)

    def settle(self, outcome: Snapshot) -> None:
        """Take the state of the last row as that to go on from."""
        self.progress = outcome.progress
        row, rows = outcome.row, self.history.rows
        if row is not None and (not rows or (rows[-1].epoch, rows[-1].fraction) < (row.epoch, row.fraction)):
            self.history.add(row)

    def saved(self) -> dict[int, Path]:
        """By epoch, the file of its weights: those of whole epochs that are still there."""
        found = {}
        for row in self.history:
            places = [self.folder] if self.folder is not None else []
            places += [self.earlier[0]] if self.earlier is not None and row.epoch < self.earlier[1] else []
            paths = [weights_in(place, row.epoch) for place in places]
            there = next((path for path in paths if row.fraction == 1.0 and path.exists()), None)
            if there is not None:
                found[row.epoch] = there
        return found

    def weights_file(self, epoch: int, files: Files) -> Path:
        """The file of an epoch's weights.

        Raises:
            CheckpointError: they were not saved, or are gone.
        """
        saved = self.saved()
        if epoch not in saved:
            listed = ", ".join(map(str, saved)) or "none"
            raise CheckpointError(
                f"The weights of epoch {epoch!r} were not saved by this session (saved are: {listed}): train with "
                f"save=True, or load a file with add_model(model, state_dict={str(files.weights(epoch))!r})."
            )
        return saved[epoch]


def _made(folder: Path) -> Path:
    """A new folder of this name, with a number behind it where there is one; two sessions never make the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    candidate, number = folder, 1
    while True:
        try:
            candidate.mkdir()
        except FileExistsError:
            candidate, number = folder.with_name(f"{folder.name}_{number}"), number + 1
        else:
            return candidate
