"""The samples of a split, as they were passed in: tensors in memory, a map-style dataset, or a stream of batches.

`as_source` turns everything that `add_data` takes into one of the three, and raises an error for the rest.
What is not here: batches, shuffling and ranks (`training/data/`).
"""

from collections.abc import Mapping
from dataclasses import replace
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
    TensorDataset,
)

from quik_nb.errors import RecipeError
from quik_nb.recipe import dataframes
from quik_nb.recipe.samples import Columns, Samples, Source, Stream, Tensors

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
    data: Any,
    split: str,
    target: str | None = None,
    inputs: Any = None,
    like: Source | None = None,
    labelled: bool = True,
) -> Source:
    """Make a source of what was passed in for a split.

    Args:
        data: tuple of tensors or arrays, a tensor, a dict of tensors, a DataFrame, a `Dataset`, a `DataLoader`.
        split: "train", "valid" or "test", for the messages.
        target: the target column where `data` is a DataFrame.
        inputs: those of its columns that are separate inputs, in order or by name; None for all in one.
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
        known = getattr(like, "columns", None)
        columns = Columns(target, inputs, inputs is not None) if known is None else known
        return _from_frame(data, split, columns if target is None else replace(columns, target=target), labelled)
    for option, value in (("target", target), ("inputs", inputs)):
        if value is not None:
            raise RecipeError(
                f"{option}={value!r} names columns, but {split} is {_kind(data)}, not a DataFrame: "
                f"leave {option} out, or pass a DataFrame."
            )

    if isinstance(data, DataLoader):
        return _from_loader(data)
    if isinstance(data, TensorDataset):
        return _tensors(data.tensors, split)
    if isinstance(data, IterableDataset):
        return Stream(data)
    if isinstance(data, Tensor | np.ndarray):
        return _tensors((data,), split)
    _refuse_other_kinds(data, split)
    if isinstance(data, Mapping):
        return replace(_tensors(tuple(data.values()), split, tuple(data)), names=tuple(map(str, data)))
    if isinstance(data, tuple | list) and data and all(hasattr(v, "shape") or isinstance(v, list) for v in data):
        return _tensors(tuple(data), split)
    if _is_samples(data):
        return _from_dataset(data, split)

    raise RecipeError(f"{split} is {_kind(data)}{_why_not(data)}: pass {_instead(data, split)}.")


def _refuse_other_kinds(data: Any, split: str) -> None:
    """Refuse what looks like samples and is none."""
    if hasattr(data, "iloc"):
        raise RecipeError(
            f"{split} is {_kind(data)}, one column without a target: pass its values, {split}=(x, column.to_numpy()), "
            f"or the DataFrame with target={str(data.name)!r}."
        )
    if isinstance(data, Mapping) and any(map(_is_dataset, data.values())):
        keys = ", ".join(map(str, data))
        raise RecipeError(
            f"{split} is {_kind(data)} of several datasets ({keys}), and a split is one of them: "
            f"pass add_data(train=data[{next(iter(data))!r}], valid=data[...])."
        )


def _is_dataset(value: Any) -> bool:
    """Whether it holds samples to be fetched, rather than a column of values."""
    return isinstance(value, Dataset) or hasattr(value, "column_names")


def _is_samples(data: Any) -> bool:
    """Whether something gives samples by number; a list of dicts, graphs or other objects can be nothing else."""
    if isinstance(data, list) and data:
        return not any(v is None or isinstance(v, tuple | list | str | bytes | int | float | Tensor) for v in data)
    if isinstance(data, str | bytes | tuple | list):
        return False
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


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
        _check_rows(value)
        return value.detach()
    if hasattr(value, "toarray"):  # SciPy's
        raise RecipeError(
            f"{_kind(value)} is sparse, and batches are cut of rows that are there: pass x.toarray(), or a Dataset "
            f"whose samples are rows of it, x[i].toarray()[0]."
        )

    array = _as_array(value)
    if array.dtype.kind not in "fiub":
        raise RecipeError(f"an array of dtype {array.dtype} cannot become a tensor: turn it into numbers first.")
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))  # shares memory where it can
    if array.dtype.kind == "f" and array.dtype != np.float16:
        return tensor.to(torch.get_default_dtype())
    if array.dtype.kind in "iu" and (array.dtype != np.uint8 or array.ndim == 1):  # uint8 images stay bytes
        return tensor.long()
    return tensor


def _check_rows(tensor: Tensor) -> None:
    """Refuse a tensor whose rows cannot be gathered."""
    if tensor.is_nested:
        raise RecipeError(
            "a nested tensor has rows of unequal length, which cannot be cut into batches: pad them, "
            "x.to_padded_tensor(0.0), or pass a Dataset and a collate_fn that pads each batch."
        )
    if tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        raise RecipeError(
            f"a tensor of layout {layout} is sparse, and its rows cannot be gathered into batches: pass x.to_dense(). "
            f"Where it is one matrix for all samples, such as the adjacency of a graph, keep it out of add_data, let "
            f"set_step(fn) use it by its name, and pass the numbers of the rows as the samples."
        )


def _as_array(value: Any) -> Any:
    try:
        array = np.asarray(value)
    except ValueError as error:  # as NumPy says of lists within lists
        raise RecipeError(UNEQUAL_ROWS) from error
    if array.dtype.hasobject and isinstance(value, list | np.ndarray) and len({np.shape(row) for row in value}) > 1:
        raise RecipeError(UNEQUAL_ROWS)
    return array


UNEQUAL_ROWS = (
    "the rows differ in length, and a tensor has rows of one length: pad them, as torch.nn.utils.rnn.pad_sequence "
    "does, or pass a Dataset of them and add_data(..., collate_fn=pad), which pads each batch to its longest."
)
"""What is said of lists and arrays of rows that are no table."""


def _from_frame(frame: Any, split: str, columns: Columns, labelled: bool) -> Tensors:
    """Samples of a DataFrame.

    Args:
        frame: of the user's.
        split: for the messages.
        columns: which are inputs, and which the target.
        labelled: False where the target column need not be there.
    """
    dataframes.check(frame, split)
    target = columns.target
    used = columns.inputs
    if used is None:
        used = [column for column in frame.columns if target is None or column != target]
    inputs = (
        dataframes.inputs(frame, used, target, split) if columns.separate else [dataframes.features(frame, used, split)]
    )
    names = tuple(map(str, used)) if isinstance(used, Mapping) else None
    columns = replace(columns, inputs=used)

    if not labelled and (target is None or target not in list(frame.columns)):
        return Tensors(tuple(inputs), names, columns=columns)
    label = _as_tensor(dataframes.labels(frame, target, split))
    return Tensors((*inputs, label), None if names is None else (*names, "labels"), columns=columns)
