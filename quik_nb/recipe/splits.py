"""The splits of `add_data`: what was passed for each of them, and shares that are cut from the training split.

What is not here: what one split is made of (`data.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from quik_nb.errors import RecipeError
from quik_nb.recipe.data import as_source
from quik_nb.recipe.kinds import plain
from quik_nb.recipe.recipe import LABEL_KEYS, label_tensor
from quik_nb.recipe.samples import Samples, Source, Stream, Tensors


@dataclass(frozen=True)
class DataOptions:
    """How the samples of `add_data` are read."""

    target: str | None = None
    """the target column of a DataFrame"""
    inputs: Any = None
    """those of its columns that are separate inputs: names and lists of names, in order or by keyword; None for all"""
    collate_fn: Callable[[list[Any]], Any] | None = None
    """makes a batch of a list of samples, for splits that are datasets"""
    sharded: bool | None = None
    """whether streams yield each rank's own share; None to see by their first batches"""
    stratify: bool = False
    """whether shares have the classes of the whole in equal parts"""


def as_sources(splits: Mapping[str, Any], options: DataOptions, seed: int) -> dict[str, Source]:
    """The sources of all splits by name; shares such as `valid=0.2` are cut from the training split by the seed.

    Args:
        splits: "train", "valid" and "test" as `add_data` takes them, or a share.
        options: how they are read.
        seed: of the shares.

    Raises:
        RecipeError: the data cannot be used as it is; the message says what to pass instead.
    """
    whole = _read_by(options, as_source(splits["train"], "train", options.target, options.inputs), "train")
    sources = {"train": whole}
    cut = [name for name in ("valid", "test") if _is_share(splits[name])]
    if options.stratify and not cut:
        raise RecipeError(
            "stratify=True is how a share is cut from train, and none is cut: pass valid=0.2, or leave it out."
        )
    for name in ("valid", "test"):
        data = plain(splits[name])
        if name in cut:
            seed_here = seed + (name == "test")
            rest = sources["train"]
            sources["train"], sources[name] = split_off(rest, data, seed_here, name, whole, options.stratify)
        elif data is not None:
            target = options.target if hasattr(data, "iloc") else None
            sources[name] = _read_by(options, as_source(data, name, target, like=sources["train"]), name)

    _check_habit(splits, sources)
    if options.sharded is not None and not any(isinstance(source, Stream) for source in sources.values()):
        raise RecipeError(
            f"sharded={options.sharded} says of a stream whether it yields each rank's own share, and none of the data "
            f"is a stream: leave it out."
        )
    return sources


def _is_share(data: Any) -> bool:
    value = plain(data)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_habit(splits: Mapping[str, Any], sources: Mapping[str, Source]) -> None:
    """Refuse `add_data(x, y)`, as `fit(x, y)` of other libraries takes them: here y would be the validation split."""
    x, y = sources["train"], sources.get("valid")
    if not (isinstance(x, Tensors) and isinstance(y, Tensors)) or x.columns is not None:
        return
    bare = all(hasattr(splits[name], "shape") for name in ("train", "valid"))
    if bare and x.tensors[0].shape[1:] != y.tensors[0].shape[1:]:
        shapes = f"{tuple(x.tensors[0].shape)} and {tuple(y.tensors[0].shape)}"
        raise RecipeError(
            f"add_data(x, y) makes y the validation split, whose samples are of another shape here ({shapes}), so that "
            f"no model could take both: inputs and target go together, add_data(train=(x, y), valid=0.2)."
        )


def _read_by(options: DataOptions, source: Source, split: str) -> Source:
    if options.collate_fn is not None:
        source = _with_collate_fn(source, split, options.collate_fn)
    return replace(source, sharded=options.sharded) if isinstance(source, Stream) else source


def _with_collate_fn(source: Source, split: str, collate_fn: Callable[[list[Any]], Any]) -> Source:
    if not callable(collate_fn):
        raise RecipeError(f"collate_fn={collate_fn!r} is no function of a list of samples: pass one, or leave it out.")
    if isinstance(source, Tensors):
        raise RecipeError(
            f"collate_fn makes batches of single samples, and {split} is tensors in memory, which are sliced: "
            f"pass a Dataset, or leave collate_fn out."
        )
    if source.own_loader:
        raise RecipeError(
            f"collate_fn was given beside a DataLoader of {split}, which has its own: "
            f"pass DataLoader(..., collate_fn=collate_fn), or the dataset itself."
        )
    return replace(source, options={**source.options, "collate_fn": collate_fn})


def split_off(
    source: Source, part: float, seed: int, name: str = "valid", of: Source | None = None, stratify: bool = False
) -> tuple[Source, Source]:
    """Divide a source in two by a seeded permutation: (the rest, the part).

    Args:
        source: what to divide.
        part: a share such as 0.2, or a number of samples such as 500.
        seed: the same seed gives the same division.
        name: of the part, for messages.
        of: what a share is a share of, where another part was cut off before; None for the source.
        stratify: whether each class has the same share of both parts, as nearly as whole samples allow.
    """
    if isinstance(source, Stream):
        raise RecipeError(
            f"{name}={part} cannot be cut from a stream, whose length and order are not known: "
            f"pass a dataset of its own, {name}=..."
        )

    total = len(source)
    whole = total if of is None else len(of)
    count = round(whole * part) if isinstance(part, float) else part
    if not 0 < count < total:
        left = f", of which {total:,} are left" if whole != total else ""
        raise RecipeError(
            f"{name}={part} of {whole:,} samples{left}, leaves one of the splits empty: "
            f"use a share such as {name}=0.2, or a number of samples below {total:,}."
        )

    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    if stratify:
        order = by_classes(order, class_numbers(source, name), count)
    parts = order[count:].sort().values, order[:count].sort().values
    if isinstance(source, Tensors):
        rows = [p if source.rows is None else source.rows[p] for p in parts]
        return replace(source, rows=rows[0]), replace(source, rows=rows[1])
    if source.sampler is not None or source.batch_sampler is not None:
        raise RecipeError(
            f"{name}={part} cannot be cut from a DataLoader with a sampler of its own: pass {name}=... as well."
        )

    rest, cut = (replace(source, dataset=Subset(source.dataset, p.tolist())) for p in parts)
    return rest, replace(cut, shuffle=False)


def class_numbers(source: Tensors | Samples, name: str) -> Tensor:
    """(samples,) int64: the class of each sample, for a stratified split.

    Args:
        source: in memory, or a dataset with `targets` or a column of labels.
        name: of the part that is cut, for messages.

    Raises:
        RecipeError: there are no class numbers to see.
    """
    labels = _labels(source)
    if labels is None:
        raise RecipeError(
            f"stratify=True with {name}=...: the classes of {type(getattr(source, 'dataset', source)).__name__} cannot "
            f"be seen without fetching all samples: give it an attribute targets, or pass {name}= as a dataset."
        )
    if labels.is_floating_point() or labels.ndim != 1:
        shown = f"{tuple(labels.shape)} {str(labels.dtype).removeprefix('torch.')}"
        raise RecipeError(
            f"stratify=True with {name}=...: the target ({shown}) is no class number for each sample, so there are no "
            f"classes to divide equally: leave stratify out."
        )
    return labels.long()


def _labels(source: Tensors | Samples) -> Tensor | None:
    if isinstance(source, Tensors):
        label = label_tensor(source)
        return label if source.rows is None else label[source.rows]

    dataset, rows = source.dataset, None
    while isinstance(dataset, Subset):
        inner = torch.as_tensor(dataset.indices)
        rows = inner if rows is None else inner[rows]
        dataset = dataset.dataset

    labels = getattr(dataset, "targets", None)
    if labels is None:
        column = next((key for key in LABEL_KEYS if key in getattr(dataset, "column_names", ())), None)
        labels = None if column is None else dataset[column]
    if labels is None:
        return None
    labels = torch.as_tensor(labels if isinstance(labels, Tensor) else list(labels))
    return labels if rows is None else labels[rows]


def by_classes(order: Tensor, classes: Tensor, count: int) -> Tensor:
    """An order of the samples whose first `count` have the classes in equal shares, as nearly as whole samples allow.

    Samples left over go to the classes with the largest remainders (Hamilton's method).

    Args:
        order: (samples,) of all of them.
        classes: (samples,) int64.
        count: of the first part.

    >>> by_classes(torch.arange(6), torch.tensor([0, 0, 0, 0, 1, 1]), 3).tolist()
    [0, 1, 4, 2, 3, 5]
    """
    _, which, sizes = torch.unique(classes[order], return_inverse=True, return_counts=True)
    exact = sizes.double() * count / len(order)
    quotas = exact.floor().long()
    left = count - int(quotas.sum())
    quotas[(exact - quotas).argsort(descending=True, stable=True)[:left]] += 1

    grouped = which.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    place = torch.empty_like(which)
    place[grouped] = torch.arange(len(order)) - starts[which[grouped]]  # of each sample within its class
    is_first = place < quotas[which]
    return torch.cat([order[is_first], order[~is_first]])
