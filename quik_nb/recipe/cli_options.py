"""The settings as options of a command line: one place for scripts, the magic and `python -m quik_nb`.

    parser = argparse.ArgumentParser()
    add_arguments(parser)                                    # --epochs 5 --batch-size 256 --gpus 4 ...
    session = QuikSession.from_args(parser.parse_args())

Options are made from the fields of `Settings`, so that a setting is defined once. What a value may be is checked by
`Settings` as well; here it is only read.
"""

import argparse
import typing
from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any, NoReturn

from quik_nb.errors import suggest
from quik_nb.recipe.settings import PRECISIONS, START_METHODS, VIEWS, Settings, setting_names

ALIASES = {"processes": ("--gpus",)}
"""Further names of an option: what scripts for several GPUs call it."""

CHOICES: Mapping[str, Sequence[str]] = {
    "precision": PRECISIONS,
    "start_method": START_METHODS,
    "view": [str(view).lower() for view in VIEWS],
    "output": ("logger", "all"),
    "processes": ("auto",),
}
"""Words that a value may be, for help and completion."""


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
    hints = typing.get_type_hints(Settings)
    for field in fields(Settings):
        doc = field.metadata["doc"].replace("%", "%%")
        default = getattr(defaults, field.name, None)
        if default not in (None, ""):
            doc += f" (default: {_shown(default)})"
        # no default here: what was not given is None, so that the session's own value stays
        how: dict[str, Any] = {"dest": field.name, **_reading(field.name, hints[field.name])}
        with suppress(argparse.ArgumentError):  # the parser's owner has an option of this name: theirs counts
            group.add_argument(option(field.name), *ALIASES.get(field.name, ()), **how, help=doc)
        if "_" in field.name:  # as in Python, for those who type it so
            with suppress(argparse.ArgumentError):
                group.add_argument(f"--{field.name}", **how, help=SUPPRESS)
    with suppress(argparse.ArgumentError):
        group.add_argument("--no-view", dest="view", action="store_const", const=False, help=SUPPRESS)
    return parser


def settings_from(namespace: Namespace) -> dict[str, Any]:
    """The settings that were given on the command line, by name; what is None counts as not given."""
    given = {name: getattr(namespace, name, None) for name in setting_names()}
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None
    }


def option(name: str) -> str:
    """The option for a setting.

    >>> option("batch_size")
    '--batch-size'
    """
    return "--" + name.replace("_", "-")


def _reading(name: str, hint: Any) -> dict[str, Any]:
    """How argparse reads a value of this type; None in a type says that it may be left out, which any option may."""
    kinds = frozenset(typing.get_args(hint) or (hint,)) - {type(None)}
    if kinds == {tuple[float, float]}:
        return {"type": float, "nargs": 2, "metavar": "X"}
    readings: dict[frozenset[Any], dict[str, Any]] = {
        frozenset({bool}): {"action": BooleanOptionalAction},
        frozenset({int}): {"type": int, "metavar": "N"},
        frozenset({float}): {"type": float, "metavar": "X"},
        frozenset({int, str}): {"type": _number_or_word, "metavar": "N|TEXT"},
        frozenset({bool, str}): {"type": _word_or_false},
    }
    words = {"metavar": "|".join(CHOICES[name])} if name in CHOICES else {"metavar": "TEXT"}
    return {**words, **readings.get(kinds, {})} if kinds != {bool} else readings[kinds]


def _number_or_word(text: str) -> int | str:
    return int(text) if text.lstrip("+-").isdigit() else text


def _word_or_false(text: str) -> str | bool:
    return False if text.lower() == "false" else text


def _shown(value: Any) -> str:
    """A default in the way it would be typed."""
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
            yield f"nothing is known to do with {' '.join(words)!r}"
