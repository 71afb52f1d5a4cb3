"""A whole session in one file: model, data, settings, history and how far it has come; and its weights for others.

The file is written with cloudpickle, so that classes and functions from notebook cells are in it. Reading it therefore
runs code: read only files that you trust. `export` writes the weights alone as safetensors, which can hold no code.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quik_nb.errors import CheckpointError, QuikError
from quik_nb.recipe.data import SPLITS, compact
from quik_nb.recipe.recipe import Recipe
from quik_nb.storage import pickling
from quik_nb.storage.files import replacing, write
from quik_nb.training.carry_over import TrainingState
from quik_nb.training.pytree import to_cpu_copy

KIND = "a session of quik_nb"
VERSION = 2


def write_session(recipe: Recipe, state: TrainingState, model_factory: Any, path: Path) -> None:
    """Write a session in one go: whoever reads finds the old file or the new one.

    Args:
        recipe: all parts and settings, with the samples and the model as it is.
        state: how far the training has come.
        model_factory: the function that made the model, or None.
        path: of the file.

    Raises:
        CheckpointError: a part cannot be written; the message names it.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, and a session is a file: use save({str(path / 'session.pt')!r}).")
    before = state.trained_by
    same = {split: before is not None and getattr(before, split) is getattr(recipe, split) for split in SPLITS}
    samples: dict[str, Any] = {split: compact(getattr(recipe, split)) for split in SPLITS}
    slim = replace(recipe, **samples)
    if before is not None:  # samples that were replaced since the last training are not kept
        kept: dict[str, Any] = {split: samples[split] if same[split] else None for split in SPLITS}
        before = replace(before, **kept)
    # a session that is loaded saves into a folder of its own, so that two of them do not write into one
    earlier = state.earlier_folder if state.folder is None else (state.folder, state.progress.epoch)
    kept_state = replace(state, trained_by=before, folder=None, earlier_folder=earlier)
    content = {"recipe": slim, "state": kept_state, "model_factory": model_factory}
    try:
        write({"kind": KIND, "version": VERSION, **content}, path, pickle_module=pickling)
    except Exception as error:  # anything may be in a recipe
        culprits = ", ".join(n for n, part in vars(recipe).items() if not pickling.can_pickle(part)) or "a part of it"
        raise CheckpointError(
            f"The session cannot be saved, since its {culprits} cannot be written ({error}): replace that step, save, "
            f"and put it back. The weights alone are saved by torch.save(session.model.state_dict(), path)."
        ) from error


def read_session(path: Path) -> tuple[Recipe, TrainingState, Any]:
    """Recipe, state and the function that made the model from the file of a session; reading runs the code in it.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
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
            f"{path} holds no session but a {type(content).__name__}: weights are taken by "
            f"add_model(model, state_dict={str(path)!r}), a run folder by QuikSession.resume(folder)."
        )
    if content["version"] != VERSION:
        raise CheckpointError(
            f"{path} was written by another version of quik_nb: save the session again with this one."
        )
    return content["recipe"], content["state"], content["model_factory"]


def export(model: nn.Module, path: Path) -> None:
    """Write the weights as safetensors: a file that holds tensors and nothing else, read by many tools.

    Raises:
        QuikError: safetensors is not installed.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise QuikError(
            "export writes safetensors, and that package is not installed here: pip install 'quik_nb[safetensors]'"
        ) from error
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: use export({str(path / 'model.safetensors')!r}).")
    path.parent.mkdir(parents=True, exist_ok=True)
    # copies, since tied weights, which share their memory, are refused
    state = {key: value.contiguous() for key, value in to_cpu_copy(model.state_dict()).items()}
    with replacing(path) as part:
        save_file(state, part, metadata={"format": "pt"})
