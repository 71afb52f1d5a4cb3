"""The magic, in a real IPython shell."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from harness.cells import cell
from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from quik_nb.notebook.magic import step

SETUP = cell("magic")

STEP = "x, y = batch\nloss = criterion(model(x), y)"


class Shell:
    """An IPython shell with a session in its namespace."""

    def __init__(self) -> None:
        config = Config()
        config.HistoryManager.enabled = False
        self.shell = InteractiveShell.instance(config=config, colors="nocolor")
        self.ok("%load_ext quik_nb")
        self.ok(SETUP)

    def ok(self, cell: str) -> Any:
        """Run a cell that must not raise; gives its last expression."""
        result = self.shell.run_cell(cell, store_history=True)
        result.raise_error()
        return result.result

    def fails(self, cell: str) -> BaseException:
        """Run a cell that must raise; gives the exception."""
        result = self.shell.run_cell(cell, store_history=True)
        assert result.error_in_exec is not None, "the cell raised nothing"
        return result.error_in_exec

    def __getitem__(self, name: str) -> Any:
        return self.shell.user_ns[name]

    def completions(self, line: str) -> list[str]:
        """What Tab offers at the end of a line."""
        with provisionalcompleter():
            return [completion.text for completion in self.shell.Completer.completions(line, len(line))]

    def close(self) -> None:
        """Leave the process as it was."""
        self.shell.restore_sys_module_state()
        InteractiveShell.clear_instance()


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A shell of its own for each test."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = Shell()
    yield shell
    shell.close()


def test_a_line_trains(shell: Shell) -> None:
    """The line trains the session that it names, and gives the run."""
    shell.ok("run = %quik_train session")

    assert 2 == len(shell["session"].history)
    assert shell["run"] is shell["session"].run


def test_options_are_for_this_call(shell: Shell) -> None:
    """Options hold for the training that they are typed for; the session's own settings stay."""
    shell.ok("%quik_train session --epochs 3 --lr 0.5   # with a note")

    assert [0.5] * 3 == list(shell["session"].history.lr)
    assert (2, 0.01) == (shell["session"].settings.epochs, shell["session"].settings.lr)


def test_python_values_can_be_typed(shell: Shell) -> None:
    """A name in braces is its value, as IPython has it."""
    shell.ok("n = 1\n%quik_train session --epochs {n}")

    assert 1 == len(shell["session"].history)


@pytest.mark.parametrize("ending", ["loss = criterion(model(x), y)", "criterion(model(x), y)"])
def test_a_cell_is_the_step(shell: Shell, ending: str) -> None:
    """A cell that says what is done by default trains to the same numbers, bit for bit."""
    shell.ok("plain = new(); plain.train()")
    shell.ok(f"%%quik_train session\nx, y = batch\n{ending}")

    expected = shell["plain"].history.drop(columns="time")
    assert expected.equals(shell["session"].history.drop(columns="time"))


def test_a_cell_stays_the_step(shell: Shell) -> None:
    """The step of a cell is used by later trainings, and sees the user's names as they are then."""
    shell.ok("weight = 1.0")
    shell.ok("%%quik_train session --epochs 1\nx, y = batch\nout = model(x).sum()\nout - out.detach() + weight")
    shell.ok("weight = 5.0\n%quik_train session --epochs 1")

    assert [1.0, 5.0] == list(shell["session"].history.train_loss)
    assert "training_step" not in shell.shell.user_ns


def test_an_error_in_a_step_shows_its_line(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """The traceback ends in the cell, at the line as the user counts it."""
    error = shell.fails("%%quik_train session\nx, y = batch\nout = model(x)\nloss = out / nothing")

    shown = capsys.readouterr().out
    assert isinstance(error, NameError)
    assert re.search(r"Cell In\[\d+\], line 4, in training_step", shown)
    assert re.search(r"--> 4 +loss = out / nothing", shown)


def test_a_step_travels_by_value(shell: Shell) -> None:
    """The step of a cell can be sent to another process, as what else was written in the notebook."""
    there = cloudpickle.loads(cloudpickle.dumps(step("3 * batch", shell.shell)))

    assert 6 == there(None, None, 2)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("%quik_train sesion", "there is no session 'sesion': did you mean 'session'?"),
        ("%quik_train x", "x is a Tensor and not a QuikSession"),
        ("%quik_train", "which session? there is session"),
        ("del session\n%quik_train", "create one: session = QuikSession(...)"),
        ("%quik_train session --epcohs 5", "there is no option --epcohs: did you mean '--epochs'?"),
        ("%quik_train session --epochs five", "argument -e/--epochs: 'five' is not a whole number above 0"),
        ("%quik_train session --epochs 0", "argument -e/--epochs: '0' is not a whole number above 0"),
        ("%quik_train session --precision bf61", "did you mean 'bf16'?"),
        ("%quik_train session 5", "unexpected argument: '5'"),
        ("%quik_train session --name 'a", "No closing quotation"),
        (f"%%quik_train sesion\n{STEP}", "did you mean 'session'?"),
        ("%%quik_train session\nx, y = batch", "ends in `x, y = batch`"),
        ("%%quik_train session\nx, y = batch\nloss = (", "line 3 of this cell"),
    ],
)
def test_what_was_typed_wrong_is_told_in_a_line(
    shell: Shell, cell: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typo is answered in one line, without a traceback; the shell lives, nothing is trained, the step stays."""
    session = shell["session"]
    before = repr(session)

    error = shell.fails(cell)

    shown = "".join(capsys.readouterr())
    assert isinstance(error, UsageError)
    assert words in shown
    assert 1 == len(shown.splitlines())
    assert before == repr(session)


def test_other_errors_are_those_of_train(shell: Shell) -> None:
    """What the session itself refuses is raised as from `session.train()`."""
    shell.ok("session = QuikSession()")

    assert "RecipeError" == type(shell.fails("%quik_train session")).__name__


def test_help_lists_the_options(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` prints the options and does not end the shell."""
    shell.ok("%quik_train --help")

    assert "--batch-size N" in capsys.readouterr().out
    assert shell["session"].history.empty


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%quik_train ", ["session"]),
        ("%quik_train se", ["session"]),
        ("quik_train se", ["session"]),
        ("run = %quik_train se", ["session"]),
        ("%%quik_train session --ep", ["--epochs", "--eps"]),
        ("%quik_train session --epochs 5 --batch", ["--batch-size"]),
        ("%quik_train session --precision ", ["auto", "bf16", "fp16", "fp32"]),
        ("%quik_train session --start-method sp", ["spawn"]),
        ("%quik_tra", ["%quik_train", "%%quik_train"]),
    ],
)
def test_tab_completes(shell: Shell, line: str, expected: list[str]) -> None:
    """Tab offers sessions, options and the words that an option takes, and nothing that has no place there."""
    assert expected == shell.completions(line)


def test_tab_leaves_other_lines_alone(shell: Shell) -> None:
    """Completion elsewhere is IPython's own."""
    assert "session" in shell.completions("print(sess")
    assert [] == [name for name in shell.completions("--ep") if name.startswith("--")]


@pytest.mark.parametrize("again", ["%load_ext quik_nb", "%reload_ext quik_nb"])
def test_loading_twice_changes_nothing(shell: Shell, again: str) -> None:
    """The extension can be loaded again; Tab does not offer everything twice."""
    loaded = len(shell.shell.Completer.custom_matchers)
    shell.ok(again)

    assert loaded == len(shell.shell.Completer.custom_matchers)
    assert ["session"] == shell.completions("%quik_train se")


def test_unloading_takes_it_away(shell: Shell) -> None:
    """After `%unload_ext` there is neither the magic nor its completion."""
    matchers = shell.shell.Completer.custom_matchers
    loaded = len(matchers)
    shell.ok("%unload_ext quik_nb")

    assert loaded - 1 == len(matchers)
    assert isinstance(shell.fails("get_ipython().run_line_magic('quik_train', 'session')"), UsageError)
    assert [] == [name for name in shell.completions("%quik_tra") if "quik" in name]
