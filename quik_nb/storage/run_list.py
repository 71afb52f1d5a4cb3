"""Lists run folders with a summary of their histories. Only the histories are read, so no pickled code is run."""

from dataclasses import dataclass
from pathlib import Path

from quik_nb.errors import CheckpointError
from quik_nb.history import History, score
from quik_nb.storage.checkpointer import CHECKPOINT, HISTORY


@dataclass(frozen=True)
class ListedRun:
    """Summary of a run folder."""

    folder: Path
    epochs: int
    """whole epochs in its history"""
    best_epoch: int | None
    """None if no epoch has a loss that can be compared"""
    best_loss: float | None
    """valid_loss of the best epoch; train_loss if there is no validation split"""
    seconds: float
    """of all epochs together"""
    can_resume: bool
    """whether there is a checkpoint to continue from"""


def list_runs(folder: Path) -> list[ListedRun]:
    """The run folders in a folder or in its data/ folder, oldest first.

    Args:
        folder: a session's `base_dir`, or its data folder.

    Raises:
        CheckpointError: the folder does not exist, or a history in it cannot be read.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is not a folder, so it has no runs: pass the base_dir of a session, such as '.'."
        )
    histories = [*folder.glob(f"run_*/{HISTORY}"), *folder.glob(f"data/run_*/{HISTORY}")]
    return [_listed(path) for path in sorted(histories)]


def _listed(path: Path) -> ListedRun:
    try:
        history = History.from_jsonl(path.read_text())
    except (TypeError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not a history that this version of quik_nb can read: {error}.") from error

    best = history.best
    return ListedRun(
        folder=path.parent,
        epochs=sum(row.fraction == 1.0 for row in history),
        best_epoch=None if best is None else best.epoch,
        best_loss=None if best is None else score(best),
        seconds=sum(row.time for row in history),
        can_resume=(path.parent / CHECKPOINT).exists(),
    )
