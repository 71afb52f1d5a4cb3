"""`traverse(train, args)`: a training of a script, with the settings that its command line gave.

What is not here: the options of the command line (`recipe/cli_options.py`), and where and how ranks are started
(`launch/`).
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
    """Make a session of the settings of a command line, and call `train(session)` with it, once, in this process.

    The session starts a process for each GPU when it trains, or trains on the CPU where there is none: the script is
    the same. An error that ends the script is shown without the frames of quik_nb and torch.

        def train(session):
            session.add_data(train=(x, y), valid=0.2).add_model(Net())
            session.set_criterion(nn.CrossEntropyLoss).set_optimizer(optim.AdamW)
            session.train()                        # or session.traverse(loop) for a loop of your own

        if __name__ == "__main__":
            quik_nb.traverse(train, quik_nb.add_learn_args().parse_args())

    Args:
        train: builds the session and trains it.
        args: of `parser.parse_args()`, after `add_learn_args(parser)`.
        ignore: names in `args` of the script's own that look like a setting.

    Returns:
        What `train` returns.

    Raises:
        RecipeError: `train` takes something else than a session, or a setting cannot be used.
    """
    __tracebackhide__ = True
    show_errors_briefly()  # before there is a session: its settings may be wrong
    _check_form(train)
    return train(QuikSession.from_args(args, ignore))


def _check_form(train: Any) -> None:
    """Raise a RecipeError where a function cannot be called with a session alone, as train(args, gpu)."""
    if not callable(train):
        raise RecipeError(f"traverse calls a function of a session, and got {train!r}: pass traverse(train, args).")
    try:
        signature = inspect.signature(train)
    except (TypeError, ValueError):  # of a builtin, which has none
        return

    try:
        signature.bind(None)
    except TypeError:
        name = getattr(train, "__name__", "train")
        raise RecipeError(
            f"traverse calls {name}(session), and {name}{signature} takes something else: the session knows the "
            f"settings and starts a process for each GPU itself. Use\n"
            f"    def {name}(session):\n"
            f"        session.add_data(...).add_model(...).set_criterion(...).set_optimizer(...)\n"
            f"        session.train()              # or session.traverse(loop) for a loop of your own\n"
            f"    quik_nb.traverse({name}, args)"
        ) from None
