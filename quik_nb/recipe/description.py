"""A recipe as text by name: what is trained how, for logs of runs, trackers and comparisons."""

from contextlib import suppress

from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.samples import SPLITS
from quik_nb.recipe.settings import SETTINGS


def described(recipe: Recipe) -> dict[str, str]:
    """The parts and settings of a recipe as text, by name; settings of the view and of files are left out."""
    parts = {"model": type(recipe.model).__name__, "criterion": recipe.criterion}
    parts |= {f"optimizer {name}".strip(): spec for name, spec in recipe.optimizers.items()}

    for split in SPLITS:
        source = getattr(recipe, split)
        with suppress(TypeError):  # a stream may have no length
            parts[split] = None if source is None else f"{len(source):,} samples"

    parts |= {f"scheduler {name}".strip(): spec for name, spec in recipe.schedulers.items()}
    parts["metrics"] = ", ".join(recipe.metrics) or None
    parts["step"] = None if recipe.step is None else getattr(recipe.step, "__name__", "own")
    parts = {name: value for name, value in parts.items() if value is not None}

    settings = {name: value for name, value in vars(recipe.settings).items() if SETTINGS[name].scope != "output"}
    return {name: f"{value}" for name, value in {**parts, **settings}.items()}
