"""File names, atomic writes and safe reads.

Each training has its own run folder, with the weights of its epochs, its history and its checkpoint. The weights also
have a dated name (`data/state_dict_e3_20210101.pt`), a hard link to the file in the run folder. A later training on the
same date replaces the link and leaves the run folder unchanged. (Code that opens a dated file and overwrites it in
place changes both; code that replaces it, as `write` does, only the link.)

Files are written atomically: to a temporary file, which is then renamed, so a reader sees the old file or the new one,
never half of one. There is no fsync, which protects from power failures rather than from killed processes, and would
take longer than a short epoch.
"""

import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quik_nb.errors import CheckpointError

StateDict = Mapping[str, Any]

CHECKPOINT_PARTS = {"model", "progress", "row"}
"""The keys of the checkpoint in a run folder."""


@dataclass(frozen=True)
class Files:
    """The dated file names of a session."""

    base_dir: Path
    date: str

    @property
    def folder(self) -> Path:
        """The folder for data and weights."""
        return self.base_dir / "data"

    def tensors(self, split: str) -> Path:
        """The saved tensors of a split, such as `data/train_tensor_20210101.pt`."""
        return self.folder / f"{split}_tensor_{self.date}.pt"

    def weights(self, epoch: int | str) -> Path:
        """The weights after an epoch, or "orig" for those before the first."""
        return self.folder / f"state_dict_e{epoch}_{self.date}.pt"


def weights_in(folder: Path, epoch: int) -> Path:
    """The weights after an epoch, in a run folder."""
    return folder / f"state_dict_e{epoch}.pt"


def link_or_copy(path: Path, name: Path) -> None:
    """Hard-link a file under a second name, replacing an existing file; copy it if links are not supported."""
    name.parent.mkdir(parents=True, exist_ok=True)
    with replacing(name) as part:
        part.unlink(missing_ok=True)  # left by a killed process with the same id
        try:
            os.link(path, part)
        except OSError:
            shutil.copy2(path, part)


def is_shared(path: Path, name: Path) -> bool:
    """Whether `name` is still a link to this file, or a copy of it."""
    return path.exists() and stamp(path) == stamp(name)


def stamp(path: Path) -> tuple[int, int] | None:
    """Size and modification time of a file, to detect changes; None if it does not exist."""
    if not path.exists():
        return None
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, unique to this thread, which replaces `path` at the end."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)  # exists after an error, or if both were already links to one file


def write(value: Any, path: Path, **how: Any) -> None:
    """Save a value with `torch.save`, atomically."""
    if not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        torch.save(value, part, **how)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU; read with `weights_only=True`, so that no code is run.

    Raises:
        CheckpointError: the file is missing, damaged, or not a state dict.
    """
    value = read(path)
    if isinstance(value, dict) and set(value) == CHECKPOINT_PARTS:
        value = value["model"]
    if isinstance(value, dict) and isinstance(value.get("state_dict"), Mapping):  # the format of Lightning, and others
        value = dict(value["state_dict"])

    if not isinstance(value, dict) or not all(_is_weight(key, part) for key, part in value.items()):
        raise CheckpointError(
            f"{path.name} contains a {type(value).__name__} that is not a state_dict: "
            f"pass a file that torch.save(model.state_dict(), path) or quik_nb wrote."
        )
    return value


def _is_weight(key: object, value: object) -> bool:
    """Whether this may be an entry of a state dict: a tensor, or the result of a module's `get_extra_state`."""
    return isinstance(value, Tensor) or str(key).endswith("_extra_state")


def read(path: Path, trusted: bool = False) -> Any:
    """The content of a file, with tensors on the CPU.

    Args:
        path: of the file.
        trusted: load any object, which may run code; otherwise only tensors and plain values (`weights_only=True`).

    Raises:
        CheckpointError: the file is missing or damaged, or contains other objects and is not trusted.
    """
    if not path.exists():
        raise CheckpointError(f"There is no file {path}: {_near(path)}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=not trusted)
    except Exception as error:
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise CheckpointError(
            f"{path} cannot be read ({reason}): it is damaged, incomplete, or of another format, and the session is "
            f"unchanged: use another file, such as that of another epoch."
        ) from error


def _near(path: Path) -> str:
    names = sorted(p.name for p in path.parent.glob("*.pt")) if path.parent.exists() else []
    return f"in {path.parent} are {', '.join(names[:8])}." if names else f"{path.parent} has no .pt file."


def load_into(model: nn.Module, state: StateDict, origin: str) -> None:
    """Load weights into a model, or leave it unchanged and report which keys or shapes differ.

    Args:
        model: to load into.
        state: a state dict; prefixes of DistributedDataParallel and torch.compile are ignored.
        origin: where it comes from, for the error message.

    Raises:
        CheckpointError: the state dict does not match the model.
    """
    expected = model.state_dict()
    state = rename_keys(state, expected)

    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} is {tuple(state[key].shape)} there and {tuple(value.shape)} here"
        for key, value in expected.items()
        if isinstance(value, Tensor) and key in state and state[key].shape != value.shape
    ]

    if missing or unexpected or shapes:
        parts = [f"{origin} does not fit this {type(model).__name__}, which is unchanged."]
        parts += [f"Missing there: {_few(missing)}."] if missing else []
        parts += [f"Unknown here: {_few(unexpected)}."] if unexpected else []
        parts += [f"Other shapes: {_few(shapes)}."] if shapes else []
        raise CheckpointError(" ".join([*parts, "Use a model with the layers and sizes that it was saved with."]))
    model.load_state_dict(state)


def rename_keys(state: StateDict, expected: StateDict) -> StateDict:
    """A state dict with the keys of another one, from which it may differ by prefixes of torch's wrappers.

    DistributedDataParallel adds `module.` to each key, and torch.compile `_orig_mod.` to those of a submodule.

    >>> rename_keys({"module.layer._orig_mod.weight": 1}, {"layer.weight": 0})
    {'layer.weight': 1}
    """
    if set(state) == set(expected):
        return state
    by_plain_key = {_without_wrappers(key): key for key in expected}
    return {by_plain_key.get(_without_wrappers(key), key): value for key, value in state.items()}


def _without_wrappers(key: str) -> str:
    return ".".join(part for part in key.removeprefix("module.").split(".") if part != "_orig_mod")


def _few(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
