"""The chainable face: a session is put together by steps, trained, and asked for what came of it.

The steps are in `steps`, the trainings in `runs`; here is what is asked afterwards, and the files.
"""

import inspect
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from quik_nb.analysis.lr_finder import RateTest
from quik_nb.analysis.range_test import range_test
from quik_nb.analysis.report import Report, report
from quik_nb.errors import CheckpointError, RecipeError, suggest
from quik_nb.export.script import as_code, write_script
from quik_nb.history import History
from quik_nb.launch.placement import Machine, Request, place
from quik_nb.recipe.cli_options import settings_from
from quik_nb.recipe.data import SPLITS, Source, as_source
from quik_nb.recipe.equality import same
from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.settings import Settings, settings_doc
from quik_nb.recipe.validate import check
from quik_nb.session.summary import summary_html, summary_text
from quik_nb.session.training_runs import Runs
from quik_nb.storage.files import load_into, read_weights
from quik_nb.storage.run_folder import latest_folder, read_session
from quik_nb.storage.run_state import State
from quik_nb.storage.session_file import export, write_session
from quik_nb.storage.session_file import read_session as read_archive
from quik_nb.training.evaluate import evaluate, predict


class QuikSession(Runs):
    """A training, put together step by step; the steps can come in any order, and a step done again replaces its part.

    Args:
        settings: by name, such as `epochs=5`; all of them are listed below.

    Raises:
        RecipeError: a setting does not exist or has a value that cannot be used.

    >>> from torch import nn
    >>> x, y = torch.randn(100, 3), torch.randn(100, 1)
    >>> session = (
    ...     QuikSession(epochs=2, view=False, save=False)
    ...     .add_data(train=(x, y), valid=0.2)
    ...     .add_model(nn.Linear(3, 1))
    ...     .set_criterion(nn.MSELoss)
    ...     .set_optimizer(torch.optim.SGD)
    ... )
    >>> session.train().state
    'finished'
    >>> list(session.history.columns)
    ['epoch', 'train_loss', 'valid_loss', 'lr', 'time']
    """

    @classmethod
    def from_args(cls, namespace: Namespace) -> Self:
        """A session with the settings that were given on a command line, as `arguments.add_arguments` reads them.

        Args:
            namespace: of a parser's `parse_args()`; what is not a setting is left to its owner.
        """
        return cls(**settings_from(namespace))

    def reset(self) -> Self:
        """Start anew: the weights of before the first epoch, an empty history, a new run folder. Files stay."""
        self._before_change("reset")
        original = self._state.original
        if original is not None and self._maker is not None:
            self._recipe = replace(self._recipe, model=self._make(self._maker))
        if original is not None:
            # a maker alone does not give them where weights were loaded; layers may have been changed by hand since
            load_into(self.model, original, "What the model was before its first epoch")
        self._state = State()
        return self

    # ------------------------------------------------------------------ what came of it

    def plot(self, log: bool = False) -> Any:
        """The loss curve as a matplotlib Figure.

        Args:
            log: draw the loss on a logarithmic scale.
        """
        from quik_nb.views.matplotlib_figure import figure

        return figure(self._state.history, log=log)

    def compare(self, log: bool = False) -> Any:
        """The curves of all attempts in one matplotlib Figure, named by what was changed.

        Args:
            log: draw the loss on a logarithmic scale.
        """
        from quik_nb.views.compare import overlay

        rows = {f"{n}: {a.changed or ('as before' if n else 'first')}": a.own for n, a in enumerate(self._attempts)}
        return overlay({name: History(values) for name, values in rows.items() if values}, log=log)

    def predict(self, data: Any) -> Any:
        """The model's outputs for all samples, in order, on the CPU.

        Args:
            data: anything that `add_data` takes, with or without a target, or the name of a split: "test". The order
                is that of the data; for a `DataLoader` with a sampler, that of the sampler.
        """
        return predict(self._checked("predict", "model"), self._source(data), self._device)

    def evaluate(self, split: Any = "valid") -> dict[str, float]:
        """The loss and the metrics of a split: `{"loss": ..., "accuracy": ...}`.

        Args:
            split: "train", "valid" or "test", or data of its own.
        """
        return evaluate(self._checked("evaluate", "model", "criterion"), self._source(split), self._device)

    def report(self, label_names: Iterable[Any] | None = None, split: Any = "valid") -> Report:
        """How good the model is on a split, in detail: `.table`, `.confusion`, `.figure()`.

        For classes: precision, recall, F1 and a confusion matrix; for a criterion that compares numbers: MAE, RMSE and
        R2 of each output. Counted by scikit-learn.

        Args:
            label_names: of the classes or outputs, in order; None for their numbers.
            split: "train", "valid" or "test", or data of its own, with targets.

        Raises:
            QuikError: scikit-learn is not installed.
            RecipeError: outputs and targets cannot be compared.
        """
        names = None if label_names is None or isinstance(label_names, str) else list(label_names)
        if isinstance(label_names, str) or any(isinstance(name, torch.Tensor) for name in names or ()):
            raise RecipeError(
                f"report: label_names are names of classes, in order, and not {label_names!r}: "
                f"type report(split=...) for a split or for data, report(['cat', 'dog']) for names."
            )
        recipe, name = self._checked("report", "model", "criterion"), split if isinstance(split, str) else "data"
        return report(recipe, self._source(split), self._device, names, name)

    def lr_find(self, start: float = 1e-7, end: float = 10.0, steps: int = 100) -> RateTest:
        """Look for a learning rate: train a few steps with rates that grow until the loss blows up.

        Model, optimizer, history and random numbers are afterwards as they were. The test is Leslie Smith's
        (arXiv:1506.01186); it starts from the model's present weights, with a fresh optimizer, in this process.

        Args:
            start: the first learning rate.
            end: the last one.
            steps: optimizer steps from the one to the other, over as many epochs as that takes.

        Returns:
            `.suggestion`, `.frame` (lr, loss, smoothed) and `.figure()`.

        Raises:
            RecipeError: something is missing or does not fit.
        """
        self._before_change("lr_find")
        recipe = self._checked("lr_find", "train", "model", "criterion", "optimizer")
        check(recipe)
        if not 0 < start < end or steps < 1:
            raise RecipeError(
                f"lr_find(start={start!r}, end={end!r}, steps={steps!r}): the rate grows from start to end in steps, "
                f"so type numbers such as lr_find(start=1e-6, end=1.0, steps=100)."
            )
        return RateTest(range_test(recipe, self._device, start, end, steps))

    def _checked(self, what: str, *parts: str) -> Recipe:
        """The recipe, with the weights of the last row, if these parts are set."""
        calls = [call for part, call in self._recipe.missing_steps().items() if part in parts]
        if calls:
            raise RecipeError(f"{what} needs more; still to type: " + ", ".join(f".{call}" for call in calls))
        self._tell_failure()
        return replace(self._recipe, model=self.model)

    @property
    def _device(self) -> torch.device:
        return torch.device(place(Request(1, self.settings.device), Machine.detect()).devices[0])

    def _source(self, data: Any) -> Source:
        """A split by its name, or data of its own."""
        if isinstance(data, str):
            if data not in SPLITS:
                raise RecipeError(f"There is no split {data!r}: {suggest(data, SPLITS)}")
            source: Source | None = getattr(self._recipe, data)
            if source is None:
                given = ", ".join(f"{split}=..." for split in dict.fromkeys(("train", data)))
                raise RecipeError(f"There is no split {data!r} yet: add_data({given}) sets one.")
            return source
        return as_source(data, "data", like=self._recipe.train, labelled=False)

    def as_code(self, folder: str | Path | None = None) -> str:
        """The equal plain PyTorch script: what `train()` does from the first epoch on, without quik_nb.

        Classes and functions from cells are quoted. What has no text, such as a dataset, is marked with `...`, and the
        script says at its top what to fill in.

        Args:
            folder: an empty or new folder in which to write the script, `train.py`, and what it loads; None for none.

        Raises:
            RecipeError: something is missing or does not fit; all of it is in the message.
            CheckpointError: the folder has such files already.
        """
        recipe = self._checked("as_code", "train", "model", "criterion", "optimizer")
        check(recipe)
        original = self._state.original or recipe.model.state_dict()  # type: ignore[union-attr]
        made = None if self._maker is None else self._make(self._maker).state_dict()
        seeded = made is not None and all(torch.equal(made[key].cpu(), original[key].cpu()) for key in original)
        file = self._files.weights("orig")
        at_hand = folder is not None or not file.exists() or same(read_weights(file), original)
        text = as_code(recipe, self._maker, seeded, beside=folder is not None, at_hand=at_hand)
        if folder is not None:
            write_script(text, recipe, original, Path(folder))
        return text

    # ------------------------------------------------------------------ files

    def load_epoch(self, epoch: int) -> Self:
        """Load the weights that were saved after an epoch of this session's training.

        Raises:
            CheckpointError: they were not saved, were overwritten by another training, or do not fit the model, which
                is then left as it was.
        """
        self._before_change("load_epoch")
        path = self._state.weights_file(epoch, self._files)
        load_into(self.model, read_weights(path), path.name)
        self._state.held = epoch
        return self

    def load_best(self) -> Self:
        """Load the weights of the epoch with the lowest valid_loss (train_loss where there is no validation split).

        Raises:
            CheckpointError: as `load_epoch`, or nothing was trained yet.
        """
        best = self._state.history.best
        if best is None:
            why = "no epoch has a loss that can be compared" if self._state.history.rows else "nothing was trained"
            raise CheckpointError(f"There is no best epoch yet, as {why}: session.train() first.")
        return self.load_epoch(best.epoch)

    @classmethod
    def resume(cls, folder: str | Path | None = None, base_dir: str | Path = ".") -> Self:
        """Pick up a run folder, also in a new kernel: recipe, weights, optimizer, random numbers and history.

        A run folder holds the model's code, so read only folders that you trust.

        Args:
            folder: such as `data/run_20210101_120000`; None for the latest in `base_dir`.
            base_dir: where data/ lies.

        Raises:
            CheckpointError: the folder has no checkpoint that can be gone on from.
        """
        where = latest_folder(Path(base_dir)) if folder is None else Path(folder)
        saved = read_session(where)
        session = cls()
        session._recipe = saved.recipe
        session._state = State(saved.history, saved.progress, saved.trained, saved.original, folder=where)
        load_into(session.model, saved.weights, str(where))
        return session

    def save(self, path: str | Path) -> Path:
        """Write the whole session into one file: model, data, settings, history and how far it has come.

        `QuikSession.load(path)` reads it, and `python -m quik_nb train path` trains it. Reading runs the code in it.

        Args:
            path: such as "session.pt"; a file that is there is replaced in one go.

        Raises:
            CheckpointError: a part cannot be written, such as an open file in a dataset; the message names it.
        """
        self._before_change("save")
        write_session(self._recipe, self._state, self._maker, Path(path))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A session as `save` wrote it, which goes on where that one stood, into a new run folder.

        The file holds code, such as the model's class, and reading runs it: read only files that you trust.

        Raises:
            CheckpointError: there is no such file, it is damaged, or it holds something else.
        """
        session = cls()
        session._recipe, session._state, session._maker = read_archive(Path(path))
        return session

    def export(self, path: str | Path) -> Path:
        """Write the model's weights as safetensors: tensors by name and no code, for other tools.

        Args:
            path: such as "model.safetensors"; `add_model(model, state_dict=path)` takes it, too.

        Raises:
            QuikError: the package safetensors is not installed.
        """
        export(self.model, Path(path))
        return Path(path)

    # ------------------------------------------------------------------ how it shows

    def __repr__(self) -> str:
        return summary_text(self._recipe, self._state.history, self._state.held)

    def _repr_html_(self) -> str:
        return summary_html(self._recipe, self._state.history, self._state.held)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_") or name.startswith("__")]


QuikSession.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what Shift-Tab shows in a notebook
    list(inspect.signature(Settings).parameters.values())
)
QuikSession.__doc__ = f"{QuikSession.__doc__}\n{settings_doc()}"
