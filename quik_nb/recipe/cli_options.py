"""The settings as options of a command line: one place for scripts, the magic and `python -m quik_nb`.

    parser = argparse.ArgumentParser()
    quik_nb.add_learn_args(parser, lr=3e-4)                  # --epochs 5 --batch-size 256 --gpus 4 ...
    session = QuikSession.from_args(parser.parse_args())

Options are made from the descriptions in `settings.py`. Values are read and checked here by the same descriptions, so
that a value that cannot be used is an error of the command line.
"""

import sys
from argparse import SUPPRESS, Action, ArgumentError, ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from quik_nb.errors import RecipeError, suggest
from quik_nb.recipe.kinds import PAIR
from quik_nb.recipe.other_names import TRANSLATIONS
from quik_nb.recipe.settings import SETTINGS, Setting, Settings, translated

NEAR = 0.85
"""How much alike a name and a setting's must be (difflib's ratio) to be taken for a slip of the pen."""


class Parser(ArgumentParser):
    """A parser that answers an unknown option with the near one, and takes no abbreviations in its place.

    In a notebook it reads no command line: that is the kernel's, not the user's.
    """

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **keywords})

    @property
    def options(self) -> list[str]:
        """All options that the help shows."""
        return [o for action in self._actions if action.help != SUPPRESS for o in action.option_strings]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but what is unknown is an error here, where a subcommand's own options can be proposed."""
        if args is None and _in_kernel():
            args = []
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


def _in_kernel() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


# ---------------------------------------------------------------------- options of a parser


def add_learn_args(
    parser: ArgumentParser | None = None, defaults: Mapping[str, Any] | None = None, /, **more: Any
) -> ArgumentParser:
    """Add an option for each setting to a parser; `QuikSession.from_args` makes a session of what it parses.

    What the help shows as default is what trains where the option is not used. Options that the parser has already stay
    as they are; those added after this must have other names.

    Args:
        parser: of your script; None makes one that proposes the near option for a typo, and that reads no command line
            in a notebook. (Any other parser needs `parse_args([])` there.)
        defaults: your own, by the name of the setting; all others are those of `quik_nb.Settings`.
        more: further ones, as keywords: `add_learn_args(parser, lr=3e-4, epochs=10)`.

    Returns:
        The parser.

    Raises:
        RecipeError: a default is of no setting, cannot be used, or is of an option that the parser has already.

    >>> parser = add_learn_args(batch_size=256)
    >>> args = parser.parse_args(["--gpus", "none", "-lr", "3e-4", "--no-save"])
    >>> args.batch_size, args.device, args.lr, args.save
    (256, 'cpu', 0.0003, False)
    """
    given: dict[str, Any] = {}
    for name, value in {**(defaults or {}), **more}.items():
        given |= translated(name, value) or {name: value}
    chosen = Settings().changed(given)

    parser = Parser() if parser is None else parser
    values = {name: _default(parser, name, given, getattr(chosen, name)) for name in SETTINGS}
    _add_options(parser, values)
    return parser


def add_optional_args(parser: ArgumentParser) -> ArgumentParser:
    """Add an option for each setting, for a session that has values of its own: what is not given is None.

    >>> settings_from(add_optional_args(Parser()).parse_args(["--gpus", "4", "--lr", "3e-4"]))
    {'lr': 0.0003, 'processes': 4}
    """
    _add_options(parser, dict.fromkeys(SETTINGS))
    return parser


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
    if text in GPUS:
        return ("none", "auto")
    found = (setting.kind.words for name, setting in SETTINGS.items() if text in (option(name), setting.short_option))
    return next(found, ())


def _default(parser: ArgumentParser, name: str, given: Mapping[str, Any], chosen: Any) -> Any:
    """What a setting is where its option is not used; None where an option of the parser's owner says it."""
    from_owner = parser.get_default(name)  # of an option of theirs, or as set_defaults() left it
    owned = {action.dest for action in parser._actions}
    other_names = [other for other in owned if name in translated(other, 1)]

    if name in given and (name in owned or other_names):
        raise RecipeError(
            f"add_learn_args({name}={chosen!r}): the parser has an option of its own for it, whose default counts: "
            f"leave it out here, or use parser.set_defaults({next(iter(other_names), name)}={chosen!r})."
        )
    if other_names:
        return None
    return chosen if name in given or from_owner is None else from_owner


def _add_options(parser: ArgumentParser, defaults: Mapping[str, Any]) -> None:
    group = parser.add_argument_group("settings of the training")

    def add(strings: Iterable[str], **how: Any) -> None:
        free = [string for string in strings if string not in parser._option_string_actions]
        if free:  # an option that the parser's owner has already stays theirs
            group.add_argument(*free, **how)

    for name, setting in SETTINGS.items():
        reading = {"dest": name, **_reading(name, setting)}
        help_text = setting.doc.replace("%", "%%")
        if defaults[name] not in (None, ""):
            help_text += " (default: %(default)s)"
        shown = [*filter(None, [setting.short_option]), *_strings(option(name), setting)]
        add(shown, **reading, default=defaults[name], help=help_text)

        # also as written in Python, and as older scripts call it
        hidden = [word for other in (name, *setting.also_called) for word in (f"--{other}", option(other))]
        add(_strings(*dict.fromkeys(hidden), setting), **reading, default=SUPPRESS, help=SUPPRESS)

    translate: dict[str, Any] = {"dest": SUPPRESS, "default": SUPPRESS, "action": _Translated}
    add(GPUS, **translate, name="gpus", metavar="N|none|auto", help="processes with a GPU each; none: on the CPU")
    add(MIXED, **translate, name="mixed_precision", nargs=0, help="the same as --precision auto")
    add(MIXED_AS_BEFORE, **translate, name="mixed_precision", nargs=0, help=SUPPRESS)
    add(["--no-view"], dest="view", action="store_const", const=False, default=SUPPRESS, help=SUPPRESS)
    add(["-n", "--nodes", "-nr", "--nr"], dest=SUPPRESS, default=SUPPRESS, action=_OneMachine, help=SUPPRESS)


GPUS = ("-g", "--gpus")
MIXED = ("-amp", "--mixed-precision", "--no-mixed-precision")
MIXED_AS_BEFORE = ("--mixed_precision", "--no-mixed_precision")


def _strings(*parts: Any) -> list[str]:
    """Options, and with those of a switch the ones that switch it off."""
    *options, setting = parts
    if not setting.kind.is_switch:
        return list(options)
    return [word for one in options for word in (one, f"--no-{one.removeprefix('--')}")]


def _reading(name: str, setting: Setting) -> dict[str, Any]:
    """How argparse reads values of a setting."""
    if setting.kind.is_switch:
        return {"action": _Switch}
    how: dict[str, Any] = {"action": _Value, "setting": name, "metavar": setting.kind.metavar}
    return {**how, "nargs": "+"} if setting.kind is PAIR else how


# ---------------------------------------------------------------------- what parsing an option does


class _Value(Action):
    """Reads the value of a setting and checks it.

    The parts of a value that is a pair are put together, so that "0.9, 0.99", 0.9,0.99 and 0.9 0.99 mean the same.
    """

    def __init__(self, *, setting: str, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.setting = SETTINGS[setting]

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: Any = None) -> None:
        text = values if isinstance(values, str) else " ".join(values)
        setattr(namespace, self.dest, _checked(self, self.setting, text))


class _Switch(Action):
    """Sets True, or False where the option begins with --no-."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(nargs=0, **keywords)

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, not str(option_string).startswith("--no-"))


class _Translated(Action):
    """Sets what an option of another name means as settings."""

    def __init__(self, *, name: str, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.name = name

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: Any = None) -> None:
        value = values
        if self.nargs == 0:
            value = not str(option_string).startswith("--no-")
        for name, meant in translated(self.name, value).items():
            checked = _checked(self, SETTINGS[name], meant) if isinstance(meant, str) else meant
            setattr(namespace, name, checked)


class _OneMachine(Action):
    """Answers the options of scripts that counted machines: one machine is what there is."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: Any = None) -> None:
        if values not in ("0", "1"):
            raise ArgumentError(
                self,
                f"{values!r} machines: a script trains on the machine that it was started on, with --gpus N; "
                f"leave {option_string} out",
            )


def _checked(action: Action, setting: Setting, text: str) -> Any:
    """The value of a text.

    Raises:
        ArgumentError: it is none that the setting can have.
    """
    try:
        value = setting.kind.normalize(setting.kind.from_text(text))
    except ValueError:
        raise ArgumentError(action, f"{text!r} {setting.kind.problem}") from None
    if fault := setting.fault(value):
        raise ArgumentError(action, f"{text!r} {fault}")
    return value


# ---------------------------------------------------------------------- what was parsed


def settings_from(namespace: Namespace, ignore: Iterable[str] = ()) -> dict[str, Any]:
    """The settings that a namespace has, by name; what is None counts as not given.

    Names of other tools are understood (`gpus`, `bs`, `learning_rate`, `mixed_precision`, ...).

    Args:
        namespace: as `parse_args()` gives it, or made by hand.
        ignore: names that are the script's own, although they look like a setting.

    Raises:
        RecipeError: a name is almost one of a setting, a value is none that the setting can have, or two names of one
            setting have different values.

    >>> settings_from(Namespace(gpus=2, bs=32, data="x.csv"))
    {'processes': 2, 'batch_size': 32}
    """
    if not isinstance(namespace, Namespace):
        raise RecipeError(
            f"Settings are read from what parser.parse_args() gives, and this is {type(namespace).__name__} "
            f"{namespace!r:.60}: pass that, or argparse.Namespace(epochs=5)."
        )
    given = {name: value for name, value in vars(namespace).items() if value is not None and name not in ignore}

    settings = {name: given[name] for name in SETTINGS if name in given}
    for other in (name for name in given if name not in SETTINGS):
        for name, value in translated(other, given[other]).items():
            if settings.get(name, value) not in (value, SETTINGS[name].default):
                raise RecipeError(
                    f"args.{other}={given[other]!r} and args.{name}={settings[name]!r} are two values of one setting, "
                    f"{name}: set args.{name} alone."
                )
            settings[name] = value

    if faults := [*_faults(settings), *_almost_settings(given)]:
        raise RecipeError("; ".join(faults))
    return settings


def _faults(settings: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each value that its setting cannot have, which may be of an option that is not ours."""
    for name, value in settings.items():
        fault = SETTINGS[name].fault(SETTINGS[name].kind.normalize(value))
        if fault:
            yield f"args.{name}: {name}={value!r} {fault}; {_or_ignore(name)}"


def _or_ignore(name: str) -> str:
    return f"where it is an option of your own, pass ignore=[{name!r}] beside args"


def _almost_settings(names: Iterable[str]) -> Iterator[str]:
    """One sentence for each name that is none of a setting and looks like one."""
    others = {other for setting in SETTINGS.values() for other in setting.also_called} | set(TRANSLATIONS)
    for name in names:
        if name in SETTINGS or name in others:
            continue
        near = get_close_matches(name, [*SETTINGS, *others], n=1, cutoff=NEAR)
        if near:
            yield (f"args.{name} is no setting, and would change nothing: use args.{near[0]}; {_or_ignore(name)}")
