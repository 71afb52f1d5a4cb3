"""`quik_nb.traverse`: a training of a script."""

from argparse import Namespace
from typing import Any

import pytest
from harness.kernel import Kernel

import quik_nb
from quik_nb import QuikSession, RecipeError, add_learn_args
from quik_nb.session.script_errors import brief


def test_the_function_gets_a_session_of_the_settings_once() -> None:
    """`traverse(train, args)` calls train with a session of the settings, once, and gives back what it returns."""
    seen: list[QuikSession] = []

    def train(session: QuikSession) -> str:
        seen.append(session)
        return "done"

    assert "done" == quik_nb.traverse(train, add_learn_args().parse_args(["--epochs", "3", "--gpus", "2"]))
    assert [(3, 2)] == [(session.settings.epochs, session.settings.processes) for session in seen]


def test_the_form_of_older_scripts_is_answered_with_the_new_one() -> None:
    """`train(args, gpu)` is an error that shows `train(session)`, and nothing is called."""

    def learn(args: Any, gpu: Any) -> None:
        raise AssertionError("it was called")

    with pytest.raises(
        RecipeError, match=r"(?s)learn\(args: Any, gpu: Any\).*def learn\(session\):.*traverse\(learn, args"
    ):
        quik_nb.traverse(learn, Namespace())


def test_a_train_that_is_not_callable() -> None:
    """What cannot be called is told before anything else."""
    with pytest.raises(RecipeError, match=r"traverse calls train\(session\), and 3 is not callable"):
        quik_nb.traverse(3, Namespace())  # type: ignore[arg-type]


def test_causes_are_shown_briefly_too() -> None:
    """The brief text of an error has its causes, and no line of quik_nb in any of them."""

    def cause() -> None:
        add_learn_args(epochs=0)

    try:
        try:
            cause()
        except RecipeError as error:
            raise KeyError("mine") from error
    except KeyError as error:
        text = brief(error)

    assert ["epochs=0 is not a whole number above 0", "add_learn_args(epochs=0)", "mine"] == [
        words
        for words in ("epochs=0 is not a whole number above 0", "add_learn_args(epochs=0)", "mine")
        if words in text
    ]
    assert "cli_options.py" not in text


def test_who_am_i_outside_of_a_loop() -> None:
    """`session.world` says rank 0 of 1 in the process that builds the session."""
    world = QuikSession(device="cpu").world

    assert (0, 1, True, False) == (world.rank, world.world_size, world.is_logger, world.is_ddp)
    assert "cpu" == str(world.device)


def test_a_kernel_reads_no_command_line(kernel: Kernel) -> None:
    """In a notebook, options are not looked for in the kernel's own command line; there are the defaults."""
    shown = kernel.ok(
        "import quik_nb\n"
        "args = quik_nb.add_learn_args(epochs=7).parse_args()\n"
        "quik_nb.traverse(lambda session: print(session.settings.epochs, session.world.rank), args)"
    )

    assert "7 0" == shown.text.strip()


@pytest.mark.parametrize("name", ["QuikSession", "Settings"])
def test_shift_tab_in_a_kernel_tells_the_settings(kernel: Kernel, name: str) -> None:
    """What Shift-Tab shows of a session has each setting with its meaning and default."""
    kernel.ok("from quik_nb import QuikSession, Settings")
    shown = kernel.ok(f"from IPython import get_ipython\nprint(get_ipython().inspector.info({name})['docstring'])").text

    line = next(line for line in shown.splitlines() if "batch_size:" in line)
    assert "samples per optimizer step over all ranks" in line
    assert line.endswith("(default: 64)")
