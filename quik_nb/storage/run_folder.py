"""A run folder: made, locked, prepared to be resumed, and read again.

`recipe.pt` holds the recipe without its samples, `samples.pt` the samples where they are small enough to be kept twice.
Both are written when a run begins by another recipe than the one there, and take their names with its first checkpoint.
Reading them runs the code in them: only folders that the user names.
"""

import io
import math
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from quik_nb.errors import CheckpointError
from quik_nb.history import History, score
from quik_nb.recipe.data import SPLITS, Source, Tensors
from quik_nb.recipe.recipe import Recipe
from quik_nb.storage import pickling
from quik_nb.storage.checkpointer import CHECKPOINT, HISTORY, STARTING, Checkpointer, read_checkpoint
from quik_nb.storage.files import Files, replacing, weights_in, write
from quik_nb.storage.locks import hold
from quik_nb.training.carry_over import TrainingState

RECIPE, SAMPLES = "recipe.pt", "samples.pt"

SAMPLES_BYTES = 256 * 2**20
"""Samples up to this size are kept in the run folder; larger ones are to be added again after resume."""


NAME_LENGTH = 50
"""Characters of a session's name in that of its run folder: file systems take 255 bytes, of up to 4 a character."""


class RunFolder:
    """The folder of a training, locked while a run writes there.

    Args:
        path: of the folder, which is there.
        made: folders that were made for it, the innermost first; they go with a run that makes no row.
    """

    def __init__(self, path: Path, made: list[Path]) -> None:
        self.path = path
        self._made = made
        self._lock: int | None = None

    @classmethod
    def open(cls, path: Path | None, new: Path) -> "RunFolder":
        """The folder of the training so far, or a new one.

        Args:
            path: of the folder so far; None where there is none.
            new: of the new one, which gets a number behind its name where there is one; it is also taken where another
                session trains in the folder so far, as in a kernel that lives on.
        """
        if path is not None:
            folder = cls(path, _make(path))
            if folder._locked():
                shutil.rmtree(path / STARTING, ignore_errors=True)  # of a run that was killed before its first row
                return folder

        number, candidate = 0, new
        while True:
            made = _make(candidate)
            if candidate in made:  # by us, and not by another session at the same moment
                folder = cls(candidate, made)
                folder._locked()
                return folder
            number += 1
            candidate = new.with_name(f"{new.name}_{number}")

    def _locked(self) -> bool:
        """Lock the folder; False where another session holds it."""
        try:
            self._lock = hold(self.path)
        except OSError:  # without locks there is nobody to ask
            return True
        return self._lock is not None

    def checkpointer(self, state: TrainingState, before: Recipe | None) -> Checkpointer:
        """What writes the files of a run here, after all that a new kernel needs to go on is prepared.

        Args:
            state: in which the run starts, with this folder.
            before: the recipe of the run before, if there was one.
        """
        assert state.trained_by is not None  # the recipe of the run
        settings = state.trained_by.settings
        scores = {row.epoch: score(row) for row in state.history.comparable}
        written = [epoch for epoch, path in saved_weights(state).items() if path.parent == self.path]
        return Checkpointer(
            self.path,
            Files(Path(settings.base_dir).absolute(), settings.date),
            keep=settings.keep,
            scores={epoch: scores.get(epoch, math.inf) for epoch in written},
            history_before=state.history.to_jsonl(),
            prepared=self._prepare(state, before),
        )

    def _prepare(self, state: TrainingState, before: Recipe | None) -> tuple[str, ...]:
        """Write what the first checkpoint needs beside it; the names of those files."""
        recipe = state.trained_by
        assert recipe is not None
        known = before is not None and (self.path / RECIPE).exists()
        if known and recipe == before:
            return ()

        samples = not known or any(getattr(before, split) is not getattr(recipe, split) for split in SPLITS)
        names = (SAMPLES, RECIPE) if samples else (RECIPE,)
        bare = replace(recipe, train=None, valid=None, test=None)
        try:
            write(
                {"recipe": bare, "original": state.initial_weights},
                self.path / STARTING / RECIPE,
                pickle_module=pickling,
            )
            if samples and size(recipe) <= SAMPLES_BYTES:
                _write_samples({split: getattr(recipe, split) for split in SPLITS}, self.path / STARTING / SAMPLES)
        except Exception as error:  # anything may be in a recipe; that it cannot be written must not stop the training
            warnings.warn(
                f"This training cannot be resumed in another kernel, since a part of it cannot be written ({error}).",
                stacklevel=2,
            )
        return names

    def release(self) -> None:
        """Let others write here."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Remove all that a run brought here which made no row, and let others write."""
        shutil.rmtree(self.path / STARTING, ignore_errors=True)
        if self.path in self._made:
            shutil.rmtree(self.path, ignore_errors=True)
        for folder in self._made:
            with suppress(OSError):  # another training has files there by now
                folder.rmdir()
        self.release()


def _make(folder: Path) -> list[Path]:
    """Make a folder and those around it; gives those that were made by this call, the innermost first."""
    made = []
    for path in reversed([folder, *folder.parents]):
        try:
            path.mkdir()
        except FileExistsError:
            continue
        made.append(path)
    return made[::-1]


def new_folder(files: Files, clock: str, name: str) -> Path:
    """Where a new training writes: `data/run_20210101_120000`, with the session's name behind it.

    Args:
        files: the names by date.
        clock: the time of day, such as "120000".
        name: of the session, of which a folder's name takes no slashes and not more than `NAME_LENGTH`; empty for none.

    >>> new_folder(Files(Path("/tmp"), "20210101"), "120000", "resnet/lr 0.1").name
    'run_20210101_120000_resnet-lr 0.1'
    """
    plain = re.sub(r"[^\w. -]+", "-", name)[:NAME_LENGTH].strip()
    return files.folder.absolute() / "_".join(filter(None, ["run", files.date, clock, plain]))


def saved_weights(state: TrainingState) -> dict[int, Path]:
    """By epoch, the file of its weights: those of whole epochs that are still there."""
    found = {}
    for row in state.history:
        places = [] if state.folder is None else [state.folder]
        if state.earlier_folder is not None and row.epoch < state.earlier_folder[1]:
            places.append(state.earlier_folder[0])
        paths = [weights_in(place, row.epoch) for place in places]
        there = next((path for path in paths if row.fraction == 1.0 and path.exists()), None)
        if there is not None:
            found[row.epoch] = there
    return found


def weights_file(state: TrainingState, epoch: int, files: Files) -> Path:
    """The file of an epoch's weights.

    Raises:
        CheckpointError: they were not saved, or are gone.
    """
    saved = saved_weights(state)
    if epoch not in saved:
        listed = ", ".join(map(str, saved)) or "none"
        raise CheckpointError(
            f"The weights of epoch {epoch!r} were not saved by this session (saved are: {listed}): train with "
            f"save=True, or load a file with add_model(model, state_dict={str(files.weights(epoch))!r})."
        )
    return saved[epoch]


class _TooLarge(Exception):  # noqa: N818  a signal
    """Samples take more room than they may: they are to be added again after resume."""


class _Measured(io.FileIO):
    """A file of `SAMPLES_BYTES` at most: how large a dataset of the user's own is, its pickle alone can tell."""

    full = False

    def write(self, data: Any) -> int:
        self.full = self.tell() + memoryview(data).nbytes > SAMPLES_BYTES
        if self.full:
            raise _TooLarge
        return super().write(data)


def _write_samples(sources: Mapping[str, Source | None], path: Path) -> None:
    with suppress(_TooLarge), replacing(path) as part, _Measured(part, "w") as file:
        try:
            torch.save(sources, file, pickle_module=pickling)
        except Exception as error:  # torch makes another one of what the file raises
            raise _TooLarge if file.full else error from error


def size(recipe: Recipe) -> int:
    """Bytes of the samples in memory, those of all splits once; 0 where they are not tensors."""
    tensors = {t.data_ptr(): t for s in SPLITS for t in _tensors(getattr(recipe, s))}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _tensors(source: Source | None) -> tuple[torch.Tensor, ...]:
    return source.tensors if isinstance(source, Tensors) else ()


def latest_folder(base_dir: Path) -> Path:
    """The run folder under `base_dir` that was written last.

    Raises:
        CheckpointError: there is none.
    """
    folders = [p.parent for p in (base_dir / "data").glob(f"run_*/{CHECKPOINT}")]
    if not folders:
        raise CheckpointError(
            f"There is no run folder with a checkpoint in {base_dir / 'data'}: name one, resume('data/run_...')."
        )
    return max(folders, key=lambda folder: (folder / CHECKPOINT).stat().st_mtime_ns)


@dataclass(frozen=True)
class SavedRun:
    """What a run folder holds."""

    state: TrainingState
    """with the recipe it was trained by"""
    weights: dict[str, Any]


def read_run(folder: Path) -> SavedRun:
    """What a run folder holds, in step: the history up to where the checkpoint stands.

    Raises:
        CheckpointError: something of it is missing or damaged.
    """
    weights, progress, row = read_checkpoint(folder)
    try:
        kept = torch.load(folder / RECIPE, map_location="cpu", weights_only=False)
        there = (folder / SAMPLES).exists()
        sources = torch.load(folder / SAMPLES, map_location="cpu", weights_only=False) if there else {}
    except Exception as error:
        raise CheckpointError(
            f"{folder} has weights, and no recipe that can be read ({type(error).__name__}: {error}): put the session "
            f"together again and take the weights with add_model(model, state_dict='{folder / CHECKPOINT}')."
        ) from error

    history = _read_history(folder / HISTORY)
    within = progress.step > 0
    history.rows = [
        r
        for r in history.rows
        if r.epoch < progress.epoch or (within and r.epoch == progress.epoch and r.fraction < 1.0)
    ]
    end = progress.epoch + (row.fraction if within and row is not None else 0)
    history.annotations = [mark for mark in history.annotations if mark.epoch < end or (within and mark.epoch == end)]
    if row is not None:  # its line may have been cut while it was written
        history.add(row)

    recipe = replace(kept["recipe"], **sources)
    state = TrainingState(history, progress, recipe, kept["original"], folder=folder.absolute())
    return SavedRun(state, weights)


def _read_history(path: Path) -> History:
    try:
        return History.from_jsonl(path.read_text() if path.exists() else "")
    except TypeError as error:
        raise CheckpointError(f"{path} is no history of this version of quik_nb: {error}.") from error
