"""What rank 0 writes while it trains: weights of each epoch, the history, and the checkpoint to go on from.

Nothing stands in the run folder before the run's first row: what is written earlier waits in `starting/`, and takes its
name with that row or with the first checkpoint. A run that ends without a row is therefore undone by removing that.
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
from quik_nb.history import History, score
from quik_nb.storage import pickling
from quik_nb.storage.files import Files, is_shared, link_or_copy, read, replacing, weights_in, write
from quik_nb.training.progress import Progress, Snapshot

CHECKPOINT = "checkpoint.pt"
HISTORY = "history.jsonl"
STARTING = "starting"
"""The part of a run folder where files wait for the first row of a run."""
INITIAL_WEIGHTS = "initial_weights.pt"

CHECKPOINT_SHARE = 0.01
"""Part of the time that whole-state checkpoints may take in process; weights are saved at every epoch all the same."""
CHECKPOINT_AFTER = 1.0
"""Seconds before the first of them: a shorter run is trained again sooner than it is resumed."""


@dataclass
class Checkpointer:
    """Given the state at each epoch's end and at a stop, before the row is shown.

    Picklable, so that it works on rank 0 of workers as well.
    """

    folder: Path
    """the run folder: weights, history and checkpoint"""
    files: Files | None = None
    """the names by date, under which the weights of each epoch stand too; None for the checkpoint alone"""
    keep: int | str | None = None
    """number of newest epochs whose weights stay, beside the best; "best:3" for the best three; None for all"""
    each_row: bool = False
    """write a checkpoint at every row, whatever it costs: workers bring their state home by it"""
    scores: dict[int, float] = field(default_factory=dict)
    """epochs whose weights are there, the oldest first, with the loss that ranks them: lower is better"""
    history_before: str = ""
    """what history.jsonl is to hold before the first row of this run"""
    prepared: tuple[str, ...] = ()
    """files that the first checkpoint of this run needs beside it; they wait in `starting/`, or could not be written"""
    _begun: bool = False
    """whether this run has a row in the history"""
    _row_of_checkpoint: Row | None = None
    _checkpoint_due: float = 0.0

    def begin(self, snapshot: Snapshot) -> None:
        """Before the first step: the weights that a new training starts from, to be had with the first row."""
        self._checkpoint_due = time.monotonic() + CHECKPOINT_AFTER
        if self.files is not None and snapshot.progress.epoch == 0 and snapshot.progress.step == 0:
            write(snapshot.weights, self.folder / STARTING / INITIAL_WEIGHTS)

    def __call__(self, snapshot: Snapshot, annotations: Sequence[Annotation]) -> None:
        """Write the files of a row.

        Args:
            snapshot: the state at its end; nothing of it is held on to.
            annotations: of what was done to the run since the last row.
        """
        row = snapshot.row
        assert row is not None  # this is called at the end of a row
        if self.files is not None and row.fraction == 1.0:
            self._write_weights(row, snapshot.weights, self.files)

        # after the weights, which it promises, and before the history, which tells of a state that is safe
        if row.fraction < 1.0 or self.each_row or time.monotonic() >= self._checkpoint_due:
            self._write_checkpoint(snapshot)

        if self.files is not None:
            self._write_history(row, annotations, self.files)
            for epoch in surplus(self.scores, self.keep):
                self._remove_weights(epoch, self.files)

    def close(self, last: Snapshot) -> None:
        """Write the whole state of the last row, where there is one and it is not written yet."""
        if last.row is not None and last.row is not self._row_of_checkpoint:
            self._write_checkpoint(last)

    def _write_weights(self, row: Row, weights: dict[str, Any], files: Files) -> None:
        path = weights_in(self.folder, row.epoch)
        write(weights, path)
        link_or_copy(path, files.weights(row.epoch))
        self.scores[row.epoch] = score(row)

    def _write_history(self, row: Row, annotations: Sequence[Annotation], files: Files) -> None:
        lines = History([row], annotations).to_jsonl()
        if self._begun:
            with (self.folder / HISTORY).open("a") as file:
                file.write(lines)
            return

        # whole, as runs that saved nothing, or that could not, have left gaps
        with replacing(self.folder / HISTORY) as part:
            part.write_text(self.history_before + lines)
        initial = self.folder / STARTING / INITIAL_WEIGHTS
        if initial.exists():
            os.replace(initial, files.weights("orig"))
        self._remove_starting()
        self._begun = True

    def _remove_weights(self, epoch: int, files: Files) -> None:
        path = weights_in(self.folder, epoch)
        for name in files.folder.glob(Files(files.base_dir, "*").weights(epoch).name):  # calls may be of several dates
            if is_shared(path, name):  # else it is another training's by now
                name.unlink()
        path.unlink(missing_ok=True)
        del self.scores[epoch]

    def _write_checkpoint(self, snapshot: Snapshot) -> None:
        """Write the whole state, and decide when the next may be due."""
        start = time.monotonic()
        with replacing(self.folder / CHECKPOINT) as part:
            torch.save(_plain(snapshot), part, pickle_module=pickling)
            self._place_prepared()  # last, so that a recipe and its checkpoint take their names together
        self._row_of_checkpoint = snapshot.row
        now = time.monotonic()
        self._checkpoint_due = now + (now - start) / CHECKPOINT_SHARE

    def _place_prepared(self) -> None:
        for name in self.prepared:
            waiting = self.folder / STARTING / name
            if waiting.exists():
                os.replace(waiting, self.folder / name)
            else:  # it could not be written, and the one that is there is of another recipe
                (self.folder / name).unlink(missing_ok=True)
        self.prepared = ()
        self._remove_starting()

    def _remove_starting(self) -> None:
        with suppress(OSError):  # something waits there still
            (self.folder / STARTING).rmdir()


def surplus(scores: dict[int, float], keep: int | str | None) -> list[int]:
    """The epochs whose weights are to go.

    Args:
        scores: by epoch, the oldest first; lower is better.
        keep: as the setting.

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
    """Weights, progress and last row of a run folder; a scheduler's state may be any object, so reading may run code.

    Raises:
        CheckpointError: there is no whole checkpoint there.
    """
    state = read(folder / CHECKPOINT, trusted=True)
    try:
        return Snapshot(state["model"], Progress(**state["progress"]), state["row"] and Row(**state["row"]))
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / CHECKPOINT} is no checkpoint of this version of quik_nb: {error}.") from error
