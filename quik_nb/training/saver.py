"""What rank 0 writes while it trains: weights at each epoch's end, the history, and the checkpoint to go on from."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quik_nb.errors import CheckpointError
from quik_nb.events import Row
from quik_nb.history import History, score
from quik_nb.training.checkpoint import Files, read, write
from quik_nb.training.trainer import Progress, Trainer

CHECKPOINT = "checkpoint.pt"
HISTORY = "history.jsonl"

CHECKPOINT_SHARE = 0.01
"""Part of the time that whole-state checkpoints may take in process; weights are saved at every epoch all the same."""


@dataclass
class Saver:
    """Called with the trainer at each epoch's end and at a stop, before the row is shown.

    Picklable, so that it works on rank 0 of workers as well.
    """

    folder: Path
    """the run folder: history and checkpoint"""
    files: Files | None = None
    """the names under which the weights of each epoch are saved; None for the checkpoint alone"""
    keep: int | str | None = None
    """number of newest epochs whose weights stay, beside the best; "best:3" for the best three; None for all"""
    every_epoch: bool = False
    """write the checkpoint at every epoch, whatever it costs: workers bring their state home by it"""
    written: list[int] = field(default_factory=list)
    """epochs whose weights are there, the oldest first"""
    scores: dict[int, float] = field(default_factory=dict)
    """by epoch: what it is judged by, lower is better"""
    _due: float = 0.0

    def begin(self, trainer: Trainer) -> None:
        """Before the first step: the folder, and the weights that a new training starts from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.files is not None and trainer.epoch == 0 and trainer.step_in_epoch == 0:
            write(trainer.weights(), self.files.weights("orig"))

    def __call__(self, trainer: Trainer) -> None:
        row = trainer.row
        assert row is not None  # this is called at the end of a row
        whole = row.share == 1.0
        if self.files is not None:
            if whole:
                self._write_weights(trainer, row, self.files)
            with (self.folder / HISTORY).open("a") as file:
                file.write(History([row], trainer.marks).to_jsonl())
            trainer.marks.clear()
        if not whole or self.every_epoch or time.monotonic() >= self._due:
            self.checkpoint(trainer)

    def _write_weights(self, trainer: Trainer, row: Row, files: Files) -> None:
        epoch = row.epoch
        path = files.weights(epoch)
        path.unlink(missing_ok=True)  # ext4 flushes a file that is renamed over another, at the cost of a second write
        write(trainer.weights(), path)
        self.written.append(epoch)
        self.scores[epoch] = score(row)
        for old in self._surplus():
            files.weights(old).unlink(missing_ok=True)
            self.written.remove(old)

    def _surplus(self) -> list[int]:
        """The epochs whose weights are to go."""
        ranked = sorted(self.written, key=lambda epoch: self.scores[epoch])
        if self.keep is None:
            return []
        if isinstance(self.keep, int):
            return [epoch for epoch in self.written[: -self.keep] if epoch != ranked[0]]
        return ranked[int(self.keep.removeprefix("best:")) :]

    def checkpoint(self, trainer: Trainer) -> None:
        """Write the whole state, and decide when the next may be due."""
        start = time.monotonic()
        write_checkpoint(self.folder, trainer.weights(), trainer.progress(), trainer.row)
        now = time.monotonic()
        self._due = now + (now - start) / CHECKPOINT_SHARE


def write_checkpoint(folder: Path, weights: dict[str, Any], progress: Progress, row: Row | None) -> None:
    """Write weights, progress and the last row as one file that a training can go on from."""
    state = {name: getattr(progress, name) for name in Progress.__dataclass_fields__}
    write({"model": weights, "progress": state, "row": row and asdict(row)}, folder / CHECKPOINT)


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], Progress, Row | None]:
    """Weights, progress and last row of a run folder.

    Raises:
        CheckpointError: there is no whole checkpoint there.
    """
    state = read(folder / CHECKPOINT)
    try:
        return state["model"], Progress(**state["progress"]), state["row"] and Row(**state["row"])
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / CHECKPOINT} is no checkpoint of this version of quik_nb: {error}.") from error
