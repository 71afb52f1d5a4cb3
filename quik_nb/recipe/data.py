"""The samples of a split, as they were passed in: tensors in memory, a map-style dataset, or a stream of batches.

`as_source` turns everything that `add_data` takes into one of the three, and raises an error for the rest.
What is not here: batches, shuffling and ranks (`training/data/`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from quik_nb.errors import RecipeError
from quik_nb.recipe import dataframes
from quik_nb.recipe.kinds import plain

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class Tensors:
    """Samples in memory: tensors whose first dimension counts the samples."""

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...] | None = None
    """keys of a batch that is a dict; None for a batch that is a tuple"""
    rows: Tensor | None = None
    """(samples,) int64: the rows that belong to this split; None for all of them"""
    columns: tuple[str, ...] | None = None
    """the feature columns of a DataFrame, in order"""
    target: str | None = None
    """the target column of a DataFrame"""

    def __len__(self) -> int:
        return len(self.tensors[0]) if self.rows is None else len(self.rows)

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return max(1, sum(t[:1].numel() * t.element_size() for t in self.tensors))

    def steps(self, batch_size: int, accumulate: int = 1, world_size: int = 1) -> int:
        """Optimizer steps in an epoch: `accumulate` cuts them into micro-batches, and changes no number of them."""
        return -(-len(self) // batch_size)

    def pack(self, values: Sequence[Tensor]) -> "tuple[Tensor, ...] | dict[str, Tensor]":
        """A batch in the form in which the data came: a tuple, or a dict."""
        return tuple(values) if self.names is None else dict(zip(self.names, values, strict=True))


@dataclass(frozen=True, eq=False)
class Samples:
    """A map-style dataset, fetched sample by sample through a `DataLoader`."""

    dataset: Any
    batch_size: int | None = None
    """samples per optimizer step where a `DataLoader` came with one; None for the session's"""
    shuffle: bool | None = None
    """None: the training split is shuffled, the others are not"""
    sampler: Any = None
    """a sampler of the user's own, or None"""
    batch_sampler: Any = None
    """a batch sampler of the user's own, or None"""
    drop_last: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    """further keywords of the `DataLoader`: collate_fn, num_workers, pin_memory, ..."""
    own_loader: bool = False
    """whether it came as a `DataLoader`, which says itself how samples are loaded"""

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self) -> Any:
        """One of the samples, to see what they are like; it may be drawn at random."""
        if self.batch_sampler is not None:
            return self.dataset[next(iter(self.batch_sampler))[0]]
        return self.dataset[0 if self.sampler is None else next(iter(self.sampler))]

    @property
    def joins(self) -> bool:
        """Whether batches of its own loader join into a step, rather than that the setting `batch_size` cuts it."""
        return self.batch_size is not None or self.batch_sampler is not None

    def steps(self, batch_size: int, accumulate: int = 1, world_size: int = 1) -> int | None:
        """Optimizer steps in an epoch; None where a sampler does not know.

        Args:
            batch_size: samples of a step, where no loader came with it.
            accumulate: batches of the loader that came with it which join into a step.
            world_size: ranks, which change nothing here.
        """
        joined = accumulate if self.joins else 1
        with suppress(TypeError):
            if self.batch_sampler is not None:
                return -(-len(self.batch_sampler) // joined)
            samples = len(self if self.sampler is None else self.sampler)
            return -(-_batches(samples, self.batch_size or batch_size, self) // joined)
        return None


@dataclass(frozen=True, eq=False)
class Stream:
    """An `IterableDataset`, or a `DataLoader` that yields ready batches: read in order, split among the ranks."""

    dataset: Any
    batch_size: int | None = None
    ready: bool = False
    """whether the dataset yields whole batches (`DataLoader(batch_size=None)`)"""
    sampler: Any = None
    """what a map-style dataset that gives ready batches is asked for, one after the other"""
    drop_last: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    own_loader: bool = False
    sharded: bool | None = None
    """whether it yields each rank's own share, rather than all samples to each; None to see by the first batches"""

    def __len__(self) -> int:
        """Samples (batches where they come ready), if the dataset knows; raises TypeError where it does not."""
        return len(self.dataset if self.sampler is None else self.sampler)

    @property
    def joins(self) -> bool:
        """Whether batches of its own loader join into a step, rather than that the setting `batch_size` cuts it."""
        return self.batch_size is not None or self.ready

    def steps(self, batch_size: int, accumulate: int = 1, world_size: int = 1) -> int | None:
        """Optimizer steps in an epoch; None where the stream does not know.

        Args:
            batch_size: samples of a step, where no loader came with it.
            accumulate: batches of the loader that came with it which join into a step.
            world_size: ranks, each of which has at least one of the batches that come ready.
        """
        with suppress(TypeError):
            if self.ready:
                return -(-len(self) // max(accumulate, world_size))
            batches = _batches(len(self), self.batch_size or batch_size, self)
            return -(-batches // (accumulate if self.joins else 1))
        return None


def _batches(samples: int, size: int, source: Samples | Stream) -> int:
    return samples // size if source.drop_last else -(-samples // size)


Source = Tensors | Samples | Stream


LOADER_OPTIONS = (
    "collate_fn",
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "prefetch_factor",
    "multiprocessing_context",
)
"""Keywords that are copied from a `DataLoader`, beside the order and size of its batches."""


def as_source(
    data: Any, split: str, target: str | None = None, like: Source | None = None, labelled: bool = True
) -> Source:
    """Make a source of what was passed in for a split.

    Args:
        data: tuple of tensors or arrays, a tensor, a dict of tensors, a DataFrame, a `Dataset`, a `DataLoader`.
        split: "train", "valid" or "test", for the messages.
        target: the target column where `data` is a DataFrame.
        like: the training source, whose columns a further DataFrame must have.
        labelled: False where a DataFrame need not have the target column.

    Raises:
        RecipeError: the data cannot be used as it is; the message says what to pass instead.

    >>> source = as_source((torch.zeros(10, 3), torch.zeros(10)), "train")
    >>> len(source), source.row_bytes
    (10, 16)
    """
    if isinstance(data, Tensors | Samples | Stream):
        return data

    if hasattr(data, "columns") and hasattr(data, "iloc"):
        return _from_frame(data, split, target, like, labelled)
    if target is not None:
        raise RecipeError(
            f"target={target!r} names a column, but {split} is {_kind(data)}, not a DataFrame: "
            f"leave target out, or pass a DataFrame."
        )

    if isinstance(data, DataLoader):
        return _from_loader(data)
    if isinstance(data, TensorDataset):
        return _tensors(data.tensors, split)
    if isinstance(data, IterableDataset):
        return Stream(data)
    if isinstance(data, Tensor | np.ndarray):
        return _tensors((data,), split)
    if isinstance(data, Mapping):
        return replace(_tensors(tuple(data.values()), split, tuple(data)), names=tuple(map(str, data)))
    if isinstance(data, tuple | list) and data and all(hasattr(v, "shape") or isinstance(v, list) for v in data):
        return _tensors(tuple(data), split)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | bytes | tuple | list):
        return _from_dataset(data, split)

    raise RecipeError(f"{split} is {_kind(data)}{_why_not(data)}: pass {_instead(data, split)}.")


def _why_not(data: Any) -> str:
    if isinstance(data, tuple | list) and data:
        return f" of {', '.join(sorted({type(value).__name__ for value in data}))}"
    if isinstance(data, Dataset):
        return ", a Dataset that does not know how many samples it has"
    return ", which holds no samples that can be used"


def _instead(data: Any, split: str) -> str:
    if isinstance(data, tuple | list) and data:
        return (
            f"one tuple of tensors, whose first dimension is the samples, {split}=(x, more_x, y); "
            f"torch.utils.data.default_collate(samples) makes that of a list of samples"
        )
    if isinstance(data, Dataset):
        return "one with a method __len__, or an IterableDataset with a method __iter__"
    return (
        f"a tuple of tensors or arrays ({split}=(x, y)), a TensorDataset, a Dataset, a DataLoader, a DataFrame with "
        f"target=, or a dict of tensors"
    )


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _from_dataset(data: Any, split: str) -> Samples:
    if getattr(data, "format", None) and hasattr(data, "with_format") and data.format.get("type") is None:
        data = data.with_format("torch")  # a Hugging Face dataset gives lists unless another format is set
    if len(data) == 0:
        raise RecipeError(f"{split} is an empty {type(data).__name__}: there is nothing to use; pass some samples.")
    return Samples(data)


def _from_loader(loader: DataLoader[Any]) -> Source:
    options = {name: getattr(loader, name) for name in LOADER_OPTIONS if getattr(loader, name, None)}
    if loader.num_workers and loader.persistent_workers:
        options["persistent_workers"] = True

    if isinstance(loader.dataset, IterableDataset):
        ready = loader.batch_size is None
        last = loader.drop_last
        return Stream(loader.dataset, loader.batch_size, ready, drop_last=last, options=options, own_loader=True)
    if loader.batch_size is None and loader.batch_sampler is None:
        return Stream(loader.dataset, ready=True, sampler=loader.sampler, options=options, own_loader=True)
    if type(loader.batch_sampler) is not BatchSampler:
        return Samples(loader.dataset, batch_sampler=loader.batch_sampler, options=options, own_loader=True)

    plain = type(loader.sampler) in (SequentialSampler, DistributedSampler) or (
        type(loader.sampler) is RandomSampler
        and not loader.sampler.replacement
        and loader.sampler.num_samples == len(loader.sampler.data_source)
    )
    return Samples(
        loader.dataset,
        batch_size=loader.batch_size,
        shuffle=_shuffles(loader.sampler) if plain else None,
        sampler=None if plain else loader.sampler,
        drop_last=loader.drop_last,
        options=options,
        own_loader=True,
    )


def _shuffles(sampler: Any) -> bool:
    return bool(sampler.shuffle) if isinstance(sampler, DistributedSampler) else type(sampler) is RandomSampler


def _tensors(values: tuple[Any, ...], split: str, names: tuple[str, ...] | None = None) -> Tensors:
    tensors = tuple(_as_tensor(v) for v in values)
    label = names or tuple(f"tensor {i}" for i in range(len(tensors)))
    bare = [n for n, t in zip(label, tensors, strict=True) if t.ndim == 0]
    if bare:
        raise RecipeError(
            f"{split}: {', '.join(bare)} has no dimension that counts samples; pass shape (samples, ...)."
        )

    lengths = [len(t) for t in tensors]
    if len(set(lengths)) > 1:
        listed = ", ".join(f"{n} has {k:,}" for n, k in zip(label, lengths, strict=True))
        raise RecipeError(
            f"{split}: the tensors differ in length ({listed}), so rows cannot be paired: "
            f"cut them to the same number of samples."
        )
    if lengths[0] == 0:
        raise RecipeError(f"{split} is empty (0 samples): there is nothing to use; pass some samples.")
    return Tensors(tensors)


def _as_tensor(value: Any) -> Tensor:
    """A tensor of an array: float64 becomes torch's default dtype and integers int64, as models expect."""
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise RecipeError(f"an array of dtype {array.dtype} cannot become a tensor: turn it into numbers first.")
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))  # shares memory where it can
    if array.dtype.kind == "f" and array.dtype != np.float16:
        return tensor.to(torch.get_default_dtype())
    if array.dtype.kind in "iu" and (array.dtype != np.uint8 or array.ndim == 1):  # uint8 images stay bytes
        return tensor.long()
    return tensor


def _from_frame(frame: Any, split: str, target: Any, like: Source | None, labelled: bool) -> Tensors:
    dataframes.check(frame, split)
    if isinstance(like, Tensors) and like.columns is not None:
        columns, target = list(like.columns), like.target if target is None else target
    else:
        columns = [c for c in frame.columns if target is None or c != target]
    if not labelled and (target is None or target not in list(frame.columns)):
        return Tensors((dataframes.features(frame, columns, split),), columns=tuple(columns))
    label = dataframes.labels(frame, target, split)
    return Tensors(
        (dataframes.features(frame, columns, split), _as_tensor(label)), columns=tuple(columns), target=target
    )


def alike(one: Source, other: Source) -> bool:
    """Whether two sources hold the same samples, as after a cell that was run again."""
    if one is other:
        return True
    if not isinstance(one, Tensors) or not isinstance(other, Tensors):
        return False  # the samples of a user's dataset cannot be compared from outside
    own, others = ((*s.tensors, *(() if s.rows is None else (s.rows,))) for s in (one, other))
    if one.names != other.names or len(own) != len(others):
        return False
    return all(
        a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in zip(own, others, strict=True)
    )


@dataclass(frozen=True)
class DataOptions:
    """How the samples of `add_data` are read."""

    target: str | None = None
    """the target column of a DataFrame"""
    collate_fn: Callable[[list[Any]], Any] | None = None
    """makes a batch of a list of samples, for splits that are datasets"""
    sharded: bool | None = None
    """whether streams yield each rank's own share; None to see by their first batches"""


def as_sources(splits: Mapping[str, Any], options: DataOptions, seed: int) -> dict[str, Source]:
    """The sources of all splits by name; shares such as `valid=0.2` are cut from the training split by the seed.

    Args:
        splits: "train", "valid" and "test" as `add_data` takes them, or a share.
        options: how they are read.
        seed: of the shares.

    Raises:
        RecipeError: the data cannot be used as it is; the message says what to pass instead.
    """
    whole = _read_by(options, as_source(splits["train"], "train", options.target), "train")
    sources = {"train": whole}
    for name in ("valid", "test"):
        data = plain(splits[name])
        if isinstance(data, int | float) and not isinstance(data, bool):
            seed_here = seed + (name == "test")
            sources["train"], sources[name] = split_off(sources["train"], data, seed_here, name, of=whole)
        elif data is not None:
            target = options.target if hasattr(data, "iloc") else None
            sources[name] = _read_by(options, as_source(data, name, target, like=sources["train"]), name)

    if options.sharded is not None and not any(isinstance(source, Stream) for source in sources.values()):
        raise RecipeError(
            f"sharded={options.sharded} says of a stream whether it yields each rank's own share, and none of the data "
            f"is a stream: leave it out."
        )
    return sources


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


def loader_options(source: Samples | Stream, num_workers: int) -> Mapping[str, Any]:
    """Keywords of the source's `DataLoader`, with so many processes to load samples where it came as a dataset.

    A stream gets one at most: several would each read all of it. A `DataLoader` of one's own keeps its own number.

    >>> loader_options(Samples(range(9)), num_workers=2)
    {'num_workers': 2, 'persistent_workers': True}
    """
    if num_workers == 0 or source.own_loader:
        return source.options
    if isinstance(source, Stream):
        num_workers = 1
    # workers that stay: to start them costs more than an epoch of a small dataset
    return {**source.options, "num_workers": num_workers, "persistent_workers": True}


def split_off(
    source: Source, part: float, seed: int, name: str = "valid", of: Source | None = None
) -> tuple[Source, Source]:
    """Divide a source in two by a seeded permutation: (the rest, the part).

    Args:
        source: what to divide.
        part: a share such as 0.2, or a number of samples such as 500.
        seed: the same seed gives the same division.
        name: of the part, for messages.
        of: what a share is a share of, where another part was cut off before; None for the source.
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


def compact(source: Source | None) -> Source | None:
    """The source without the rest of a larger tensor that its tensors are views of."""
    if not isinstance(source, Tensors):
        return source
    return replace(source, tensors=tuple(_own_storage(t.cpu()) for t in source.tensors))


def _own_storage(tensor: Tensor) -> Tensor:
    whole = tensor.untyped_storage().nbytes()
    return tensor.clone() if whole > 2 * tensor.numel() * tensor.element_size() else tensor


def describe_source(source: Source) -> str:
    """A split in words: how many samples of what."""
    match source:
        case Tensors():
            names = source.names or ("",) * len(source.tensors)
            shapes = ", ".join(
                f"{name} {tuple(t.shape[1:])} {str(t.dtype).removeprefix('torch.')}".strip()
                for name, t in zip(names, source.tensors, strict=True)
            )
            return f"{len(source):,} samples of {shapes}"
        case Samples():
            return f"{len(source):,} samples, {type(source.dataset).__name__}"
        case Stream():
            return f"a stream, {type(source.dataset).__name__}"
