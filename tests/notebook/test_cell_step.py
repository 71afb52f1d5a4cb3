"""A cell's text as the body of a training step."""

import textwrap
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from quik_nb import RecipeError
from quik_nb.notebook.cell_step import step_source


def made(body: str, names: dict[str, Any] | None = None) -> Callable[..., Any]:
    """The function of a body, in a namespace of these names."""
    scope: dict[str, Any] = {}
    exec(compile(step_source(body), "cell", "exec"), names or {}, scope)
    return scope["training_step"]


@pytest.mark.parametrize(
    "body",
    [
        "loss = criterion(model(batch))",
        "criterion(model(batch))",
        "criterion(\n    model(batch)\n)  # a comment",
        "(criterion\n (model(batch)))",
        "return criterion(model(batch))",
        "loss = criterion(model(batch))\ndel batch",
        "if batch:\n\tloss = criterion(model(batch))\nelse:\n\tloss = 0",
        "äöü = 1; criterion(model(batch))",
        "loss: float = 0\nloss += criterion(model(batch))\n\n",
        "# nothing\n\nout = model(batch)\n\n# more\nloss = criterion(out)",
    ],
)
def test_a_body_gives_its_loss(body: str) -> None:
    """A last expression, an assignment to `loss` or a return is what the step returns."""
    assert -6 == made(body)(lambda batch: 2 * batch, lambda output: -output, 3)


def test_loss_and_outputs() -> None:
    """A pair as the last expression is returned as it is, for metrics."""
    assert (1, 2) == made("loss = 1\nloss, 2")(None, None, None)


@pytest.mark.parametrize("quotes", ['"""', "'''"])
def test_strings_over_lines_keep_their_value(quotes: str) -> None:
    """A string that spans lines is not indented."""
    body = f"x = {quotes}one\ntwo{quotes}; y = f{quotes}{{x}}\n  end{quotes}\nif x:\n    loss = x + y"

    assert "one\ntwoone\ntwo\n  end" == made(body)(None, None, None)


def test_lines_are_those_of_the_cell() -> None:
    """With the magic's line as the first, an error is reported in the line that it stands in."""
    with pytest.raises(ZeroDivisionError) as caught:
        made("x = batch\n\ny = x / 0\nloss = y")(None, None, 1)

    assert 4 == traceback.extract_tb(caught.value.__traceback__)[-1].lineno


def test_the_users_names_are_seen() -> None:
    """The step reads names of its namespace, and its own assignments stay its own."""
    names: dict[str, Any] = {"weight": 3}
    step = made("own = weight * batch\nloss = own", names)
    names["weight"] = 4

    assert 8 == step(None, None, 2)
    assert "own" not in names


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("for x in batch:\n    print(x)", "ends in `for x in batch:`"),
        ("output = model(batch)", "ends in `output = model(batch)`"),
        ("", "is empty"),
        ("# only a comment", "is empty"),
    ],
)
def test_a_body_without_a_loss_is_refused(body: str, words: str) -> None:
    """A body that gives no loss is answered with how it ends and how it should."""
    with pytest.raises(RecipeError, match="end it with loss = criterion") as caught:
        step_source(body)

    assert words in str(caught.value)


def test_a_syntax_error_names_the_line_of_the_cell() -> None:
    """Lines of a syntax error are counted from the magic's line, too."""
    with pytest.raises(SyntaxError) as caught:
        step_source("x = 1\nloss = (")

    assert 3 == caught.value.lineno


def test_the_source_reads_as_the_cell() -> None:
    """The source is the user's text with a head and an indent, comments and all."""
    body = textwrap.dedent("""\
        x, y = batch          # two tensors

        loss = criterion(model(x), y)
        """)

    assert (
        "def training_step(model, criterion, batch):\n"
        "    x, y = batch          # two tensors\n"
        "\n"
        "    loss = criterion(model(x), y)\n"
        "    return loss"
    ) == step_source(body)
