"""Workers from a plain script, with and without a main guard, as a module, and from the IPython terminal."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from harness.cells import cell

BODY = cell("script_body")

UNGUARDED = BODY + "print('the script runs')\nrun()\n"
GUARDED = BODY + "print('the script runs')\nif __name__ == '__main__':\n    run()\n"
EXPECTED = "the script runs\nfinished 2\n"


def output(command: list[str], folder: Path, text: str | None = None) -> str:
    """What a command prints to both streams; it must end well, in time, and leave no temporary file."""
    with TemporaryDirectory() as temporary:
        settings = {"TMPDIR": temporary, "PYTHONWARNINGS": "error", "IPYTHONDIR": str(folder / ".ipython")}
        environment = os.environ | settings
        done = subprocess.run(
            command, cwd=folder, env=environment, input=text, capture_output=True, text=True, timeout=60, check=False
        )
        left = [path.name for path in Path(temporary).iterdir() if not path.name.startswith("torchinductor")]

    assert (0, []) == (done.returncode, left), done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("script", [UNGUARDED, GUARDED], ids=["unguarded", "guarded"])
def test_a_script_trains_in_workers(tmp_path: Path, script: str) -> None:
    """A script runs once, with or without a main guard, and its own classes and functions travel."""
    (tmp_path / "script.py").write_text(script)

    assert EXPECTED == output([sys.executable, "script.py"], tmp_path)


@pytest.mark.slow
def test_a_module_trains_in_workers(tmp_path: Path) -> None:
    """`python -m package.module` runs once."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text(UNGUARDED)

    assert EXPECTED == output([sys.executable, "-m", "package.train"], tmp_path)


@pytest.mark.slow
def test_code_from_the_command_line_trains_in_workers(tmp_path: Path) -> None:
    """`python -c` has no file that a worker could import, and needs none."""
    assert EXPECTED == output([sys.executable, "-c", UNGUARDED], tmp_path)


def test_the_ipython_terminal_trains_in_workers(tmp_path: Path) -> None:
    """What is typed into the IPython terminal travels as from a cell, also when it is typed anew."""
    typed = UNGUARDED.replace("\n\n    def forward", "\n    def forward") + "scale = 3.0\nrun()\n"
    shell = [sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner", "--no-confirm-exit"]
    printed = output(shell, tmp_path, typed)

    assert ["the script runs"] == [line[-15:] for line in printed.splitlines() if "the script runs" in line]
    assert 2 == printed.count("finished 2")


def test_an_interrupted_script_ends(tmp_path: Path) -> None:
    """Ctrl+C ends a script soon, with one short KeyboardInterrupt from the call."""
    body = BODY.replace("epochs=2", "epochs=100000").replace("view=False", "view='text'")
    (tmp_path / "script.py").write_text(body + "run()\n")
    with TemporaryDirectory() as temporary:
        script = subprocess.Popen(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            env=os.environ | {"TMPDIR": temporary},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert script.stdout is not None
        for line in script.stdout:
            if line.split()[:1] == ["2"]:
                break
        os.killpg(script.pid, 2)
        _, errors = script.communicate(timeout=20)
        left = [path.name for path in Path(temporary).iterdir() if not path.name.startswith("torchinductor")]

    assert "KeyboardInterrupt: the training was stopped; its rows, weights and state are kept" in errors
    assert 1 == errors.count("Traceback")
    assert [] == left
