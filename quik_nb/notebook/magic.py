"""The magic `%quik_train session --epochs 5` trains; `%%quik_train session` makes the cell the training step.

Entry point: it parses options with `cli_options` and calls `session.train()`. Mistakes in the line are reported in one
line; errors of the training look as if raised by `session.train()` itself.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class

from quik_nb.errors import RecipeError, suggest
from quik_nb.notebook.cell_step import step_source
from quik_nb.recipe.cli_options import Parser, add_optional_args, settings_from, value_words
from quik_nb.session.run import Run
from quik_nb.session.session import QuikSession

NAME = "quik_train"
MATCHER = f"{__name__}.match"
LINE = re.compile(rf"(?:^|%){NAME}((?:\s.*)?\s)(\S*)$")
"""The line of the magic: the complete words, and the word to complete."""
USAGE = f"%{NAME} session [options], or %%{NAME} session [options] above the lines of a training step"


class MagicParser(Parser):
    """A parser whose errors are shown as one line, and which never exits the kernel."""

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError, which IPython shows without a traceback."""
        raise UsageError(f"%{NAME}: {message}")


def parser() -> MagicParser:
    """The parser of the line."""
    options = MagicParser(prog=f"%{NAME}", usage=USAGE.replace("%", "%%"), add_help=False)
    options.add_argument("session", nargs="?", help="the name of a QuikSession")
    options.add_argument("-h", "--help", action="store_true", help="show this")
    add_optional_args(options)
    return options


@magics_class
class QuikMagics(Magics):
    """The magics of quik_nb."""

    shell: InteractiveShell

    @line_cell_magic
    def quik_train(self, line: str, cell: str | None = None) -> Run | None:
        """Train a session; options are for this call only, as in session.train().

            %quik_train session --epochs 5 --lr 3e-4 --processes 2

        As a cell magic, the cell becomes the session's training step, for this and later calls:

            %%quik_train session
            x, y = batch
            loss = criterion(model(x), y)

        %quik_train --help lists the options.
        """
        __tracebackhide__ = True

        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:  # an unclosed quote
            raise UsageError(f"%{NAME}: {error} in {line!r}") from None

        known = parser()
        namespace = known.parse_args(words)
        if namespace.help:
            known.print_help()
            return None

        session = find_session(namespace.session, self.shell.user_ns)
        settings = checked(session, settings_from(namespace))
        if cell is not None:
            session.set_step(step(cell, self.shell))
        return session.train(**settings)


def sessions(namespace: Mapping[str, Any]) -> dict[str, QuikSession]:
    """The sessions in the user's namespace, without IPython's `_`, `_3` and so on."""
    return {name: value for name, value in namespace.items() if isinstance(value, QuikSession) and name[:1] != "_"}


def find_session(name: str | None, namespace: Mapping[str, Any]) -> QuikSession:
    """The session with this name.

    Raises:
        UsageError: no name was given, or it is not that of a session.
    """
    known = sessions(namespace)
    if name is None:
        choice = "there is none yet, so create one: session = QuikSession(...)"
        if known:
            choice = f"there is {', '.join(known)}"
        raise UsageError(f"%{NAME}: which session? {choice}. Use {USAGE}.")

    if name in known:
        return known[name]
    if name in namespace:
        raise UsageError(f"%{NAME}: {name} is a {type(namespace[name]).__name__} and not a QuikSession.")
    raise UsageError(f"%{NAME}: there is no session {name!r}: {suggest(name, known)}")


def checked(session: QuikSession, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings; raises a UsageError if a value is invalid."""
    try:
        session.settings.changed(settings)
    except RecipeError as error:
        raise UsageError(f"%{NAME}: {error}") from None
    return settings


def step(cell: str, shell: InteractiveShell) -> Callable[..., Any]:
    """The cell as a function in the user's namespace, with the file name and line numbers of the cell in tracebacks."""
    try:
        source = step_source(cell)
    except RecipeError as error:
        raise UsageError(f"%%{NAME}: {error}") from None
    except SyntaxError as error:
        where = f"line {error.lineno} of this cell: {(error.text or '').strip()!r}"
        raise UsageError(f"%%{NAME}: {error.msg}, {where}") from None

    filename = shell.compile.cache(source, shell.execution_count)
    scope: dict[str, Any] = {}
    exec(compile(source, filename, "exec"), shell.user_ns, scope)
    function: Callable[..., Any] = scope.popitem()[1]
    return function


def matcher(shell: InteractiveShell) -> Callable[[CompletionContext], SimpleMatcherResult]:
    """A completer for the line of the magic: options, the values of an option, or names of sessions."""

    def match(context: CompletionContext) -> SimpleMatcherResult:
        line = LINE.search(context.text_until_cursor)
        if line is None:
            return {"completions": []}
        complete, prefix = line.groups()
        words = [word for word in candidates(complete, prefix, shell) if word.startswith(prefix)]
        # "suppress" leaves out IPython's completions of Python names
        return {"completions": [SimpleCompletion(word, type="param") for word in words], "suppress": True}

    return context_matcher(identifier=MATCHER)(match)  # type: ignore[no-any-return]


def candidates(complete: str, prefix: str, shell: InteractiveShell) -> Iterable[str]:
    """The possible words after the complete ones, some of which start with `prefix`."""
    if prefix.startswith("-"):
        return parser().options

    words = value_words(complete.split()[-1]) if complete.strip() else ()
    return words or sessions(shell.user_ns)


def load(shell: InteractiveShell) -> None:
    """Register the magic and its completion."""
    shell.register_magics(QuikMagics)
    shell.Completer.custom_matchers.append(matcher(shell))


def unload(shell: InteractiveShell) -> None:
    """Unregister the magic and its completion."""
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop(NAME, None)
    matchers = shell.Completer.custom_matchers
    matchers[:] = [match for match in matchers if getattr(match, "matcher_identifier", None) != MATCHER]
