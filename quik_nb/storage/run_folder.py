"""A run folder made to go on from: what is written there beside history and checkpoint, and how it is read again.

`recipe.pt` holds the recipe without its samples, `samples.pt` the samples where they are small enough to be kept twice.
Both are written once, when a training begins. Reading them runs the code in them: only folders that the user names.
"""

import io
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from quik_nb.errors import CheckpointError
from quik_nb.history import History
from quik_nb.recipe.data import SPLITS, Source, Tensors
from quik_nb.recipe.recipe import Recipe
from quik_nb.storage import pickling
from quik_nb.storage.checkpointer import CHECKPOINT, HISTORY, read_checkpoint, stamp
from quik_nb.storage.files import replacing, write
from quik_nb.training.progress import Progress

RECIPE, SAMPLES = "recipe.pt", "samples.pt"

SAMPLES_BYTES = 256 * 2**20
"""Samples up to this size are kept in the run folder; larger ones are to be added again after resume."""


@dataclass(frozen=True)
class Saved:
    """What a run folder holds."""

    recipe: Recipe
    trained: Recipe
    """what the weights were trained by, which a call that was killed at once had changed"""
    weights: dict[str, Any]
    progress: Progress
    history: History
    original: dict[str, Any] | None
    """the weights of before the first epoch"""


def write_recipe(
    recipe: Recipe, original: dict[str, Any], folder: Path, samples: bool, before: Recipe | None = None
) -> None:
    """Write what a new kernel needs to go on; what cannot be written is warned about, and training goes on.

    Args:
        recipe: with its samples.
        original: the weights of before the first epoch.
        folder: the run folder.
        samples: whether they are new, so that they are to be written too.
        before: what was trained by until now, and holds until the first checkpoint of this training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bare, old = (r and replace(r, train=None, valid=None, test=None) for r in (recipe, before))
    parts = {"recipe": bare, "original": original, "before": old, "until": stamp(folder), "samples": samples}
    try:
        if samples:
            (folder / SAMPLES).unlink(missing_ok=True)  # of other data; whether the new ones can be kept is not sure
        write(parts, folder / RECIPE, pickle_module=pickling)
        if samples and size(recipe) <= SAMPLES_BYTES:
            _write_samples({split: getattr(recipe, split) for split in SPLITS}, folder / SAMPLES)
    except Exception as error:  # anything may be in a recipe; that it cannot be written must not stop the training
        warnings.warn(
            f"This training cannot be resumed in another kernel, since a part of it cannot be written ({error}).",
            stacklevel=2,
        )


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


def write_history(history: History, folder: Path) -> None:
    """Write the whole history in one go; a training appends its rows to it."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / HISTORY) as part:
        part.write_text(history.to_jsonl())


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


def read_session(folder: Path) -> Saved:
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
            f"together anew and take the weights with add_model(model, state_dict='{folder / CHECKPOINT}')."
        ) from error
    try:
        history = History.from_jsonl((folder / HISTORY).read_text() if (folder / HISTORY).exists() else "")
    except TypeError as error:
        raise CheckpointError(f"{folder / HISTORY} is no history of this version of quik_nb: {error}.") from error
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
    recipe = trained = replace(kept["recipe"], **sources)
    if kept["before"] is not None and kept["until"] == stamp(folder):
        trained = replace(kept["before"], **({} if kept["samples"] else sources))
    return Saved(recipe, trained, weights, progress, history, kept["original"])
