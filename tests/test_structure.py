"""The shape of the project: layers, dependencies, what a fresh import loads, and the files at the top."""

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import quik_nb

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "quik_nb"

GROUND = ["errors", "events", "history"]
STOREYS = [*GROUND, "recipe", "training", "storage", "launch", "views", "analysis", "export", "session", "notebook"]
"""The rooms of the package from the ground up: each imports from itself and from those before it."""

ENTRIES = ("__init__", "__main__", "doctor")
"""Entry points: they parse and delegate, and may import from every room."""

APART = {("views", room) for room in ("recipe", "training", "storage", "launch")}
"""Views take events and know nothing of how they came about."""

NEVER_IMPORTS = {
    "errors": {"torch", "pandas", "matplotlib", "IPython", "ipywidgets"},
    "events": {"torch", "pandas", "matplotlib", "IPython", "ipywidgets"},
    "history": {"torch", "matplotlib", "IPython", "ipywidgets"},
    "views": {"torch"},
    "recipe": {"IPython", "ipywidgets"},
    "storage": {"IPython", "ipywidgets"},
    "training": {"IPython", "ipywidgets"},
    "launch": {"IPython", "ipywidgets"},
}
"""What a part must not know of the world outside, not even late."""

RUN_TIME = ["cloudpickle", "ipython", "ipywidgets", "matplotlib", "pandas", "torch", "tqdm"]
LATE = ["IPython", "ipywidgets", "matplotlib", "pandas"]

TOP_LEVEL = {"CHANGELOG.md", "LICENSE", "README.md", "binder", "notebooks", "pyproject.toml", "quik_nb", "tests"}


def name_of(path: Path) -> str:
    """The dotted name of a module inside the package: 'training.loop', 'views' for views/__init__.py."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path, late: bool = True) -> Iterator[str]:
    """Full names of all that a file imports, for types or for use: at its top, and within functions as well."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it points"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path, late: bool = True) -> set[str]:
    """Modules of the package that a file imports; the door itself is '__init__'."""
    found = set()
    for full in imports(path, late):
        head, *rest = full.split(".")
        if head == "quik_nb":
            candidates = [".".join(rest[:n]) for n in range(len(rest), 0, -1)]
            found.add(next((name for name in candidates if name in MODULES), "__init__"))
    return found


def part(module: str) -> str:
    """The part that a module belongs to: 'training' for 'training.loop'."""
    return module.split(".")[0]


@pytest.mark.parametrize("module", [module for module in MODULES if part(module) not in ENTRIES])
def test_imports_point_down(module: str) -> None:
    """A module imports only from its own room and from the rooms below it."""
    here = part(module)
    assert here in STOREYS, f"{module} is a new room: say in STOREYS on which floor it lies"
    below = {room for room in STOREYS[: STOREYS.index(here) + 1] if (here, room) not in APART}

    assert set() == {part(other) for other in ours(MODULES[module])} - below


def test_the_house_has_few_rooms_and_short_ways() -> None:
    """At most 16 rooms at the top, and no module imports at its top by a chain of more than 13."""
    graph = {module: ours(path, late=False) - {module} for module, path in MODULES.items()}

    def chain(module: str) -> int:
        return 1 + max(map(chain, graph[module]), default=0)

    assert len(set(map(part, MODULES))) <= 16
    assert max(map(chain, graph)) <= 13


def test_no_import_circles() -> None:
    """No module is imported, by whatever way, by what it imports."""
    graph = {module: ours(path) - {module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("module", [module for module in MODULES if part(module) in NEVER_IMPORTS])
def test_wings_do_not_know_each_others_world(module: str) -> None:
    """Views know no torch, training knows no notebook, and events know neither."""
    outside = {full.split(".")[0] for full in imports(MODULES[module])}

    assert set() == outside & NEVER_IMPORTS[part(module)]


def test_a_fresh_import_is_light() -> None:
    """`import quik_nb` loads nothing that only drawing and tables need."""
    code = f"import sys, quik_nb; print([name for name in {LATE} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")

    assert "[]\n" == loaded.stdout


def test_run_time_dependencies() -> None:
    """The run-time dependencies are these; another one is a decision, so it is made here, too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert RUN_TIME == sorted(re.split(r"[<>=!~\[; ]", line)[0] for line in project["dependencies"])


def test_top_level() -> None:
    """The top of the repository holds the agreed entries and dotfiles, nothing else."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    entries = {line.split("/")[0] for line in listed.splitlines()}

    assert set() == {entry for entry in entries if not entry.startswith(".")} - TOP_LEVEL


def test_public_names_are_sorted() -> None:
    """`quik_nb.__all__` is in order, so that a reader finds a name and a merge finds its line."""
    assert sorted(quik_nb.__all__) == list(quik_nb.__all__)


@pytest.mark.parametrize("name", [name for name in getattr(quik_nb, "__all__", []) if not name.startswith("__")])
def test_public_names_are_explained(name: str) -> None:
    """Every public name exists and has a docstring."""
    assert inspect.getdoc(getattr(quik_nb, name))


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_explained(module: str) -> None:
    """Every module says what it is for."""
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))


@pytest.mark.parametrize("module", [module for module, path in MODULES.items() if ">>> " in path.read_text()])
def test_docstring_examples_run(module: str) -> None:
    """The examples in docstrings run and print what they say."""
    name = "quik_nb" if module == "__init__" else f"quik_nb.{module}"
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)

    assert (0, True) == (result.failed, result.attempted > 0)


def test_requirement_files_agree_on_torch() -> None:
    """Tests, notebooks and Binder take the same torch."""
    pins = {
        file: re.findall(r"^\s*torch==(\S+)|pytorch-cpu=(\S+)", (ROOT / file).read_text(), re.MULTILINE)
        for file in ("tests/requirements.txt", "binder/requirements.txt", "binder/postBuild")
    }

    assert {"2.13.0"} == {"".join(pin) for found in pins.values() for pin in found}
    assert [1, 1, 1] == [len(found) for found in pins.values()]


def test_ci_runs_the_readme_test_command() -> None:
    """CI runs the test command of the README, word for word, with the slow tests added."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if line.endswith("-m pytest")]
    last_line = (ROOT / ".ci" / "run").read_text().splitlines()[-1]

    assert [f"bash -c '{command} --slow'" for command in commands] == [last_line]
