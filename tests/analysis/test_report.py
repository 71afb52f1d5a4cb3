"""Reports say of a split what scikit-learn says of the model's own outputs."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from harness.plain import classes, network, numbers, quiet, regression
from sklearn import metrics
from torch import nn, optim

from quik_nb import QuikSession, RecipeError
from quik_nb.training.named_metrics import as_classes

NAMES = ["low", "middle", "high"]


def classifier(**settings: Any) -> QuikSession:
    """A session that tells three classes apart, trained for an epoch."""
    session = quiet(epochs=1, lr=0.05, **settings).add_data(train=classes(), valid=classes(57), test=classes(23))
    session.add_model(network(3)).set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.AdamW).train()
    return session


def test_classes() -> None:
    """Precision, recall, F1 and counts are scikit-learn's for the outputs of predict, by the names given."""
    session = classifier()
    x, y = classes(57)
    predicted = session.predict(x).argmax(dim=1)
    report = session.report(NAMES)

    expected = metrics.precision_recall_fscore_support(y, predicted, zero_division=0)
    assert [*NAMES, "accuracy", "macro avg", "weighted avg"] == list(report.table.index)
    for values, column in zip(expected, report.table.columns, strict=True):
        assert list(values) == pytest.approx(list(report.table.loc[NAMES, column]))
    assert metrics.accuracy_score(y, predicted) == pytest.approx(report.table.loc["accuracy", "f1-score"])
    assert report.confusion is not None
    assert metrics.confusion_matrix(y, predicted).tolist() == report.confusion.to_numpy().tolist()
    assert (NAMES, "true", "predicted") == (
        list(report.confusion.index),
        report.confusion.index.name,
        report.confusion.columns.name,
    )


def test_splits_and_own_data() -> None:
    """A split by its name, or data of its own; the title says which, and its loss is that of evaluate."""
    session = classifier()

    assert f"test: 23 samples, loss {session.evaluate('test')['loss']:.4g}" == session.report(split="test").title
    assert "data: 31 samples" in session.report(split=classes(31)).title


def test_numbers() -> None:
    """For a criterion that compares numbers there are MAE, RMSE and R2 of each output, and a picture of dots."""
    session = regression(network(2)).add_data(train=numbers(), valid=(numbers(37)[0], numbers(37)[0][:, :2]))
    x, _ = numbers(37)
    outputs = session.predict(x)
    report = session.report(["width", "height"])

    assert ["MAE", "RMSE", "R2", "support"] == list(report.table.columns)
    assert (outputs - x[:, :2]).abs().mean(0).tolist() == pytest.approx(report.table.MAE.tolist())
    assert (outputs - x[:, :2]).square().mean(0).sqrt().tolist() == pytest.approx(report.table.RMSE.tolist())
    assert metrics.r2_score(x[:, :2], outputs, multioutput="raw_values") == pytest.approx(report.table.R2.tolist())
    assert ["width", "height"] == [axes.get_ylabel() for axes in report.figure().axes]
    assert report.confusion is None


def test_yes_or_no() -> None:
    """One logit is a question with two answers, decided at zero; several are labels of which each is judged."""
    x, y = numbers(80)
    one, several = (y > 0).double(), (x[:, :3] > 0).double()
    question = regression(network(1)).add_data(train=(x, one), valid=(x, one)).set_criterion(nn.BCEWithLogitsLoss)
    labels = regression(network(3)).add_data(train=(x, several), valid=(x, several))
    labels.set_criterion(nn.BCEWithLogitsLoss)
    answers = (question.predict(x) > 0).long()
    report, several_report = question.report(["no", "yes"]), labels.report(NAMES)

    assert report.confusion is not None
    assert metrics.confusion_matrix(one.long(), answers).tolist() == report.confusion.to_numpy().tolist()
    assert several_report.confusion is not None
    assert NAMES == list(several_report.confusion.index)
    assert ["TN", "FP", "FN", "TP"] == list(several_report.confusion.columns)
    assert [80] * 3 == several_report.confusion.sum(axis=1).tolist()


def test_sequences() -> None:
    """Scores per token, classes last or second, are judged token by token, and labels of -100 are left aside."""
    target = torch.tensor([[0, 1, -100], [2, 2, 1]])
    scores = nn.functional.one_hot(target.clamp(min=0), 4).double()  # (samples, tokens, classes)

    for outputs in (scores, scores.transpose(1, 2)):
        answers = as_classes(outputs, target)
        assert ([0, 1, 2, 2, 1], 4) == (answers.true.tolist(), answers.scores.shape[1])
        assert answers.true.tolist() == answers.scores.argmax(1).tolist()


def test_it_shows() -> None:
    """Words in a terminal, tables and a picture in a notebook, with names escaped."""
    report = classifier().report(["<b>", "$x$", "high"])

    assert "precision" in repr(report)
    assert "<b>" not in report._repr_html_().replace("&lt;b&gt;", "").split("<table")[1]
    assert '<img src="data:image/png;base64,' in report._repr_html_()


def test_many_classes_are_drawn() -> None:
    """A hundred classes still make a picture; their numbers are left out of it."""
    x, _ = numbers(40)
    session = regression(network(100)).add_data(train=(x, torch.arange(40)), valid=(x, torch.arange(40)))
    report = session.set_criterion(nn.CrossEntropyLoss).report()

    assert [] == list(report.figure().axes[0].texts)


def test_faults_are_told() -> None:
    """Too few names, a step that gives no outputs, and a missing model are told with what to type."""
    with pytest.raises(RecipeError, match=r"2 names, and the model gives 3 classes"):
        classifier().report(["a", "b"])
    with pytest.raises(RecipeError, match=r"return \(loss, outputs\)"):
        classifier().set_step(lambda model, criterion, batch: criterion(model(batch[0]), batch[1])).report()
    with pytest.raises(RecipeError, match="add_model"):
        quiet().add_data(train=classes()).set_criterion(nn.CrossEntropyLoss).report(split="train")


def test_without_scikit_learn() -> None:
    """Where scikit-learn is absent the message says what to install."""
    code = """
import sys; sys.modules["sklearn"] = None
import torch; from quik_nb import QuikSession, QuikError
try:
    QuikSession(view=False).add_data(train=(torch.ones(9, 1), torch.ones(9, 1)), valid=2).add_model(
        torch.nn.Linear(1, 1)).set_criterion(torch.nn.MSELoss).report()
except QuikError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert "pip install 'quik_nb[metrics]'" in said


def test_labels_that_the_criterion_ignores_are_not_counted() -> None:
    """A class that is left aside in the loss is left aside in the report."""
    x, y = classes(60)
    session = quiet(epochs=1).add_data(train=(x, y), valid=(x, y)).add_model(network(3)).set_optimizer(optim.SGD)
    session.set_criterion(nn.CrossEntropyLoss, ignore_index=0).train()

    assert int((y != 0).sum()) == session.report().table.loc["weighted avg", "support"]
