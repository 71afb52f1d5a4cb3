"""Files: their names, atomic writes, safe reads.

Each training has a folder of its own, with the weights of its epochs, its history and the checkpoint from which it can
go on. The weights stand under the names that their users already have as well (`data/state_dict_e3_20210101.pt`): a
second name of the same file, which the next training of that date takes over without touching what is in the folder.
(Who writes into the file itself by that name writes into both; by a new file that takes the name, into one.)

A write goes to a temporary file that then takes the final name, so a reader sees the old file or the new one, never a
half. There is no fsync: it guards against a power cut, not a killed process, and would cost more than a short epoch.
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
"""What lies in the checkpoint of a run folder."""


@dataclass(frozen=True)
class Files:
    """The names of all files of a session, by folder and date."""

    base_dir: Path
    date: str

    @property
    def folder(self) -> Path:
        """The folder of data and weights."""
        return self.base_dir / "data"

    def tensors(self, split: str) -> Path:
        """The saved tensors of a split, such as `data/train_tensor_20210101.pt`."""
        return self.folder / f"{split}_tensor_{self.date}.pt"

    def weights(self, epoch: int | str) -> Path:
        """The weights after an epoch, or "orig" for those before the first."""
        return self.folder / f"state_dict_e{epoch}_{self.date}.pt"


def weights_in(folder: Path, epoch: int) -> Path:
    """The weights after an epoch in the folder of their training."""
    return folder / f"state_dict_e{epoch}.pt"


def link_or_copy(path: Path, name: Path) -> None:
    """Give a file a second name, in place of whatever stands there; a copy where the file system has no links."""
    name.parent.mkdir(parents=True, exist_ok=True)
    with replacing(name) as part:
        part.unlink(missing_ok=True)  # of a process of this number that was killed
        try:
            os.link(path, part)
        except OSError:
            shutil.copy2(path, part)


def is_shared(path: Path, name: Path) -> bool:
    """Whether a name is still that of this file, or of its copy."""
    return path.exists() and stamp(path) == stamp(name)


def stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of a file, which tell whether it is still the one that it was; None where there is none."""
    if not path.exists():
        return None
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to make a file that takes this name at the end; it is made there by nobody else at the same time."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)  # it is still there after an error, and where both are names of one file


def write(value: Any, path: Path, **how: Any) -> None:
    """Save with `torch.save`, so that the file under this name is whole at any moment."""
    if not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        torch.save(value, part, **how)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file, on the CPU; nothing but tensors is read, so the file can run no code.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    value = read(path)
    if isinstance(value, dict) and set(value) == CHECKPOINT_PARTS:
        value = value["model"]
    if isinstance(value, dict) and isinstance(value.get("state_dict"), Mapping):  # as Lightning and many scripts save
        value = dict(value["state_dict"])
    if not isinstance(value, dict) or not all(_is_weight(key, part) for key, part in value.items()):
        raise CheckpointError(
            f"{path.name} holds a {type(value).__name__} that is no state_dict: "
            f"pass a file that torch.save(model.state_dict(), path) or quik_nb wrote."
        )
    return value


def _is_weight(key: object, value: object) -> bool:
    """Whether it may be a part of a state dict: a tensor, or what a module's `get_extra_state` gave."""
    return isinstance(value, Tensor) or str(key).endswith("_extra_state")


def read(path: Path, trusted: bool = False) -> Any:
    """What a file holds, on the CPU.

    Args:
        path: of the file.
        trusted: read any object, which may run code; by itself torch's safe loader takes tensors and plain values.

    Raises:
        CheckpointError: the file is missing or damaged, or would run code when it is read.
    """
    if not path.exists():
        raise CheckpointError(f"There is no file {path}: {_near(path)}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=not trusted)
    except Exception as error:
        words = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise CheckpointError(
            f"{path} cannot be read ({words}): it is damaged, cut short, or of another kind. "
            f"The session is as it was; take another file, such as another epoch's."
        ) from error


def _near(path: Path) -> str:
    there = sorted(p.name for p in path.parent.glob("*.pt")) if path.parent.exists() else []
    return f"in {path.parent} are {', '.join(there[:8])}." if there else f"{path.parent} has no .pt file."


def load_into(model: nn.Module, state: StateDict, origin: str) -> None:
    """Load weights into a model, or leave it untouched and say which keys or shapes differ.

    Raises:
        CheckpointError: the weights are of another model.
    """
    own = model.state_dict()
    state = under_own_names(state, own)
    missing = [key for key in own if key not in state]
    foreign = [key for key in state if key not in own]
    shapes = [
        f"{key} is {tuple(state[key].shape)} there and {tuple(value.shape)} here"
        for key, value in own.items()
        if isinstance(value, Tensor) and key in state and state[key].shape != value.shape
    ]
    if missing or foreign or shapes:
        parts = [f"{origin} does not fit this {type(model).__name__}, which is left as it was."]
        parts += [f"Missing there: {_few(missing)}."] if missing else []
        parts += [f"Unknown here: {_few(foreign)}."] if foreign else []
        parts += [f"Other shapes: {_few(shapes)}."] if shapes else []
        raise CheckpointError(" ".join([*parts, "Build the model with the sizes it was saved with."]))
    model.load_state_dict(state)


def under_own_names(state: StateDict, own: StateDict) -> StateDict:
    """A state dict under the names of a model, where only wrappers of torch make them differ.

    DistributedDataParallel puts `module.` before each name, and torch.compile `_orig_mod.` before those of a part.

    >>> under_own_names({"module.layer._orig_mod.weight": 1}, {"layer.weight": 0})
    {'layer.weight': 1}
    """
    if set(state) == set(own):
        return state
    plain = {_without_wrappers(key): key for key in own}
    return {plain.get(_without_wrappers(key), key): value for key, value in state.items()}


def _without_wrappers(key: str) -> str:
    return ".".join(part for part in key.removeprefix("module.").split(".") if part != "_orig_mod")


def _few(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
