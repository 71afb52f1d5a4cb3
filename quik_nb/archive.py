"""A whole session in one file: model, data, settings, history and how far it has come; and its weights for others.

The file is written with cloudpickle, so that classes and functions from notebook cells are in it. Reading it therefore
runs code: read only files that you trust. `export` writes the weights alone as safetensors, which can hold no code.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch import nn

from quik_nb.errors import CheckpointError, QuikError
from quik_nb.launch.bundle import compact
from quik_nb.sources import SPLITS
from quik_nb.training.checkpoint import copied, write
from quik_nb.training.resume import Saved

KIND = "a session of quik_nb"
VERSION = 1


@dataclass(frozen=True)
class Archive:
    """What the file of a session holds."""

    saved: Saved
    """as of a run folder: recipe, weights, progress, history, the weights of before the first epoch"""
    trained: Any
    """the recipe of the last training without its samples; None where nothing was trained"""
    same_samples: bool
    """whether the samples are still those of the last training"""
    maker: Any
    """the function that made the model, or None"""


def write_archive(archive: Archive, path: Path) -> None:
    """Write it in one go: whoever reads finds the old file or the new one.

    Raises:
        CheckpointError: a part cannot be written; the message names it.
    """
    recipe = archive.saved.recipe
    slim = {split: compact(getattr(recipe, split)) for split in SPLITS}
    saved = replace(archive.saved, recipe=replace(recipe, **slim))
    try:
        content = {"kind": KIND, "version": VERSION, "archive": replace(archive, saved=saved)}
        write(content, path, pickle_module=cloudpickle)
    except Exception as error:  # anything may be in a recipe
        culprits = ", ".join(_culprits(archive)) or "a part of it"
        raise CheckpointError(
            f"The session cannot be saved, since {culprits} cannot be written ({error}): "
            f"replace it, save, and put it back; the weights alone are saved by torch.save(session.model.state_dict(), path)."
        ) from error


def _culprits(archive: Archive) -> Iterator[str]:
    """The parts of the recipe, as their steps name them, that cannot be pickled."""
    for name, part in vars(archive.saved.recipe).items():
        try:
            cloudpickle.dumps(part)
        except Exception:  # any reason makes it a culprit
            yield name


def read_archive(path: Path) -> Archive:
    """Read the file of a session; this runs the code in it.

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
    archive: Archive = content["archive"]
    return archive


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
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    # copies, since tied weights, which share their memory, are refused
    state = {key: value.contiguous() for key, value in copied(model.state_dict()).items()}
    try:
        save_file(state, part, metadata={"format": "pt"})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
