"""Which epoch is the best so far, and when a training has waited for a better one for too long."""

from typing import Any

from quik_nb.events import Row
from quik_nb.history import Ranking
from quik_nb.recipe.settings import Settings
from quik_nb.training.progress import Progress


class Monitor:
    """The best score of an epoch, and early stopping.

    Two levels are kept apart: `best` is beaten by any lower score, `best_for_patience` only by one that is lower by
    more than `min_delta`, so that tiny gains do not keep a training alive.

    Args:
        settings: with `patience` and `min_delta`.
        ranking: what makes an epoch the best.
        progress: of the training so far.
    """

    def __init__(self, settings: Settings, ranking: Ranking, progress: Progress) -> None:
        self.patience = settings.patience
        self.min_delta = settings.min_delta
        self.ranking = ranking
        self.best = progress.best
        self.best_epoch = progress.best_epoch
        self.best_for_patience = progress.best_for_patience
        self.epochs_without_improvement = progress.epochs_without_improvement
        self._name = "loss"

        # ended by patience, and asked to go on: the count starts again, or the first epoch would end it at once
        if self.is_out_of_patience:
            self.epochs_without_improvement = 0

    @property
    def is_out_of_patience(self) -> bool:
        """Whether no epoch was better by enough for as many epochs as `patience` says."""
        return self.patience is not None and self.epochs_without_improvement >= self.patience

    @property
    def reason(self) -> str:
        """Why the training ends, in words; empty while it does not."""
        if not self.is_out_of_patience:
            return ""
        count = self.epochs_without_improvement
        epochs = "epoch" if count == 1 else "epochs"
        value = self.best if self.ranking.mode == "min" else -self.best
        best = "" if self.best_epoch is None else f"; the best is epoch {self.best_epoch} with {value:.4g}"
        return f"no better {self._name} for {count} {epochs}{best}"

    def update(self, row: Row) -> bool:
        """Take the row of a whole epoch; gives whether it is the best so far."""
        self._name = self.ranking.name(row)
        value = self.ranking.score(row)
        is_best = value < self.best
        if is_best:
            self.best = value
            self.best_epoch = row.epoch

        if value < self.best_for_patience - self.min_delta:
            self.best_for_patience = value
            self.epochs_without_improvement = 0
        else:
            self.epochs_without_improvement += 1
        return is_best

    def state(self) -> dict[str, Any]:
        """By the names of `Progress`."""
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_for_patience": self.best_for_patience,
            "epochs_without_improvement": self.epochs_without_improvement,
        }
