"""The magic: `%quik_train session --epochs 5` trains; above a cell, `%%quik_train session` makes it the training step.

It parses and delegates: options are those of `cli_options`, the work is `session.train()`. What was typed wrong in the
line is told in one line; what goes wrong in the training is shown as from `session.train()` itself.
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
"""The line of the magic: what was typed, and the word that was begun."""
USAGE = f"%{NAME} session [options], or %%{NAME} session [options] above the lines of a training step"


class MagicParser(Parser):
    """A parser whose errors are shown as one line, and which never ends the kernel."""

    def error(self, message: str) -> NoReturn:
        """Raise what IPython shows without a traceback."""
        raise UsageError(f"%{NAME}: {message}")


def parser() -> MagicParser:
    """The parser of the line, made when it is needed."""
    made = MagicParser(prog=f"%{NAME}", usage=USAGE.replace("%", "%%"), add_help=False)
    made.add_argument("session", nargs="?", help="the name of a QuikSession")
    made.add_argument("-h", "--help", action="store_true", help="show this")
    add_optional_args(made)
    return made


@magics_class
class QuikMagics(Magics):
    """The magics of quik_nb."""

    shell: InteractiveShell

    @line_cell_magic
    def quik_train(self, line: str, cell: str | None = None) -> Run | None:
        """Train a session; options are for this call, as in session.train().

            %quik_train session --epochs 5 --lr 3e-4 --processes 2

        Above a cell, the cell is what is done with a batch, and stays the session's step from then on:

            %%quik_train session
            x, y = batch
            loss = criterion(model(x), y)

        %quik_train --help lists the options.
        """
        __tracebackhide__ = True

        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:  # a quote is open
            raise UsageError(f"%{NAME}: {error} in {line!r}") from None

        known = parser()
        namespace = known.parse_args(words)
        if namespace.help:
            known.print_help()
            return None

        session = found(namespace.session, self.shell.user_ns)
        settings = checked(session, settings_from(namespace))
        if cell is not None:
            session.set_step(step(cell, self.shell))
        return session.train(**settings)


def sessions(namespace: Mapping[str, Any]) -> dict[str, QuikSession]:
    """The sessions that have a name of the user's own."""
    return {k: v for k, v in namespace.items() if isinstance(v, QuikSession) and not k.startswith("_")}


def found(name: str | None, namespace: Mapping[str, Any]) -> QuikSession:
    """The session of this name."""
    known = sessions(namespace)
    if name is None:
        choice = "there is none yet, so make one: session = QuikSession(...)"
        if known:
            choice = f"there is {', '.join(known)}"
        raise UsageError(f"%{NAME}: which session? {choice}. Use {USAGE}.")

    if name in known:
        return known[name]
    if name in namespace:
        raise UsageError(f"%{NAME}: {name} is a {type(namespace[name]).__name__} and no QuikSession.")
    raise UsageError(f"%{NAME}: there is no session {name!r}: {suggest(name, known)}")


def checked(session: QuikSession, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, if they can be used: they were typed in this line, so this line tells what is wrong."""
    try:
        session.settings.changed(settings)
    except RecipeError as error:
        raise UsageError(f"%{NAME}: {error}") from None
    return settings


def step(cell: str, shell: InteractiveShell) -> Callable[..., Any]:
    """The cell as a function that sees the user's names, under the cell's own name and lines in tracebacks."""
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
    made: Callable[..., Any] = scope.popitem()[1]
    return made


def matcher(shell: InteractiveShell) -> Callable[[CompletionContext], SimpleMatcherResult]:
    """What completes the line of the magic: options, the words that an option takes, or the names of sessions."""

    def match(context: CompletionContext) -> SimpleMatcherResult:
        line = LINE.search(context.text_until_cursor)
        if line is None:
            return {"completions": []}
        typed, begun = line.groups()
        words = [word for word in candidates(typed, begun, shell) if word.startswith(begun)]
        # Python's own names have no place in this line
        return {"completions": [SimpleCompletion(word, type="param") for word in words], "suppress": True}

    return context_matcher(identifier=MATCHER)(match)  # type: ignore[no-any-return]


def candidates(typed: str, begun: str, shell: InteractiveShell) -> Iterable[str]:
    """All that may stand where `begun` was begun, after what was typed."""
    if begun.startswith("-"):
        return parser().options

    words = value_words(typed.split()[-1]) if typed.strip() else ()
    return words or sessions(shell.user_ns)


def load(shell: InteractiveShell) -> None:
    """Register the magic and its completion."""
    shell.register_magics(QuikMagics)
    shell.Completer.custom_matchers.append(matcher(shell))


def unload(shell: InteractiveShell) -> None:
    """Take the magic away again."""
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop(NAME, None)
    matchers = shell.Completer.custom_matchers
    matchers[:] = [match for match in matchers if getattr(match, "matcher_identifier", None) != MATCHER]
