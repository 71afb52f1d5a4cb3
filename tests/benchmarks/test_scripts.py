"""The benchmarks run; what they measure is no matter of a test."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("steps.py", ("loop", "--rows", "2000"), ("digits: by hand", "tabular: by hand", "recsys: by hand")),
        ("steps.py", ("save", "--rows", "200"), ("saving, 1 epochs",)),
        ("steps.py", ("view", "--rows", "200"), ("view, 1 epochs", "of the loop by hand")),
        ("display.py", ("--only", "one bar"), ("tqdm.notebook, one bar", "messages")),
        ("display.py", ("--only", "quik_nb"), ("quik_nb: bar", "messages")),
        ("launch.py", ("--only", "quik_nb"), ("quik_nb, launch 1", "after warm_up(), launch 2")),
    ],
)
def test_a_benchmark_runs(script: str, words: tuple[str, ...], expected: tuple[str, ...], tmp_path: Path) -> None:
    """Each script goes through at a tiny size and reports what it should."""
    command = [sys.executable, str(HERE / script), *words, "--rounds", "1", "--epochs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)

    assert 0 == done.returncode, done.stderr
    assert [] == [words for words in expected if words not in done.stdout]
