"""An exception as a value: whatever it is, its words and its line arrive, and its own class where that can be."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from quik_nb.errors import WorkerError, message_of
from quik_nb.launch.failure import Failure, as_error, capture


class PickyError(Exception):
    """Takes arguments that it does not keep."""

    def __init__(self, row: int, *, why: str) -> None:
        super().__init__(f"row {row}: {why}")
        self.row = row


class MuteError(Exception):
    """Has no words."""

    def __str__(self) -> str:
        raise ValueError("no words")


class ShapelessError(Exception):
    """Has no representation."""

    def __repr__(self) -> str:
        raise ValueError("no representation")


class StubbornError(Exception):
    """Refuses to be pickled."""

    def __reduce__(self) -> Any:
        raise ValueError("not me")


class ChangelingError(Exception):
    """Comes back as something else."""

    def __reduce__(self) -> Any:
        return int, ("7",)


class AttachedError(Exception):
    """Holds what cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.handle = (each for each in ())


def raised(make: Callable[[], BaseException]) -> BaseException:
    """An exception that was raised and caught."""
    try:
        raise make()
    except BaseException as error:
        return error


def arrived(error: BaseException) -> BaseException:
    """The error that the launching process raises for it."""
    return as_error(pickle.loads(pickle.dumps(capture(1, error))), 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PickyError(7, why="torn"), "row 7: torn"),
        (lambda: MuteError("x"), "(no message: its __str__ raised ValueError)"),
        (lambda: ShapelessError("x"), "x"),
        (lambda: StubbornError("x"), "x"),
        (lambda: ChangelingError("x"), "x"),
        (lambda: AttachedError("x"), "x"),
        (lambda: OSError(2, "no such file", "rows.csv"), "[Errno 2] no such file: 'rows.csv'"),
        (lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "'utf-8' codec can't decode byte 0xff"),
        (lambda: ExceptionGroup("many", [ValueError("one")]), "many (1 sub-exception)"),
        (lambda: StopIteration("x"), "x"),
    ],
)
def test_an_exception_arrives_as_its_own_class(make: Callable[[], Exception], words: str) -> None:
    """Whatever its class makes of arguments, words and pickles, it can be caught by name, and its line is there."""
    error = arrived(raised(make))

    assert type(make()) is type(error)
    assert message_of(error).startswith(words)
    assert isinstance(error.__cause__, WorkerError)
    assert "in raised\n    raise make()" in str(error.__cause__)


def test_attributes_arrive() -> None:
    """What the user's own exception holds is there, where it can be pickled."""
    error = arrived(raised(lambda: PickyError(7, why="torn")))

    assert isinstance(error, PickyError)
    assert 7 == error.row


@pytest.mark.parametrize("make", [lambda: SystemExit(3), KeyboardInterrupt, GeneratorExit])
def test_what_would_end_the_kernel_comes_as_an_error(make: Callable[[], BaseException]) -> None:
    """SystemExit and its like are told by their name, and do not end the process that is told."""
    error = arrived(raised(make))

    assert type(error) is WorkerError
    assert f"Rank 1 of 2 raised {type(make()).__name__}" in str(error)


def with_cause() -> None:
    """Raises one error from another."""
    try:
        {}["missing"]
    except KeyError as error:
        raise ValueError("row 7") from error


def while_handling() -> None:
    """Raises one error while it handles another."""
    try:
        {}["missing"]
    except KeyError:
        raise ValueError("row 7")  # noqa: B904  the point of it


def in_a_group() -> None:
    """Raises several errors."""
    raise ExceptionGroup("rows", [ValueError("row 7"), KeyError("missing")])


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (with_cause, "It was caused by:"),
        (while_handling, "It was raised while this was handled:"),
        (in_a_group, "It contains:"),
    ],
)
def test_what_is_related_is_shown(function: Callable[[], None], words: str) -> None:
    """The cause of an error, what it was raised on top of, and what a group consists of stand in the story."""

    def make() -> BaseException:
        try:
            function()
        except Exception as error:
            return error
        raise AssertionError

    story = str(arrived(make()).__cause__)

    assert words in story
    assert "  KeyError: 'missing'" in story
    assert "ValueError: row 7" in story


def test_a_cause_that_leads_back_ends() -> None:
    """Two errors that cause each other are shown a few times, not for ever."""
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one

    assert 10 > str(arrived(raised(lambda: one)).__cause__).count("It was caused by:") > 1


def test_an_exception_that_cannot_come_back_here_is_told_in_words() -> None:
    """A class that only the worker can import is told by name, words and line."""
    lost = Failure(1, "Odd", "1 and 2", (("file.py", 3, "wrong"),), error=b"no pickle")

    assert "Rank 1 of 2 raised Odd: 1 and 2" == str(as_error(lost, 2))
