"""What the README says is so: its examples run as they stand, and its links lead somewhere."""

import re
from pathlib import Path

from harness.kernel import Kernel

from quik_nb.recipe.settings import Settings, setting_names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The code blocks in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_python_blocks_run(kernel: Kernel) -> None:
    """The Python blocks run one after the other as cells of one notebook, in an empty folder, without a complaint."""
    complaints = [(block, kernel.ok(block, timeout=120).stderr) for block in blocks("python")]

    assert len(complaints) > 5
    assert [] == [(block, complaint) for block, complaint in complaints if complaint]


def test_every_block_is_checked() -> None:
    """No block is in a language that no test looks at; `text` is for what is not meant to be run."""
    languages = re.findall(r"^```(\w*)\n.*?^```", README, re.MULTILINE | re.DOTALL)

    assert set() == set(languages) - {"python", "sh", "text"}


def test_commands_name_files_that_are_there() -> None:
    """The files that the shell commands name exist in a clone."""
    named = re.findall(r"(?<= )(?:binder|tests|notebooks)/\S+", "\n".join(blocks("sh")))

    assert len(named) >= 3
    assert [] == [name for name in named if not (ROOT / name).is_file()]


def test_each_command_is_complete() -> None:
    """A shell command makes the environment that it uses, so it runs on a machine that has only Python."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    steps = [line.split(" && ") for line in lines]

    assert ["python3 -m venv .venv"] * len(lines) == [first for first, *_ in steps]
    assert [] == [step for _, *later in steps for step in later if not step.startswith(".venv/bin/")]


def test_links_lead_to_files() -> None:
    """Links and pictures within the repository lead to files that are there."""
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]

    assert len(targets) >= 2
    assert [] == [target for target in targets if not (ROOT / target).exists()]


def test_settings_are_those_of_the_code() -> None:
    """The table of settings names settings that exist, with their defaults where it shows a value."""
    table = README.split("| setting | default | meaning |\n")[1].split("\n\n")[0]
    cells = [line.split("|")[1:3] for line in table.splitlines()[1:]]
    named = [name for names, _ in cells for name in re.findall(r"`(\w+)`", names)]
    shown = {names.strip(" `"): default.strip(" `") for names, default in cells if re.search(r"[\d`]", default)}

    assert [] == [name for name in named if name not in setting_names()]
    assert {name: default for name, default in shown.items() if name in named} == {
        name: repr(getattr(Settings(), name)).replace("'", '"') for name in shown if name in named
    }
