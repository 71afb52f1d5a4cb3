"""The training that a session has under way: how far it has come, its history, and where its files are."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quik_nb.errors import CheckpointError
from quik_nb.history import History, score
from quik_nb.recipe import Recipe
from quik_nb.settings import Settings
from quik_nb.sources import SPLITS
from quik_nb.training.checkpoint import Files, copied, stamp
from quik_nb.training.resume import write_history, write_recipe
from quik_nb.training.saver import Saver
from quik_nb.training.snapshot import Progress, Snapshot


@dataclass
class State:
    """From the first epoch on, over all calls of train(), until the model is replaced or the session is reset."""

    history: History = field(default_factory=History)
    progress: Progress = field(default_factory=Progress)
    trained: Recipe | None = None
    """the recipe of the last call of train()"""
    original: dict[str, Any] | None = None
    """the weights of before the first epoch"""
    folder: Path | None = None
    """the run folder, once something was saved there"""
    files: Files | None = None
    """where the last call of train() saves weights; None where it does not"""
    first: int = 0
    """the epoch that it began with"""
    saved: dict[int, tuple[Path, tuple[int, int]]] = field(default_factory=dict)
    """by epoch, the file of its weights and what that looked like, so that another training's is not taken for it"""

    def _saver(self, settings: Settings, at_once: bool) -> Saver | None:
        """What writes this training's files; None where none are wanted."""
        self.first, self.files = self.progress.epoch, None
        if not settings.save:
            return None
        self.files = files = Files(Path(settings.base_dir), settings.date)
        if self.folder is None:
            parts = ["run", files.date, time.strftime("%H%M%S"), settings.name]
            self.folder = _unused(files.folder / "_".join(filter(None, parts)))
        written = [epoch for epoch, (path, _) in self.saved.items() if path == files.weights(epoch)]
        scores = {row.epoch: score(row) for row in self.history}
        return Saver(self.folder, files, keep=settings.keep, at_once=at_once, written=written, scores=scores)

    def begin(self, recipe: Recipe, at_once: bool) -> Saver | None:
        """Before a call of train(): remember the weights, and write what another kernel needs to go on.

        Args:
            recipe: to train by.
            at_once: whether an epoch's files must be there when its row is told of, however short it is.
        """
        assert recipe.model is not None  # Recipe.check has seen to it
        if self.original is None:
            self.original = copied(recipe.model.state_dict())
        new = self.folder is None
        saver = self._saver(recipe.settings, at_once)
        if saver is not None and new:
            write_history(self.history, saver.folder)  # of trainings that saved nothing, or saved it elsewhere
        if saver is not None and (new or recipe != self.trained):
            write_recipe(recipe, self.original, saver.folder, samples=new or not self._same_samples(recipe))
        self.trained = recipe
        return saver

    def _same_samples(self, recipe: Recipe) -> bool:
        before = self.trained
        return before is not None and all(getattr(before, s) is getattr(recipe, s) for s in SPLITS)

    def settle(self, outcome: Snapshot) -> None:
        """Take the state of the last row as that to go on from."""
        self.progress = outcome.progress
        if outcome.row is not None and (not self.history.rows or self.history.rows[-1].epoch < outcome.row.epoch):
            self.history.add(outcome.row)
        if self.files is not None:
            self.stamp(self.files, self.first)

    def stamp(self, files: Files, first: int = 0) -> None:
        """Remember the weight files of whole epochs, from the first one on, as this training's own."""
        for epoch in [row.epoch for row in self.history if row.epoch >= first and row.share == 1.0]:
            path = files.weights(epoch)
            if path.exists():  # `keep` may have removed it
                self.saved[epoch] = path, stamp(path)

    def weights_file(self, epoch: int, files: Files) -> Path:
        """The file of an epoch's weights.

        Raises:
            CheckpointError: they were not saved, or the file is another training's by now.
        """
        if epoch not in self.saved:
            saved = ", ".join(map(str, sorted(self.saved))) or "none"
            raise CheckpointError(
                f"The weights of epoch {epoch!r} were not saved by this session (saved are: {saved}): train with "
                f"save=True, or load a file with add_model(model, state_dict={str(files.weights(epoch))!r})."
            )
        path, written = self.saved[epoch]
        if path.exists() and stamp(path) != written:
            raise CheckpointError(
                f"{path} has been overwritten since this session saved it, so it holds another training's weights: "
                f"give each session a base_dir of its own, or load it by add_model(model, state_dict={str(path)!r})."
            )
        return path


def _unused(folder: Path) -> Path:
    """The folder, with a number behind it where it exists already."""
    candidate, number = folder, 1
    while candidate.exists():
        candidate, number = folder.with_name(f"{folder.name}_{number}"), number + 1
    return candidate
