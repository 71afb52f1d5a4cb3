"""`python -m quik_nb` and scripts with our options, each as a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import quik_nb
from quik_nb.__main__ import main

BLOCKED = "import runpy, sys; sys.modules['sklearn'] = None; runpy.run_module('quik_nb', run_name='__main__')"
"""Runs the command line where scikit-learn cannot be imported."""

SCRIPT = """
import argparse
from quik_nb import QuikSession
from quik_nb.recipe.cli_options import add_arguments

parser = argparse.ArgumentParser()
parser.add_argument("--data")
namespace = add_arguments(parser).parse_args()
print(QuikSession.from_args(namespace).settings)
"""


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these words in a folder."""
    return subprocess.run([sys.executable, "-W", "error", *words], capture_output=True, text=True, cwd=folder)


def demo(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the demo in a folder."""
    return python(folder, "-m", "quik_nb", "demo", *words)


def test_demo_ends_with_the_table_and_the_files(tmp_path: Path) -> None:
    """The demo prints a row per epoch and how it ended, then the files, which are there, as seen from here."""
    done = demo(tmp_path, "--epochs", "3")

    lines = done.stdout.splitlines()
    table = next(i for i, line in enumerate(lines) if line.split()[0] == "epoch")
    assert (0, "") == (done.returncode, done.stderr)
    assert ["epoch", "train_loss", "valid_loss", "accuracy", "time"] == lines[table].split()
    assert ["0", "1", "2"] == [line.split()[0] for line in lines[table + 1 : table + 4]]
    assert "finished · 3 epochs" in lines[table + 4]
    assert "files:" == lines[table + 5]
    files = [line.split()[0] for line in lines[table + 6 :]]
    assert [True, True] == [(tmp_path / file).exists() for file in files]
    assert str(tmp_path) not in done.stdout


def test_demo_learns(tmp_path: Path) -> None:
    """With its own settings, the demo reads at least 96 of 100 digits that it has not seen."""
    done = demo(tmp_path, "--no-save")

    best = next(line for line in done.stdout.splitlines() if "best valid_loss" in line)
    epoch = re.search(r"in epoch (\d+)$", best)
    assert epoch is not None
    row = next(line.split() for line in done.stdout.splitlines() if line.split()[0] == epoch[1])
    assert float(row[3]) >= 0.96
    assert [] == list(tmp_path.iterdir())


def test_demo_without_a_view_still_ends_with_the_table(tmp_path: Path) -> None:
    """Where nothing is drawn on the way, the table is printed at the end; other folders are named as typed."""
    done = demo(tmp_path, "--epochs", "1", "--no-view", "--base-dir", "elsewhere")

    lines = done.stdout.splitlines()
    assert ["epoch", "train_loss", "valid_loss", "accuracy", "lr", "time"] == lines[0].split()
    assert re.match(r" +elsewhere/data/state_dict_e0_\d{8}\.pt ", lines[3])


def test_demo_says_what_to_install(tmp_path: Path) -> None:
    """Without scikit-learn, the demo says what to type, with no traceback."""
    done = python(tmp_path, "-c", BLOCKED, "demo")

    assert (1, "") == (done.returncode, done.stdout)
    assert "pip install scikit-learn" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["demo", "--epcohs", "3"], 2, "there is no option --epcohs: did you mean '--epochs'?"),
        (["demo", "--precision", "bf61"], 1, "precision='bf61' is not known; did you mean 'bf16'?"),
        ([], 2, "required: COMMAND"),
    ],
)
def test_what_was_typed_wrong_is_told(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake in the options is told in a line or two, with an exit code that says so."""
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(words))

    shown = capsys.readouterr()
    assert (code, "") == (ended.value.code, shown.out)
    assert message in shown.err
    assert len(shown.err.splitlines()) <= 2


def test_version(tmp_path: Path) -> None:
    """`--version` is the package's."""
    assert f"quik_nb {quik_nb.__version__}\n" == python(tmp_path, "-m", "quik_nb", "--version").stdout


def test_help_lists_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` tells the commands and what they do."""
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])

    assert "demo      Train a model" in capsys.readouterr().out


def test_a_script_takes_the_options(tmp_path: Path) -> None:
    """A script of the user's has our options beside its own."""
    (tmp_path / "main.py").write_text(SCRIPT)

    done = python(tmp_path, "main.py", "--gpus", "4", "--epochs", "5", "--data", "x.csv")

    assert (0, "") == (done.returncode, done.stderr)
    assert "Settings(epochs=5, " in done.stdout
    assert "processes=4" in done.stdout
