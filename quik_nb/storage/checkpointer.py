"""What rank 0 writes during training: the weights of each epoch, the history, and the checkpoint to resume from.

Before the first row of a run, all files go to the subfolder `starting/`; they are moved into place with that row or
with the first checkpoint. A run that ends without a row is therefore undone by deleting `starting/`.

What is not here: the run folder itself, with the recipe and the lock (`run_folder.py`).
"""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from quik_nb.errors import CheckpointError
from quik_nb.events import Annotation, Row
from quik_nb.history import LOSS, History, Ranking
from quik_nb.storage import pickling
from quik_nb.storage.files import Files, is_shared, link_or_copy, read, replacing, weights_in, write
from quik_nb.training.progress import Progress, Snapshot

CHECKPOINT = "checkpoint.pt"
HISTORY = "history.jsonl"
STARTING = "starting"
"""Subfolder of a run folder for files written before the first row of a run."""
INITIAL_WEIGHTS = "initial_weights.pt"

CHECKPOINT_SHARE = 0.01
"""Fraction of the time that checkpoints may take in process; the weights are saved at every epoch regardless."""
CHECKPOINT_AFTER = 1.0
"""Seconds before the first checkpoint: training a shorter run again is faster than resuming it."""


@dataclass
class Checkpointer:
    """Writes the state at the end of each epoch and at a stop, before the row is shown.

    Picklable, so that it also works on rank 0 in a worker process.
    """

    folder: Path
    """the run folder: weights, history and checkpoint"""
    files: Files | None = None
    """dated file names, as second names of the weights of each epoch; None to write only the checkpoint"""
    keep: int | str | None = None
    """number of latest epochs whose weights are kept, besides the best; "best:3" for the best three; None for all"""
    each_row: bool = False
    """write a checkpoint at every row, at any cost: workers send their state to the session by it"""
    scores: dict[int, float] = field(default_factory=dict)
    """score of each epoch whose weights exist, oldest first; lower is better"""
    ranking: Ranking = LOSS
    """what makes an epoch the best"""
    history_before: str = ""
    """content of history.jsonl before the first row of this run"""
    prepared: tuple[str, ...] = ()
    """files to move into place with the first checkpoint of this run; in `starting/`, unless writing them failed"""
    _begun: bool = False
    """whether this run has a row in the history"""
    _row_of_checkpoint: Row | None = None
    _checkpoint_due: float = 0.0

    def begin(self, snapshot: Snapshot) -> None:
        """Called before the first step: writes the initial weights of a new training to `starting/`."""
        self._checkpoint_due = time.monotonic() + CHECKPOINT_AFTER
        if self.files is not None and snapshot.progress.epoch == 0 and snapshot.progress.step == 0:
            write(snapshot.weights, self.folder / STARTING / INITIAL_WEIGHTS)

    def __call__(self, snapshot: Snapshot, annotations: Sequence[Annotation]) -> None:
        """Write the files of a row.

        Args:
            snapshot: the state at the end of the row; no reference to it is stored.
            annotations: changes made during the run since the last row.
        """
        row = snapshot.row
        assert row is not None  # this is called at the end of a row
        if self.files is not None and row.fraction == 1.0:
            self._write_weights(row, snapshot.weights, self.files)

        # in this order, so that a checkpoint implies its weights and a history line implies its checkpoint
        if row.fraction < 1.0 or self.each_row or time.monotonic() >= self._checkpoint_due:
            self._write_checkpoint(snapshot)

        if self.files is not None:
            self._write_history(row, annotations, self.files)
            for epoch in surplus(self.scores, self.keep):
                self._remove_weights(epoch, self.files)

    def close(self, last: Snapshot) -> None:
        """Write the checkpoint of the last row, unless there is none or it is written already."""
        if last.row is not None and last.row is not self._row_of_checkpoint:
            self._write_checkpoint(last)

    def _write_weights(self, row: Row, weights: dict[str, Any], files: Files) -> None:
        path = weights_in(self.folder, row.epoch)
        write(weights, path)
        link_or_copy(path, files.weights(row.epoch))
        self.scores[row.epoch] = self.ranking.score(row)

    def _write_history(self, row: Row, annotations: Sequence[Annotation], files: Files) -> None:
        lines = History([row], annotations).to_jsonl()
        if self._begun:
            with (self.folder / HISTORY).open("a") as file:
                file.write(lines)
            return

        # from the beginning, since rows of earlier runs with save=False are missing in the file
        with replacing(self.folder / HISTORY) as part:
            part.write_text(self.history_before + lines)
        initial = self.folder / STARTING / INITIAL_WEIGHTS
        if initial.exists():
            os.replace(initial, files.weights("orig"))
        self._remove_starting()
        self._begun = True

    def _remove_weights(self, epoch: int, files: Files) -> None:
        path = weights_in(self.folder, epoch)
        for name in files.folder.glob(Files(files.base_dir, "*").weights(epoch).name):  # calls may have several dates
            if is_shared(path, name):  # otherwise another training has taken the name
                name.unlink()
        path.unlink(missing_ok=True)
        del self.scores[epoch]

    def _write_checkpoint(self, snapshot: Snapshot) -> None:
        """Write the checkpoint, and decide when the next one is due."""
        start = time.monotonic()
        with replacing(self.folder / CHECKPOINT) as part:
            torch.save(_plain(snapshot), part, pickle_module=pickling)
            self._place_prepared()  # last, so that recipe and checkpoint are moved into place together
        self._row_of_checkpoint = snapshot.row
        now = time.monotonic()
        self._checkpoint_due = now + (now - start) / CHECKPOINT_SHARE

    def _place_prepared(self) -> None:
        for name in self.prepared:
            prepared = self.folder / STARTING / name
            if prepared.exists():
                os.replace(prepared, self.folder / name)
            else:  # it could not be written, and the existing file belongs to another recipe
                (self.folder / name).unlink(missing_ok=True)
        self.prepared = ()
        self._remove_starting()

    def _remove_starting(self) -> None:
        with suppress(OSError):  # it is not empty yet
            (self.folder / STARTING).rmdir()


def surplus(scores: dict[int, float], keep: int | str | None) -> list[int]:
    """The epochs whose weights are to be deleted.

    Args:
        scores: loss by epoch, oldest first; lower is better.
        keep: as the setting `keep`.

    >>> surplus({0: 0.1, 1: 0.3, 2: 0.2}, keep=1)
    [1]
    >>> surplus({0: 0.1, 1: 0.3, 2: 0.2}, keep="best:1")
    [2, 1]
    """
    if keep is None:
        return []
    ranked = sorted(scores, key=lambda epoch: scores[epoch])
    if isinstance(keep, int):
        return [epoch for epoch in list(scores)[:-keep] if epoch != ranked[0]]
    return ranked[int(keep.removeprefix("best:")) :]


def _plain(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as built-in values and tensors."""
    progress = {name: getattr(snapshot.progress, name) for name in Progress.__dataclass_fields__}
    return {"model": snapshot.weights, "progress": progress, "row": snapshot.row and asdict(snapshot.row)}


def read_checkpoint(folder: Path) -> Snapshot:
    """Read the checkpoint of a run folder; a scheduler's state may be any object, so this may run pickled code.

    Raises:
        CheckpointError: the folder has no checkpoint, or it is damaged or of another version.
    """
    state = read(folder / CHECKPOINT, trusted=True)
    try:
        return Snapshot(state["model"], Progress(**state["progress"]), state["row"] and Row(**state["row"]))
    except (TypeError, KeyError) as error:
        raise CheckpointError(
            f"{folder / CHECKPOINT} is not a checkpoint of this version of quik_nb ({error}): train again, or load "
            f"only its weights, add_model(model, state_dict={str(folder / CHECKPOINT)!r})."
        ) from error
