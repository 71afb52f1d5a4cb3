"""A template with answers is a shorter program, in which nothing speaks of what was left out."""

import textwrap
from typing import Any

import pytest

from quik_nb.export.template import Template

PROGRAM = '''
"""What the template is for."""

import math
import os

LOUD = True
TIMES = 2  # how often


def shout(word: str, ends: str = "!") -> str:
    """A word in capitals."""
    return word.upper() + ends


def main(word: str) -> None:
    """Say it."""
    # Loud words are heard.
    if LOUD and TIMES > 1:
        # As often as asked for.
        for _ in range(TIMES):
            print(shout(word))  # type: ignore[no-untyped-call]
    elif LOUD:
        print(shout(word))
    else:
        print(word, math.pi)
    end = None if TIMES > 1 else "."


main("a")
'''


def filled(parts: dict[str, Any] | None = None, inlined: dict[str, str] | None = None, **facts: Any) -> str:
    """The program with these facts."""
    return Template(PROGRAM, facts, parts or {}, inlined or {}).filled().strip()


def body(text: str) -> str:
    """What the function of a program does."""
    return textwrap.dedent(text.partition('"""Say it."""\n')[2].partition("\n\n\n")[0])


@pytest.mark.parametrize(
    ("facts", "left"),
    [
        ({"LOUD": False, "TIMES": 1}, 'print(word, math.pi)\nend = "."'),
        ({"LOUD": True, "TIMES": 1}, 'print(shout(word))\nend = "."'),
        ({"LOUD": True, "TIMES": 2}, "# As often as asked for.\nfor _ in range(TIMES):\n    print(shout(word))"),
    ],
)
def test_the_branch_that_applies_is_left(facts: dict[str, Any], left: str) -> None:
    """Of an `if` and of a conditional expression what applies is left, with its comments, and no question."""
    assert f"# Loud words are heard.\n{left}" == body(filled(**facts))


def test_open_questions_stay() -> None:
    """A question that the facts do not answer stays in the program, with what hangs on it."""
    assert "if LOUD and TIMES > 1:\n" in filled()
    assert "elif LOUD:\n" in filled()


def test_what_is_not_used_is_left_out() -> None:
    """Imports, constants and functions stay as long as something uses them."""
    quiet, loud = filled(LOUD=False, TIMES=1), filled(LOUD=True, TIMES=2)

    assert (True, False, False) == ("import math" in quiet, "import os" in quiet, "def shout" in quiet)
    assert (False, True, True) == ("import math" in loud, "TIMES = 2  # how often" in loud, "def shout" in loud)


def test_parts_are_filled_in() -> None:
    """A part takes the place of a value, whose comment stays; what is inlined takes the place of a name."""
    text = filled({"TIMES": "3"}, {r"word\b": "name"}, LOUD=True, TIMES=3)

    assert "TIMES = 3  # how often" in text
    assert "print(shout(name))" in text


def test_a_loop_that_is_left_out_leaves_its_body() -> None:
    """With a part that is None, the `for` about it is gone and its body stays."""
    text = Template(
        "for one in many:\n    # A reason.\n    print(one)\n", {}, {"one": None}, {r"one\b": "all"}
    ).filled()

    assert "# A reason.\nprint(all)" == text.strip()
