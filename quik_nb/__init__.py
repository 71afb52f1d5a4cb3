"""quik_nb: a Jupyter-first, interactive training kit for PyTorch."""

from quik_nb.errors import (
    CheckpointError,
    DivergenceError,
    PlacementError,
    QuikError,
    RecipeError,
    StopTraining,
    WorkerError,
)
from quik_nb.run import Run
from quik_nb.session import QuikSession
from quik_nb.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "DivergenceError",
    "PlacementError",
    "QuikError",
    "QuikSession",
    "RecipeError",
    "Run",
    "Settings",
    "StopTraining",
    "WorkerError",
]
