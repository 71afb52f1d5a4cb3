"""Programs as people write them have the losses of their plain loops: on one rank, on two, in parts, as a script."""

import re
import runpy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from programs import graphs, language, regressions, streams, transformer_models, vision
from programs.program import WAYS, Columns, Program
from quik_nb import QuikSession, QuikWarning, RecipeError

PROGRAMS: dict[str, Program] = {
    **vision.PROGRAMS,
    **regressions.PROGRAMS,
    **language.PROGRAMS,
    **transformer_models.PROGRAMS,
    **graphs.PROGRAMS,
    **streams.PROGRAMS,
}

EXACT = 1e-6


def pairs(kind: str) -> list[Any]:
    """All programs in all the ways of a kind: "ways", "told" or "refused"."""
    return [
        pytest.param(name, way, marks=[pytest.mark.slow] if program.slow else [])
        for name, program in PROGRAMS.items()
        for way in getattr(program, kind)
    ]


def assert_equal(expected: Columns, actual: Any) -> None:
    """Column by column, of those that the plain loop has."""
    for name, values in expected.items():
        assert values == pytest.approx([float(value) for value in actual[name]], abs=EXACT), name


@pytest.fixture(autouse=True)
def first_cell(name: str) -> Iterator[Program]:
    """What the author's first cell sets, until the program ends."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(PROGRAMS[name].dtype)
    yield PROGRAMS[name]
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def plain_loops() -> dict[str, Columns]:
    """What the plain loops gave that have run."""
    return {}


@pytest.fixture
def by_hand(name: str, plain_loops: dict[str, Columns], first_cell: Program) -> Columns:
    """What the program's plain loop gives."""
    if name not in plain_loops:
        plain_loops[name] = first_cell.by_hand()
    return plain_loops[name]


@pytest.mark.parametrize(("name", "way"), pairs("ways"))
def test_losses_of_the_plain_loop(name: str, way: str, by_hand: Columns) -> None:
    """Epoch by epoch, in training and validation; and where nothing is to be said, nothing is said."""
    with warnings.catch_warnings():
        if way in PROGRAMS[name].told:
            warnings.simplefilter("ignore", QuikWarning)
        session = PROGRAMS[name].train(way)

    assert_equal(by_hand, session.history)


@pytest.mark.parametrize(("name", "way"), pairs("told"))
def test_what_is_told(name: str, way: str) -> None:
    """Where the author could be wrong about the numbers, warnings say so, and no other ones come."""
    expected = PROGRAMS[name].told[way]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        PROGRAMS[name].train(way)

    texts = [str(warning.message) for warning in told]
    assert len(expected) == len(texts), texts
    assert [] == [words for words in expected if not any(re.search(words, text) for text in texts)], texts


@pytest.mark.parametrize(("name", "way"), pairs("refused"))
def test_what_is_refused(name: str, way: str) -> None:
    """What cannot be right ends before it starts."""
    with pytest.raises(RecipeError, match=PROGRAMS[name].refused[way]):
        PROGRAMS[name].train(way)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("distillation", "the step is a Distill, which has no short form"),
        ("language model with a state", "the step has parameters step, so pass them where it is called"),
        ("detection", "Not in this script: the columns of StepOutput"),
        ("translation that says its count", "so that each loss counts as a mean over samples"),
    ],
)
def test_what_a_script_lacks(name: str, words: str) -> None:
    """It says at its top what its author must fill in, and what it does not do."""
    top = PROGRAMS[name].session().as_code().partition("\nimport ")[0]

    assert words in top


@pytest.mark.parametrize(
    ("name", "way"),
    [
        (name, way)
        for name, program in PROGRAMS.items()
        for way in program.ways
        if program.script and "processes" not in WAYS[way]
    ],
)
def test_losses_of_the_script(
    name: str, way: str, by_hand: Columns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script of the session has the losses of the plain loop, too."""
    session: QuikSession = PROGRAMS[name].session(**WAYS[way])
    session.as_code(tmp_path)
    monkeypatch.chdir(tmp_path)
    history = runpy.run_path("train.py", run_name="__main__")["history"]

    losses = {column: values for column, values in by_hand.items() if column in ("train_loss", "valid_loss")}
    assert_equal(losses, {column: [row[column] for row in history] for column in losses})
