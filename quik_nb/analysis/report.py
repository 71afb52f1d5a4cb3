"""How good a model is on a split, in detail: per class and per output, as tables, as a picture, in words.

`report` decides by criterion and targets which of the three kinds fits: classes (one of several for each sample),
labels (yes or no for each of several), or numbers. scikit-learn does the counting and is imported when it is needed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quik_nb.errors import QuikError, RecipeError
from quik_nb.recipe.recipe import FLOAT_TARGETS, Recipe
from quik_nb.recipe.samples import Source
from quik_nb.training.evaluate import judge
from quik_nb.training.named_metrics import YES_OR_NO, as_classes, has_classes_second
from quik_nb.views.figure_html import img
from quik_nb.views.report_figures import confusion_figure, scatter_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Report:
    """The result of `session.report()`: tables as DataFrames, and a picture."""

    title: str
    """what was judged, and the loss"""
    table: "pd.DataFrame"
    """a row for each class (precision, recall, f1-score, support) or for each output (MAE, RMSE, R2, support)"""
    confusion: "pd.DataFrame | None" = None
    """(true, predicted) counts; for labels a row each of TN, FP, FN, TP; None for numbers"""
    values: "tuple[Any, Any] | None" = None
    """for numbers: targets and outputs, (samples, outputs)"""

    def figure(self) -> "Figure":
        """The confusion matrix, or outputs against targets, as a matplotlib Figure."""
        if self.values is not None:
            return scatter_figure(*self.values, names=[str(name) for name in self.table.index])
        assert self.confusion is not None  # all other kinds have one
        return confusion_figure(self.confusion, self.title)

    def __repr__(self) -> str:
        parts = [self.title, self.table.to_string(float_format="{:.4g}".format, na_rep="")]
        if self.confusion is not None:
            parts.append(self.confusion.to_string())
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        table = self.table.to_html(float_format="{:.4g}".format, na_rep="", border=0)
        return f"<p>{escape(self.title)}</p>\n{table}\n{img(self.figure(), self.title)}"


def report(
    recipe: Recipe,
    source: Source,
    device: torch.device,
    label_names: Iterable[Any] | None = None,
    split: str = "valid",
) -> Report:
    """Judge the model on a source.

    Args:
        recipe: with model and criterion.
        source: with targets.
        device: where to.
        label_names: of the classes, labels or outputs, in order; None for their numbers.
        split: what the source is called, for the title.

    Raises:
        QuikError: scikit-learn is not installed.
        RecipeError: there are no outputs or targets to compare, or as many names as there are classes.
    """
    try:
        import sklearn.metrics  # noqa: F401  asked for before the work is done
    except ImportError as error:
        raise QuikError(
            "report counts with scikit-learn, which is not installed here: pip install 'quik_nb[metrics]'"
        ) from error
    loss, judged = judge(recipe, source, device, split)
    outputs, targets = (_plain(value) for value in judged)
    title = f"{split}: {len(targets):,} samples, loss {loss:.4g}"
    names = None if label_names is None else [str(name) for name in label_names]
    criterion = recipe.make_criterion()
    if isinstance(criterion, YES_OR_NO):
        return _labels(
            title, outputs > (0.0 if isinstance(criterion, nn.BCEWithLogitsLoss) else 0.5), targets > 0.5, names
        )
    if outputs.shape == targets.shape and (targets.is_floating_point() or isinstance(criterion, FLOAT_TARGETS)):
        return _numbers(title, outputs, targets, names)
    if targets.is_floating_point() and outputs.shape != targets.shape:
        raise RecipeError(
            f"report compares numbers one by one, and the model gives outputs of shape {tuple(outputs.shape)} for "
            f"targets of shape {tuple(targets.shape)}, such as several quantiles of one number: have set_step return "
            f"(loss, outputs) with the outputs to judge, such as outputs[:, 1]."
        )
    answers = as_classes(outputs, targets, recipe.ignored_label, has_classes_second(criterion))
    return _classes(title, answers.scores.argmax(1), answers.true, answers.scores.shape[1], names)


def _plain(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise RecipeError(
            f"report compares a tensor of outputs with a tensor of targets, and got a {type(value).__name__}: "
            f"have set_step return (loss, outputs) with the outputs to judge, and give each batch a target."
        )
    return value.detach().cpu().double() if value.is_floating_point() else value.detach().cpu()


def _classes(title: str, predicted: Tensor, true: Tensor, count: int, names: list[str] | None) -> Report:
    import pandas as pd
    from sklearn.metrics import confusion_matrix

    numbers = list(range(count))
    named = _checked(names, count, "classes")
    table = _table(true.numpy(), predicted.numpy(), numbers, named)
    counts = confusion_matrix(true.numpy(), predicted.numpy(), labels=numbers)
    rows, columns = pd.Index(named, name="true"), pd.Index(named, name="predicted")
    return Report(title, table, pd.DataFrame(counts, rows, columns))


def _labels(title: str, predicted: Tensor, true: Tensor, names: list[str] | None) -> Report:
    import pandas as pd
    from sklearn.metrics import multilabel_confusion_matrix

    predicted, true = (value.reshape(len(value), -1).long() for value in (predicted, true))
    if true.shape[1] == 1:  # one question: its answers are the classes
        return _classes(title, predicted[:, 0], true[:, 0], 2, names)
    named = _checked(names, true.shape[1], "labels")
    table = _table(true.numpy(), predicted.numpy(), list(range(true.shape[1])), named)
    counts = multilabel_confusion_matrix(true.numpy(), predicted.numpy()).reshape(-1, 4)
    frame = pd.DataFrame(counts, pd.Index(named, name="label"), pd.Index(["TN", "FP", "FN", "TP"], name="answers"))
    return Report(title, table, frame)


def _table(true: Any, predicted: Any, numbers: list[int], names: list[str]) -> "pd.DataFrame":
    """scikit-learn's classification report; accuracy stands in the column of the f1-score, as it prints it."""
    import pandas as pd
    from sklearn.metrics import classification_report

    found = classification_report(
        true, predicted, labels=numbers, target_names=names, output_dict=True, zero_division=0.0
    )
    accuracy = found.get("accuracy")
    if accuracy is not None:
        found["accuracy"] = {"f1-score": accuracy, "support": float(len(true))}
    table = pd.DataFrame.from_dict(found, orient="index", columns=["precision", "recall", "f1-score", "support"])
    return table.astype({"support": int})


def _numbers(title: str, outputs: Tensor, targets: Tensor, names: list[str] | None) -> Report:
    import pandas as pd
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    predicted, true = (value.double().reshape(len(value), -1).numpy() for value in (outputs, targets))
    count = true.shape[1]
    how: dict[str, Any] = {"multioutput": "raw_values"}
    table = pd.DataFrame(
        {
            "MAE": mean_absolute_error(true, predicted, **how),
            "RMSE": root_mean_squared_error(true, predicted, **how),
            "R2": r2_score(true, predicted, **how) if len(true) > 1 else float("nan"),
            "support": len(true),
        },
        index=_checked(names, count, "outputs") if names or count > 1 else ["output"],
    )
    return Report(title, table, values=(true, predicted))


def _checked(names: Sequence[str] | None, count: int, what: str) -> list[str]:
    """The names, or numbers in their place.

    Raises:
        RecipeError: there are more or fewer of them.
    """
    if names is None:
        return [str(number) for number in range(count)]
    if len(names) != count:
        raise RecipeError(
            f"label_names has {len(names)} names, and the model gives {count} {what}: name all of them in order."
        )
    return list(names)
