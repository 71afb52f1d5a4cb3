"""A whole session in one file (model, data, settings, history, training state), and export of weights as safetensors.

The file is written with cloudpickle, so it contains classes and functions from notebook cells, and reading it runs
code: read only files that you trust. Safetensors files contain no code.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quik_nb.errors import CheckpointError, QuikError
from quik_nb.recipe.recipe import Recipe
from quik_nb.recipe.samples import SPLITS, compact
from quik_nb.storage import pickling
from quik_nb.storage.files import replacing, write
from quik_nb.training.carry_over import TrainingState
from quik_nb.training.pytree import to_cpu_copy

KIND = "a session of quik_nb"
VERSION = 2


def write_session(recipe: Recipe, state: TrainingState, model_factory: Any, path: Path) -> None:
    """Write a session atomically: a reader sees the old file or the new one.

    Args:
        recipe: all parts and settings, with samples and model.
        state: of the training.
        model_factory: the function that created the model, or None.
        path: of the file.

    Raises:
        CheckpointError: a part cannot be pickled; the message names it.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, and a session is a file: use save({str(path / 'session.pt')!r}).")

    samples: dict[str, Any] = {split: compact(getattr(recipe, split)) for split in SPLITS}
    before = state.trained_by
    if before is not None:
        # both recipes share samples that are unchanged since the last training; replaced ones are not saved
        unchanged = [split for split in SPLITS if getattr(before, split) is getattr(recipe, split)]
        before_samples: dict[str, Any] = dict.fromkeys(SPLITS)
        before_samples |= {split: samples[split] for split in unchanged}
        before = replace(before, **before_samples)

    # a loaded session gets its own run folder, so that two sessions never write into the same one
    earlier = state.earlier_folder if state.folder is None else (state.folder, state.progress.epoch)
    content = {
        "kind": KIND,
        "version": VERSION,
        "recipe": replace(recipe, **samples),
        "state": replace(state, trained_by=before, folder=None, earlier_folder=earlier),
        "model_factory": model_factory,
    }
    try:
        write(content, path, pickle_module=pickling)
    except Exception as error:  # a recipe may contain any object
        names = [name for name, part in vars(recipe).items() if not pickling.can_pickle(part)]
        culprits = ", ".join(names) or "a part of it"
        raise CheckpointError(
            f"The session cannot be saved, since its {culprits} cannot be written ({error}): replace that part, save, "
            f"and set it again; or save only the weights, torch.save(session.model.state_dict(), path)."
        ) from error


def read_session(path: Path) -> tuple[Recipe, TrainingState, Any]:
    """Read recipe, state and model factory from the file of a session; this runs code in the file.

    Raises:
        CheckpointError: the file does not exist, cannot be read, or is not a session.
    """
    if not path.exists():
        raise CheckpointError(f"There is no file {path}: session.save({str(path)!r}) writes one.")

    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"{path} cannot be read as a session ({type(error).__name__}: {first}): it is damaged, of another kind, "
            f"or needs a package that is not installed here."
        ) from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise CheckpointError(
            f"{path} contains a {type(content).__name__} and not a session: use add_model(model, "
            f"state_dict={str(path)!r}) for weights, QuikSession.resume(folder) for a run folder."
        )
    if content["version"] != VERSION:
        raise CheckpointError(
            f"{path} was written by another version of quik_nb: save the session again with this one."
        )
    return content["recipe"], content["state"], content["model_factory"]


def export(model: nn.Module, path: Path) -> None:
    """Write the weights as safetensors, a format without code that many tools read.

    Raises:
        QuikError: safetensors is not installed.
        CheckpointError: `path` is a folder.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise QuikError(
            "export needs the package safetensors, which is not installed: use pip install 'quik_nb[safetensors]'"
        ) from error

    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: use export({str(path / 'model.safetensors')!r}).")
    path.parent.mkdir(parents=True, exist_ok=True)

    # copies, since safetensors rejects tied weights, which share memory
    state = {key: value.contiguous() for key, value in to_cpu_copy(model.state_dict()).items()}
    with replacing(path) as part:
        save_file(state, part, metadata={"format": "pt"})
