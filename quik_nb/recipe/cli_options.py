"""The settings as options of a command line: one place for scripts, the magic and `python -m quik_nb`.

    parser = argparse.ArgumentParser()
    add_arguments(parser)                                    # --epochs 5 --batch-size 256 --gpus 4 ...
    session = QuikSession.from_args(parser.parse_args())

Options are made from the descriptions in `settings.py`, so that a setting is described once. What a value may be is
checked by `Settings` as well; here it is only read.
"""

import argparse
from argparse import SUPPRESS, Action, ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from quik_nb.errors import suggest
from quik_nb.recipe.kinds import PAIR, Kind
from quik_nb.recipe.settings import SETTINGS, Settings


def add_arguments(parser: ArgumentParser, defaults: Settings | None = None) -> ArgumentParser:
    """Add an option for each setting; one that the parser has already stays as it is.

    Args:
        parser: any; a `quik_nb.recipe.cli_options.Parser` answers a typo with the near option.
        defaults: what the help shows as default; None shows none.

    >>> parser = add_arguments(Parser())
    >>> settings_from(parser.parse_args(["--gpus", "4", "--lr", "3e-4", "--no-save"]))
    {'lr': 0.0003, 'processes': 4, 'save': False}
    """
    group = parser.add_argument_group("settings of the training")
    for name, setting in SETTINGS.items():
        doc = setting.doc.replace("%", "%%")
        default = getattr(defaults, name, None)
        if default not in (None, ""):
            doc += f" (default: {_shown(default)})"

        # no default here: what was not given is None, so that the session's own value stays
        reading: dict[str, Any] = {"dest": name, **_reading(setting.kind)}
        with suppress(argparse.ArgumentError):  # the parser's owner has an option of this name: theirs counts
            group.add_argument(option(name), *setting.options, **reading, help=doc)
        if "_" in name:  # also as it is written in Python
            with suppress(argparse.ArgumentError):
                group.add_argument(f"--{name}", **reading, help=SUPPRESS)

    with suppress(argparse.ArgumentError):
        group.add_argument("--no-view", dest="view", action="store_const", const=False, help=SUPPRESS)
    return parser


def settings_from(namespace: Namespace) -> dict[str, Any]:
    """The settings that were given on the command line, by name; what is None counts as not given."""
    given = {name: getattr(namespace, name, None) for name in SETTINGS}
    return {name: value for name, value in given.items() if value is not None}


def option(name: str) -> str:
    """The option for a setting.

    >>> option("batch_size")
    '--batch-size'
    """
    return "--" + name.replace("_", "-")


def value_words(text: str) -> tuple[str, ...]:
    """The words that an option takes, for completion; none where it takes numbers or any text.

    >>> value_words("--start-method")
    ('forkserver', 'fork', 'spawn')
    """
    found = (setting.kind.words for name, setting in SETTINGS.items() if text in (option(name), *setting.options))
    return next(found, ())


def _reading(kind: Kind) -> dict[str, Any]:
    """How argparse reads values of a kind."""
    if kind.is_switch:
        return {"action": BooleanOptionalAction}
    reading = {"type": _reader(kind), "metavar": kind.metavar}
    if kind is PAIR:
        return {**reading, "nargs": "+", "action": _Joined}
    return reading


def _reader(kind: Kind) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind.from_text(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} {kind.problem}") from None

    return read


class _Joined(Action):
    """Puts the parts of a value together, so that "0.9, 0.99", "0.9,0.99" and 0.9 0.99 mean the same."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, tuple(number for part in values for number in part))


def _shown(value: Any) -> str:
    """A default as it is given on a command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


class Parser(ArgumentParser):
    """A parser that answers an unknown option with the near one, and takes no abbreviations in its place."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **keywords})

    @property
    def options(self) -> list[str]:
        """All options that the help shows."""
        return [o for action in self._actions if action.help != SUPPRESS for o in action.option_strings]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but what is unknown is an error here, where a subcommand's own options are at hand."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error("; ".join(self._complaints(unknown)))
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """The message and exit code 2, without a usage of a dozen lines in front of it."""
        self.exit(2, f"{self.prog}: {message}\n{self.prog} --help shows all options\n")

    def _complaints(self, words: Sequence[str]) -> Iterator[str]:
        options = [word.partition("=")[0] for word in words if word.startswith("-")]
        yield from (f"there is no option {name}: {suggest(name, self.options)}" for name in options)
        if not options:
            yield f"unexpected argument: {' '.join(words)!r}"
