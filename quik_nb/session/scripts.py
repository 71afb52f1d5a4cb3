"""`traverse(train, args)`: train from a script, with the settings of its command line.

What is not here: the command-line options (`recipe/cli_options.py`), and how ranks are started (`launch/`).
"""

import inspect
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from quik_nb.errors import RecipeError
from quik_nb.session.script_errors import show_errors_briefly
from quik_nb.session.session import QuikSession

Result = TypeVar("Result")


def traverse(train: Callable[[QuikSession], Result], args: Namespace, ignore: Iterable[str] = ()) -> Result:
    """Create a session with the settings of a command line, and call `train(session)` once, in this process.

    When the session trains, it starts one process per GPU, or trains on the CPU if there is none; the script stays the
    same. An uncaught exception is printed without the frames of quik_nb and torch.

        def train(session):
            session.add_data(train=(x, y), valid=0.2).add_model(Net())
            session.set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.AdamW)
            session.train()                        # or session.traverse(loop) for a custom loop

        if __name__ == "__main__":
            quik_nb.traverse(train, quik_nb.add_learn_args().parse_args())

    Args:
        train: builds the session and trains it.
        args: the result of `parser.parse_args()`, after `add_learn_args(parser)`.
        ignore: the script's own options in `args` whose names resemble a setting.

    Returns:
        What `train` returns.

    Raises:
        RecipeError: `train` does not take a session as its only argument, or a setting is invalid.
    """
    __tracebackhide__ = True
    show_errors_briefly()  # before the session is created, since its settings may be invalid
    _check_form(train)
    return train(QuikSession.from_args(args, ignore))


def _check_form(train: Any) -> None:
    """Raise a RecipeError if a function such as train(args, gpu) cannot be called with a session alone."""
    if not callable(train):
        raise RecipeError(f"traverse calls train(session), and {train!r} is not callable: use traverse(train, args).")
    try:
        signature = inspect.signature(train)
    except (TypeError, ValueError):  # some builtins have no signature
        return

    try:
        signature.bind(None)
    except TypeError:
        name = getattr(train, "__name__", "train")
        raise RecipeError(
            f"traverse calls {name}(session), and {name}{signature} takes other arguments: the session has the "
            f"settings and starts a process for each GPU itself. Use\n"
            f"    def {name}(session):\n"
            f"        session.add_data(...).add_model(...).set_criterion(...).set_optimizer(...)\n"
            f"        session.train()              # or session.traverse(loop) for a custom loop\n"
            f"    quik_nb.traverse({name}, args)"
        ) from None
