"""`python -m quik_nb` and scripts with our options, each as a process of its own."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness.plain import regression

import quik_nb
from quik_nb import QuikSession
from quik_nb.__main__ import main
from quik_nb.history import History

BLOCKED = "import runpy, sys; sys.modules['sklearn'] = None; runpy.run_module('quik_nb', run_name='__main__')"
"""Runs the command line where scikit-learn cannot be imported."""

SCRIPT = """
import argparse
import quik_nb

parser = argparse.ArgumentParser()
parser.add_argument("--data")
args = quik_nb.add_learn_args(parser).parse_args()
print(quik_nb.QuikSession.from_args(args).settings)
"""

CLUSTER = Path(__file__).parents[1] / "notebooks" / "cluster" / "main.py"


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
    """Without scikit-learn, the demo says what to install, with no traceback."""
    done = python(tmp_path, "-c", BLOCKED, "demo")

    assert (1, "") == (done.returncode, done.stdout)
    assert "pip install scikit-learn" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["demo", "--epcohs", "3"], 2, "there is no option --epcohs: did you mean '--epochs'?"),
        (["demo", "--precision", "bf61"], 2, "argument --precision: 'bf61' is not known; did you mean 'bf16'?"),
        ([], 2, "required: COMMAND"),
        (["train", "nowhere.pt"], 1, "nowhere.pt"),
        (["resume", "nowhere"], 1, "nowhere"),
        (["runs", "nowhere"], 1, "nowhere is not a folder, so it has no runs"),
        (["demo", "--processes", "1000"], 1, "processes=1000 on the CPU was asked for"),
    ],
)
def test_what_cannot_be_done_is_told(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake is told in a line or two, with an exit code: 2 where the command line is wrong, 1 where it fails."""
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(words))

    shown = capsys.readouterr()
    assert (code, "") == (ended.value.code, shown.out)
    assert message in shown.err
    assert len(shown.err.splitlines()) <= 2


def test_version(tmp_path: Path) -> None:
    """`--version` is the package's."""
    assert f"quik_nb {quik_nb.__version__}\n" == python(tmp_path, "-m", "quik_nb", "--version").stdout


@pytest.mark.parametrize("command", [[], ["demo"], ["train"], ["resume"], ["runs"], ["doctor"]])
def test_help_everywhere(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` of each command tells what it does, and what the exit codes mean."""
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])

    shown = capsys.readouterr().out
    assert "usage: python -m quik_nb" in shown
    assert "130  interrupted" in shown


def test_help_lists_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` tells the commands and what they do."""
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])

    lines = capsys.readouterr().out.splitlines()
    commands = ["demo", "train", "resume", "runs", "doctor"]
    assert commands == [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in commands]


def test_doctor_tells_the_facts(capsys: pytest.CaptureFixture[str]) -> None:
    """`doctor` prints what the machine has and what a training would do."""
    assert 0 == main(["doctor"])
    assert {"python", "torch", "train()"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines()}


def saved(folder: Path, epochs: int) -> QuikSession:
    """A session whose run folder lies in a folder."""
    session = regression(epochs=epochs, save=True, base_dir=str(folder))
    session.train()
    return session


def test_runs_lists_run_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`runs` lists each run folder with its epochs and the best loss, and says which cannot be resumed."""
    session = saved(tmp_path, epochs=2)
    other = saved(tmp_path, epochs=1)
    (Path(str(other.folder)) / "checkpoint.pt").unlink()

    assert 0 == main(["runs", str(tmp_path)])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert {str(session.folder), str(other.folder)} == set(lines)
    best = session.history.valid_loss.min()
    assert ["2", "1", f"{best:.4g}"] == lines[str(session.folder)].split()[1:4]
    assert [False, True] == [lines[str(s.folder)].endswith("no checkpoint") for s in (session, other)]


def test_a_folder_without_runs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there are no run folders, `runs` says so and fails."""
    assert 1 == main(["runs", str(tmp_path)])
    assert "there are no run folders in" in capsys.readouterr().err


def test_resume_trains_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`resume` trains what is left of the session's epochs, or as many more as were asked for: two and two is four."""
    whole, half = regression(epochs=4), saved(tmp_path, epochs=2)
    whole.train()
    folder = str(half.folder)

    assert 0 == main(["resume", folder])
    assert "has all of its 2 epochs: --epochs N trains N more" in capsys.readouterr().out
    assert 0 == main(["resume", folder, "--epochs", "2"])
    assert whole.history.train_loss.tolist() == pytest.approx(QuikSession.resume(folder).history.train_loss.tolist())


RAISES = """
import torch
from torch import nn
from quik_nb import QuikSession

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        raise KeyError("a word of the user's")

session = QuikSession(view=False, save=False).add_data(train=(torch.ones(8, 3), torch.ones(8, 1))).add_model(Odd())
session.set_criterion(nn.MSELoss).set_optimizer(torch.optim.SGD).save("session.pt")
"""


def test_an_error_of_the_users_code_is_told_without_a_traceback_of_ours(tmp_path: Path) -> None:
    """Code in a session's file that fails is told in words; --debug shows every frame."""
    (tmp_path / "make.py").write_text(RAISES)
    assert "" == python(tmp_path, "make.py").stderr

    done = python(tmp_path, "-m", "quik_nb", "train", "session.pt")
    debugged = python(tmp_path, "-m", "quik_nb", "--debug", "train", "session.pt")
    assert (1, 1) == (done.returncode, debugged.returncode)
    assert "a word of the user's" in done.stderr
    assert "train failed; --debug shows where" in done.stderr
    assert (False, True) == ("quik_nb/training" in done.stderr, "quik_nb/training" in debugged.stderr)


# ---------------------------------------------------------------------- scripts


def test_a_script_takes_the_options(tmp_path: Path) -> None:
    """A script of the user's has our options beside its own."""
    (tmp_path / "main.py").write_text(SCRIPT)

    done = python(tmp_path, "main.py", "--gpus", "4", "--epochs", "5", "--data", "x.csv")

    assert (0, "") == (done.returncode, done.stderr)
    assert "Settings(epochs=5, " in done.stdout
    assert "processes=4" in done.stdout


def test_the_script_of_the_cluster_trains_alike_on_one_and_two_processes(tmp_path: Path) -> None:
    """`python main.py` and `python main.py --gpus 2` have equal histories; without GPUs that is two CPU workers."""
    one = python(tmp_path, str(CLUSTER), "--epochs", "3", "--gpus", "none", "--base-dir", "one")
    two = python(tmp_path, str(CLUSTER), "--epochs", "3", "--gpus", "2", "--base-dir", "two")

    assert (0, 0) == (one.returncode, two.returncode), one.stderr + two.stderr
    assert one.stdout.startswith("in this process on the CPU: device='cpu' was asked for")
    assert two.stdout.startswith("2 workers on ")
    alone, together = (
        History.from_jsonl(next(tmp_path.glob(f"{name}/data/run_*/history.jsonl")).read_text())
        for name in ("one", "two")
    )
    assert [0, 1, 2] == [row.epoch for row in together]
    assert [row.train_loss for row in alone] == pytest.approx([row.train_loss for row in together], rel=1e-5)
    assert [row.valid_loss for row in alone] == pytest.approx([row.valid_loss for row in together], rel=1e-5)


def test_an_error_of_a_script_shows_its_own_lines_alone(tmp_path: Path) -> None:
    """What a script does wrong is told with our words and the script's lines, and no line of ours."""
    shutil.copy(CLUSTER, tmp_path)

    done = python(tmp_path, "main.py", "--device", "cuda:7")

    assert 1 == done.returncode
    assert "device='cuda:7' was asked for" in done.stderr.splitlines()[-1]
    assert "session.train()" in done.stderr
    assert {str(tmp_path / "main.py")} == set(re.findall(r'File "(.*)", line', done.stderr))
