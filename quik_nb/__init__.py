"""quik_nb: a Jupyter-first, interactive training kit for PyTorch."""

from typing import TYPE_CHECKING

from quik_nb.doctor import doctor
from quik_nb.errors import (
    CheckpointError,
    DivergenceError,
    PlacementError,
    QuikError,
    QuikWarning,
    RecipeError,
    StopTraining,
    WorkerError,
)
from quik_nb.launch.forkserver import warm_up
from quik_nb.recipe.cli_options import add_learn_args
from quik_nb.recipe.settings import Settings
from quik_nb.session.run import Run
from quik_nb.session.scripts import traverse
from quik_nb.session.session import QuikSession
from quik_nb.training.forward import StepOutput
from quik_nb.training.loop import Loop

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "DivergenceError",
    "Loop",
    "PlacementError",
    "QuikError",
    "QuikSession",
    "QuikWarning",
    "RecipeError",
    "Run",
    "Settings",
    "StepOutput",
    "StopTraining",
    "WorkerError",
    "add_learn_args",
    "doctor",
    "traverse",
    "warm_up",
]


def load_ipython_extension(shell: "InteractiveShell") -> None:
    """What `%load_ext quik_nb` calls."""
    from quik_nb.notebook.magic import load  # a script needs no IPython

    load(shell)


def unload_ipython_extension(shell: "InteractiveShell") -> None:
    """What `%unload_ext quik_nb` calls."""
    from quik_nb.notebook.magic import unload

    unload(shell)
