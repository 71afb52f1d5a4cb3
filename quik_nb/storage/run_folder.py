"""Run folders: creating, locking, preparing for `resume()`, and reading.

`recipe.pt` contains the recipe without its samples, `samples.pt` the samples if they are small enough to be copied.
Both are written at the start of a run whose recipe is not the saved one, and moved into place with its first
checkpoint. Reading them runs pickled code, so only folders that the user names are read.
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

from quik_nb.errors import CheckpointError, QuikWarning
from quik_nb.history import History
from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.samples import SPLITS, Source, Tensors
from quik_nb.storage import pickling
from quik_nb.storage.checkpointer import CHECKPOINT, HISTORY, STARTING, Checkpointer, read_checkpoint
from quik_nb.storage.files import Files, replacing, weights_in, write
from quik_nb.storage.locks import lock
from quik_nb.training.carry_over import TrainingState

RECIPE, SAMPLES = "recipe.pt", "samples.pt"

SAMPLES_BYTES = 256 * 2**20
"""Samples up to this size are copied to the run folder; larger ones must be added again after `resume()`."""

NAME_LENGTH = 50
"""Maximum length of a session's name in the folder name: file systems allow 255 bytes, up to 4 per character."""


class RunFolder:
    """The folder of a training, locked while a run writes to it.

    Args:
        path: of the folder, which exists.
        created: folders created for it, innermost first; `discard` removes them.
    """

    def __init__(self, path: Path, created: list[Path]) -> None:
        self.path = path
        self._created = created
        self._lock: int | None = None

    @classmethod
    def open(cls, path: Path | None, new: Path) -> "RunFolder":
        """Open the folder of the training so far, or create a new one.

        Args:
            path: of the folder so far; None if there is none.
            new: path of the new one, with a number appended if it exists. A new one is also created if another session
                is training in the folder so far, such as one in a kernel that is still running.
        """
        if path is not None:
            folder = cls(path, _create(path))
            if folder._try_lock():
                shutil.rmtree(path / STARTING, ignore_errors=True)  # of a run that was killed before its first row
                return folder

        number, candidate = 0, new
        while True:
            created = _create(candidate)
            if candidate in created:  # by this session, not by another one at the same moment
                folder = cls(candidate, created)
                folder._try_lock()
                return folder
            number += 1
            candidate = new.with_name(f"{new.name}_{number}")

    def _try_lock(self) -> bool:
        """Lock the folder; False if another session has locked it."""
        try:
            self._lock = lock(self.path)
        except OSError:  # without locks, assume that the folder is free
            return True
        return self._lock is not None

    def checkpointer(self, state: TrainingState, before: Recipe | None) -> Checkpointer:
        """Prepare the files that `resume()` needs, and return the checkpointer of a run in this folder.

        Args:
            state: the initial state of the run, with this folder.
            before: the recipe of the previous run; None if there was none.
        """
        assert state.trained_by is not None  # the recipe of the run
        settings = state.trained_by.settings
        scores = {row.epoch: state.history.ranking.score(row) for row in state.history.comparable}
        written = [epoch for epoch, path in saved_weights(state).items() if path.parent == self.path]
        return Checkpointer(
            self.path,
            Files(Path(settings.base_dir).absolute(), settings.date),
            keep=settings.keep,
            scores={epoch: scores.get(epoch, math.inf) for epoch in written},
            ranking=state.history.ranking,
            history_before=state.history.to_jsonl(),
            prepared=self._prepare(state, before),
        )

    def _prepare(self, state: TrainingState, before: Recipe | None) -> tuple[str, ...]:
        """Write recipe and samples if they are not the saved ones; returns the names of the files to move later."""
        recipe = state.trained_by
        assert recipe is not None
        is_saved = before is not None and (self.path / RECIPE).exists()
        if is_saved and recipe == before:
            return ()

        new_samples = not is_saved or any(getattr(before, split) is not getattr(recipe, split) for split in SPLITS)
        names = (SAMPLES, RECIPE) if new_samples else (RECIPE,)
        without_samples = replace(recipe, train=None, valid=None, test=None)
        content = {"recipe": without_samples, "original": state.initial_weights}
        try:
            write(content, self.path / STARTING / RECIPE, pickle_module=pickling)
            if new_samples and size(recipe) <= SAMPLES_BYTES:
                _write_samples({split: getattr(recipe, split) for split in SPLITS}, self.path / STARTING / SAMPLES)
        except Exception as error:  # a recipe may contain any object, and this must not prevent the training
            warnings.warn(
                f"This training cannot be resumed in another kernel, since a part of it cannot be written ({error}).",
                QuikWarning,
                stacklevel=2,
            )
        return names

    def release(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Remove all files of a run without a row, and unlock the folder."""
        shutil.rmtree(self.path / STARTING, ignore_errors=True)
        if self.path in self._created:
            shutil.rmtree(self.path, ignore_errors=True)
        for folder in self._created:
            with suppress(OSError):  # another training has written files there
                folder.rmdir()
        self.release()


def _create(folder: Path) -> list[Path]:
    """Create a folder and its parents; returns those that did not exist, innermost first."""
    created = []
    for path in reversed([folder, *folder.parents]):
        try:
            path.mkdir()
        except FileExistsError:
            continue
        created.append(path)
    return created[::-1]


def new_folder(files: Files, clock: str, name: str) -> Path:
    """The path of a new run folder: `data/run_20210101_120000`, followed by the session's name.

    Args:
        files: the dated file names.
        clock: the time of day, such as "120000".
        name: of the session, empty for none; slashes are replaced and it is cut to `NAME_LENGTH`.

    >>> new_folder(Files(Path("/tmp"), "20210101"), "120000", "resnet/lr 0.1").name
    'run_20210101_120000_resnet-lr 0.1'
    """
    plain = re.sub(r"[^\w. -]+", "-", name)[:NAME_LENGTH].strip()
    return files.folder.absolute() / "_".join(filter(None, ["run", files.date, clock, plain]))


def saved_weights(state: TrainingState) -> dict[int, Path]:
    """The existing files of weights, by epoch."""
    found = {}
    for row in state.history:
        folders = [] if state.folder is None else [state.folder]
        if state.earlier_folder is not None and row.epoch < state.earlier_folder[1]:
            folders.append(state.earlier_folder[0])

        existing = [path for folder in folders if (path := weights_in(folder, row.epoch)).exists()]
        if existing and row.fraction == 1.0:
            found[row.epoch] = existing[0]
    return found


def weights_file(state: TrainingState, epoch: int, files: Files) -> Path:
    """The file of an epoch's weights.

    Raises:
        CheckpointError: they were not saved, or were deleted.
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
    """The samples are larger than `SAMPLES_BYTES`."""


class _LimitedFile(io.FileIO):
    """A file of at most `SAMPLES_BYTES`, since only pickling a custom dataset shows how large it is."""

    full = False

    def write(self, data: Any) -> int:
        self.full = self.tell() + memoryview(data).nbytes > SAMPLES_BYTES
        if self.full:
            raise _TooLarge
        return super().write(data)


def _write_samples(sources: Mapping[str, Source | None], path: Path) -> None:
    with suppress(_TooLarge), replacing(path) as part, _LimitedFile(part, "w") as file:
        try:
            torch.save(sources, file, pickle_module=pickling)
        except Exception as error:  # torch replaces the exception of the file by another one
            raise _TooLarge if file.full else error from error


def size(recipe: Recipe) -> int:
    """Bytes of the tensors of all splits, shared ones counted once; 0 if the samples are not tensors."""
    tensors = {tensor.data_ptr(): tensor for split in SPLITS for tensor in _tensors(getattr(recipe, split))}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _tensors(source: Source | None) -> tuple[torch.Tensor, ...]:
    return source.tensors if isinstance(source, Tensors) else ()


def latest_folder(base_dir: Path) -> Path:
    """The most recently written run folder under `base_dir`.

    Raises:
        CheckpointError: there is no run folder with a checkpoint.
    """
    folders = [p.parent for p in (base_dir / "data").glob(f"run_*/{CHECKPOINT}")]
    if not folders:
        raise CheckpointError(
            f"There is no run folder with a checkpoint in {base_dir / 'data'}: pass one, resume('data/run_...')."
        )
    return max(folders, key=lambda folder: (folder / CHECKPOINT).stat().st_mtime_ns)


@dataclass(frozen=True)
class SavedRun:
    """The content of a run folder."""

    state: TrainingState
    """with the recipe of the last run"""
    weights: dict[str, Any]


def read_run(folder: Path) -> SavedRun:
    """Read a run folder; rows of the history after the checkpoint are dropped.

    Raises:
        CheckpointError: a file of the folder is missing or damaged.
    """
    weights, progress, row = read_checkpoint(folder)
    try:
        saved = torch.load(folder / RECIPE, map_location="cpu", weights_only=False)
        has_samples = (folder / SAMPLES).exists()
        sources = torch.load(folder / SAMPLES, map_location="cpu", weights_only=False) if has_samples else {}
    except Exception as error:
        raise CheckpointError(
            f"{folder} has weights, and no recipe that can be read ({type(error).__name__}: {error}): set up the "
            f"session again, with the weights: add_model(model, state_dict='{folder / CHECKPOINT}')."
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
    if row is not None:  # its line in the file may be incomplete
        history.add(row)

    recipe = replace(saved["recipe"], **sources)
    state = TrainingState(history, progress, recipe, saved["original"], folder=folder.absolute())
    return SavedRun(state, weights)


def _read_history(path: Path) -> History:
    try:
        return History.from_jsonl(path.read_text() if path.exists() else "")
    except TypeError as error:
        raise CheckpointError(
            f"{path} is not a history of this version of quik_nb ({error}), so the run cannot be resumed: train again."
        ) from error
