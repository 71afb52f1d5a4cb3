"""What rank 0 writes while it trains: weights of each epoch, the history, and the checkpoint to go on from."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quik_nb.errors import CheckpointError
from quik_nb.events import Annotation, Row
from quik_nb.history import History, score
from quik_nb.storage import pickling
from quik_nb.storage.files import Files, is_shared, link_or_copy, read, weights_in, write
from quik_nb.training.progress import Progress, Snapshot

Weights = dict[str, Any]

CHECKPOINT = "checkpoint.pt"
HISTORY = "history.jsonl"

BEHIND_SECONDS = 0.25
"""How long the files of an epoch may wait for those of the next: several written in a row cost half as much each."""
BEHIND_BYTES = 2**22
"""Weights that may wait at most, so that no memory is held for large ones, which train for longer anyway."""
CHECKPOINT_SHARE = 0.01
"""Part of the time that whole-state checkpoints may take in process; weights are saved at every epoch all the same."""
CHECKPOINT_AFTER = 1.0
"""Seconds before the first of them: a shorter run is trained again sooner than it is resumed."""


@dataclass
class Saver:
    """Given the state at each epoch's end and at a stop, before the row is shown.

    Picklable, so that it works on rank 0 of workers as well.
    """

    folder: Path
    """the run folder: weights, history and checkpoint"""
    files: Files | None = None
    """the names by date, under which the weights of each epoch stand too; None for the checkpoint alone"""
    keep: int | str | None = None
    """number of newest epochs whose weights stay, beside the best; "best:3" for the best three; None for all"""
    at_once: bool = False
    """write the files of an epoch before its row is shown, however short it is: someone may look for them then"""
    every_epoch: bool = False
    """write the checkpoint, too, at every epoch, whatever it costs: workers bring their state home by it"""
    written: list[int] = field(default_factory=list)
    """epochs whose weights are there, the oldest first"""
    scores: dict[int, float] = field(default_factory=dict)
    """by epoch: what it is judged by, lower is better"""
    _waiting: list[tuple[Row, Weights]] = field(default_factory=list)
    _lines: str = ""
    """of the history, that wait as well"""
    _files_due: float = 0.0
    _checkpoint_due: float = 0.0
    _last: Snapshot | None = None
    """what the checkpoint holds"""

    def begin(self, snapshot: Snapshot) -> None:
        """Before the first step: the folder, and the weights that a new training starts from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.files is not None and snapshot.progress.epoch == 0 and snapshot.progress.step == 0:
            write(snapshot.weights, self.files.weights("orig"))
        now = time.monotonic()
        self._files_due, self._checkpoint_due = now + BEHIND_SECONDS, now + CHECKPOINT_AFTER

    def __call__(self, snapshot: Snapshot, annotations: list[Annotation]) -> None:
        """Write the files of a row, now or soon.

        Args:
            snapshot: the state at its end, which must not change while it waits.
            annotations: of what was done to the run since the last row.
        """
        row = snapshot.row
        assert row is not None  # this is called at the end of a row
        if self.files is not None:
            if row.fraction == 1.0:
                self._waiting.append((row, snapshot.weights))
            self._lines += History([row], annotations).to_jsonl()
        now = time.monotonic()
        whole_state = row.fraction < 1.0 or self.every_epoch or now >= self._checkpoint_due
        if whole_state or self.at_once or now >= self._files_due or self._waiting_bytes() > BEHIND_BYTES:
            self.flush()
        if whole_state:
            self._checkpoint(snapshot)

    def flush(self) -> None:
        """Write what waits; what cannot be written goes on waiting."""
        while self._waiting:
            row, weights = self._waiting[0]
            self._write_weights(row, weights)
            del self._waiting[0]
        if self._lines:
            with (self.folder / HISTORY).open("a") as file:
                file.write(self._lines)
            self._lines = ""
        self._files_due = time.monotonic() + BEHIND_SECONDS

    def close(self, last: Snapshot) -> None:
        """Write what waits, and the whole state of the last row."""
        self.flush()
        if last is not self._last:
            self._checkpoint(last)

    def _waiting_bytes(self) -> int:
        return sum(w.nbytes for _, weights in self._waiting for w in weights.values() if hasattr(w, "nbytes"))

    def _write_weights(self, row: Row, weights: Weights) -> None:
        assert self.files is not None  # else nothing waits
        path = weights_in(self.folder, row.epoch)
        write(weights, path)
        link_or_copy(path, self.files.weights(row.epoch))
        if row.epoch not in self.written:
            self.written.append(row.epoch)
        self.scores[row.epoch] = score(row)
        for old in self._surplus():
            self._remove(old, self.files)

    def _remove(self, epoch: int, files: Files) -> None:
        path = weights_in(self.folder, epoch)
        for name in files.folder.glob(Files(files.base_dir, "*").weights(epoch).name):  # calls may be of several dates
            if is_shared(path, name):  # else it is another training's by now
                name.unlink()
        path.unlink(missing_ok=True)
        self.written.remove(epoch)

    def _surplus(self) -> list[int]:
        """The epochs whose weights are to go."""
        ranked = sorted(self.written, key=lambda epoch: self.scores[epoch])
        if self.keep is None:
            return []
        if isinstance(self.keep, int):
            return [epoch for epoch in self.written[: -self.keep] if epoch != ranked[0]]
        return ranked[int(self.keep.removeprefix("best:")) :]

    def _checkpoint(self, kept: Snapshot) -> None:
        """Write the whole state, and decide when the next may be due."""
        start = time.monotonic()
        write_checkpoint(self.folder, kept)
        now = time.monotonic()
        self._last, self._checkpoint_due = kept, now + (now - start) / CHECKPOINT_SHARE


def write_checkpoint(folder: Path, kept: Snapshot) -> None:
    """Write weights, progress and the last row as one file that a training can go on from."""
    progress = {name: getattr(kept.progress, name) for name in Progress.__dataclass_fields__}
    state = {"model": kept.weights, "progress": progress, "row": kept.row and asdict(kept.row)}
    write(state, folder / CHECKPOINT, pickle_module=pickling)


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


def stamp(folder: Path) -> tuple[int, int] | None:
    """What tells whether the checkpoint of a folder is still the one that it was; None where there is none."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    status = path.stat()
    return status.st_size, status.st_mtime_ns
