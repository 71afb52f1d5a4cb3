"""The training of a session in plain PyTorch: the shortest explanation of `train()`, and the template of `as_code()`.

It runs as it is, on made-up data: `python -m quik_nb.export.plain_loop`. For a session, `script.py` decides the
conditions of this file (`if CLIP_NORM is not None:`), removes what is then unused, and fills in the session's model,
data and settings.

What is not here: several processes, resuming, the live view.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

EPOCHS = 3
BATCH_SIZE = 16  # samples; an optimizer step takes one batch, or several that join
VALID_BATCH_SIZE = 16  # samples per forward pass of validation
SEED = 42  # for the order of samples, dropout and initial weights
PRECISION = "fp32"
COMPILE = False

ACCUMULATE = 2  # micro-batches per optimizer step
JOINED = False  # whether these are whole batches of a DataLoader, not parts of one batch
CLIP_VALUE: float | None = None  # maximum absolute value of a gradient element
CLIP_NORM: float | None = 0.5  # maximum norm of all gradients together
EMA: float | None = 0.9  # decay per step of the averaged weights, which are validated and saved
SCHEDULES = {"batch"}  # when schedulers are stepped: after "batch" or "epoch", with the "loss", or as "timm" does
CLOSURE = False  # whether the optimizer evaluates the loss several times per step, as LBFGS does
YIELDS = False  # whether the step yields pairs of an optimizer's name and its loss

PATIENCE: int | None = 2  # epochs without improvement after which training stops
MIN_DELTA = 0.0  # by how much the loss must fall to count as an improvement
MONITOR = "valid_loss"  # the loss for early stopping and schedulers

REDUCTION = "mean"  # or "sum": how the criterion reduces the losses of a batch
WEIGHTED = False  # whether labels have weights, or are ignored
LABEL = "labels"  # the key of the target in a dict batch
STEP: Callable[..., Any] | None = None  # (model, criterion, batch) -> loss or (loss, outputs); None for the one below
STEP_OUTPUT = False  # whether it gives a StepOutput, whose first two are loss and outputs
METRICS: dict[str, Callable[[Any, Any], Any]] = {}  # functions of (outputs, targets) over all of validation

SHUFFLE = True
TRAIN_LOADER: dict[str, Any] = {}  # further keywords of its DataLoader
VALID_LOADER: dict[str, Any] = {}  # further keywords of its DataLoader

SAVE = False
DATE = "20210101"  # in file names
DATA = Path("data")
FIRST_WEIGHTS: Path | None = None  # initial weights
FROZEN: list[str] = []  # parameters that are not trained
IN_EVAL_MODE: list[str] = []  # parts that stay in evaluation mode while the model trains

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=PRECISION != "fp32")


def made_up(samples: int) -> Any:
    """Inputs (samples, 5) and targets (samples, 1)."""
    generator = torch.Generator().manual_seed(samples)
    x = torch.randn(samples, 5, generator=generator, dtype=torch.float64)
    return x, x.sum(1, keepdim=True).tanh()


# ---------------------------------------------------------------------- random numbers


def epoch_seed(epoch: int) -> int:
    """A seed for each epoch, so that training can continue at any epoch with the same random numbers."""
    return int(np.random.SeedSequence([SEED, epoch, 0]).generate_state(1, np.uint32)[0])


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch, for dropout, augmentation and initial weights."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # NumPy takes 32 bits, torch 64
    torch.manual_seed(seed)


# ---------------------------------------------------------------------- batches


def in_order(samples: int, seed: int | None) -> Tensor:
    """The order of the samples, shuffled with a separate generator, independent of the global ones."""
    if seed is None:
        return torch.arange(samples)
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))


def from_memory(data: Any, batch_size: int, seed: int | None = None) -> Iterator[Any]:
    """Batches of tensors, on the device: indexing once per batch is much faster than fetching single samples."""
    if isinstance(data, dict):
        for rows in in_order(len(next(iter(data.values()))), seed).split(batch_size):  # type: ignore[no-untyped-call]
            yield {name: tensor[rows].to(device) for name, tensor in data.items()}
    else:
        for rows in in_order(len(data[0]), seed).split(batch_size):  # type: ignore[no-untyped-call]
            yield [tensor[rows].to(device) for tensor in data]


def from_dataset(data: Any, batch_size: int, seed: int | None = None, **options: Any) -> Iterator[Any]:
    """Batches of a dataset, on the device."""
    order = in_order(len(data), seed).tolist()
    yield from map(to_device, DataLoader(data, batch_size, sampler=order, **options))


def from_stream(data: Any, batch_size: int | None, **options: Any) -> Iterator[Any]:
    """Batches of an iterable dataset in its order, on the device."""
    yield from map(to_device, DataLoader(data, batch_size, **options))


def to_device(data: Any) -> Any:
    """A nested batch with all its tensors on the device."""
    match data:
        case Mapping():
            return {name: to_device(value) for name, value in data.items()}
        case tuple() | list():
            return [to_device(value) for value in data]
    return data.to(device) if hasattr(data, "to") else data


def joined(batches: Iterator[Any]) -> Iterator[list[Any]]:
    """Batches of a loader in steps of several: their gradients add up to those of one larger batch."""
    while parts := list(islice(batches, ACCUMULATE)):
        yield parts


def micro_batches(batch: Any) -> Iterator[Any]:
    """A batch split into parts for gradient accumulation: the same gradient with less memory."""
    size = -(-count_samples(batch) // ACCUMULATE)
    if isinstance(batch, dict):
        parts = {name: value.split(size) for name, value in batch.items()}
        for values in zip(*parts.values(), strict=True):
            yield dict(zip(parts, values, strict=True))
    else:
        yield from zip(*(value.split(size) for value in batch), strict=True)


def count_samples(data: Any) -> int:
    """The samples in a batch: the length of its first tensor or list."""
    match data:
        case Mapping():
            return count_samples(next(iter(data.values())))
        case [Tensor() | Mapping() | tuple() | list() as first, *_]:
            return count_samples(first)
    return len(data)


def count(criterion: Any, batch: Any) -> Any:
    """The divisor of the batch's mean loss, if labels have weights or are ignored."""
    target = batch[LABEL] if isinstance(batch, dict) else batch[-1]
    labels = target[target != criterion.ignore_index]
    return labels.numel() if criterion.weight is None else criterion.weight[labels].sum().item()


# ---------------------------------------------------------------------- loss and validation


def compute(model: Any, criterion: Any, batch: Any) -> tuple[Any, Any]:
    """Loss and outputs of a batch."""
    if STEP is not None and YIELDS:
        losses: dict[str, list[Any]] = {}
        for name, yielded in STEP(model, criterion, batch):
            losses.setdefault(name, []).append(yielded)
        loss, outputs = sum(sum(each) / len(each) for each in losses.values()), None
    elif STEP is not None and STEP_OUTPUT:
        result = STEP(model, criterion, batch)
        loss, outputs, *_ = result
    elif STEP is not None:
        result = STEP(model, criterion, batch)
        loss, outputs = result if isinstance(result, tuple) else (result, None)
    elif criterion is None:
        outputs = model(**batch)
        loss = outputs.loss
        if hasattr(outputs, "logits"):
            outputs = outputs.logits
    elif isinstance(batch, dict):
        inputs = {name: value for name, value in batch.items() if name != LABEL}
        outputs = model(**inputs)
        if hasattr(outputs, "logits"):
            outputs = outputs.logits
        loss = criterion(outputs, batch[LABEL])
    else:
        *inputs, target = batch
        outputs = model(*inputs)
        if hasattr(outputs, "logits"):
            outputs = outputs.logits
        loss = criterion(outputs, target)
    return loss, outputs


@torch.no_grad()
def validate(model: nn.Module, criterion: Any, valid: Any) -> dict[str, float]:
    """The mean loss over all samples of the split, and its metrics."""
    model.eval()

    # The mean of batch means would be wrong, since the last batch may be smaller: sum up first, then divide.
    total, counted = 0.0, 0.0
    if METRICS:
        all_outputs, all_targets = [], []

    if isinstance(valid, tuple | dict):
        batches = from_memory(valid, VALID_BATCH_SIZE)
    elif isinstance(valid, IterableDataset):
        batches = from_stream(valid, VALID_BATCH_SIZE, **VALID_LOADER)
    else:
        batches = from_dataset(valid, VALID_BATCH_SIZE, **VALID_LOADER)
    for batch in batches:
        with autocast:
            loss, outputs = compute(model, criterion, batch)
        samples = count(criterion, batch) if WEIGHTED else count_samples(batch)
        if REDUCTION == "sum":
            total += loss.item()
        else:
            total += loss.item() * samples
        counted += samples
        if METRICS:
            all_outputs.append(outputs)
            all_targets.append(batch[LABEL] if isinstance(batch, dict) else batch[-1])

    values = {"valid_loss": total / counted}
    if METRICS:
        for name, metric in METRICS.items():
            values[name] = float(metric(torch.cat(all_outputs), torch.cat(all_targets)))
    return values


# ---------------------------------------------------------------------- training


def main() -> tuple[nn.Module, list[dict[str, float]]]:  # noqa: C901  in one piece, to be read from top to bottom
    """Train; the model, and a row of losses and metrics for each epoch."""
    train = made_up(101)
    valid = made_up(37)

    if FIRST_WEIGHTS is None:
        seed_all(SEED)  # so that a model created here has the same initial weights each time

    model: nn.Module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1)).double().to(device)
    if FIRST_WEIGHTS is not None:
        model.load_state_dict(torch.load(FIRST_WEIGHTS))
    if FROZEN:
        for name in FROZEN:
            model.get_parameter(name).requires_grad_(False)

    criterion: Any = nn.MSELoss()
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    optimizers: dict[str, Any] = {"main": optimizer}
    scheduler: Any = OneCycleLR(optimizer, max_lr=0.01, total_steps=EPOCHS * 7)
    batch_schedulers: list[Any] = [scheduler]
    epoch_schedulers: list[Any] = []
    loss_schedulers: list[Any] = []
    timm_schedulers: list[Any] = []
    if "timm" in SCHEDULES:
        updates = 0

    # Small gradients would be zero in fp16, so the loss is scaled up before backward; bf16 has the range of fp32.
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda") if PRECISION == "fp16" else None

    # Averaged weights vary less than those of the last step, so they are validated and saved.
    ema = None if EMA is None else get_ema_multi_avg_fn(EMA)  # type: ignore[no-untyped-call]
    average = None if EMA is None else AveragedModel(model, multi_avg_fn=ema, use_buffers=True)
    evaluated = model if average is None else average.module
    net = torch.compile(model) if COMPILE else model

    history = []
    if PATIENCE is not None:
        best, epochs_without_improvement = math.inf, 0

    for epoch in range(EPOCHS):
        seed = epoch_seed(epoch)
        seed_all(seed)
        model.train()
        if IN_EVAL_MODE:
            for name in IN_EVAL_MODE:
                model.get_submodule(name).eval()
        total, counted = 0.0, 0.0

        if isinstance(train, tuple | dict):
            batches = from_memory(train, BATCH_SIZE, seed)
        elif isinstance(train, IterableDataset):
            batches = from_stream(train, BATCH_SIZE, **TRAIN_LOADER)
        else:
            batches = from_dataset(train, BATCH_SIZE, seed if SHUFFLE else None, **TRAIN_LOADER)
        if JOINED:
            batches = joined(batches)
        for batch in batches:
            if ACCUMULATE > 1 and REDUCTION != "sum":
                if JOINED:
                    whole = sum(count(criterion, part) if WEIGHTED else count_samples(part) for part in batch)
                else:
                    whole = count(criterion, batch) if WEIGHTED else count_samples(batch)
            pieces = batch if JOINED else micro_batches(batch)
            if YIELDS:
                # Each loss belongs to one optimizer: zero the gradients, and step only its parameters.
                losses: dict[str, list[float]] = {}
                for name, loss in STEP(model, criterion, batch):  # type: ignore[misc]
                    model.zero_grad()
                    loss.backward()
                    own = [p for group in optimizers[name].param_groups for p in group["params"]]
                    if CLIP_VALUE is not None:
                        nn.utils.clip_grad_value_(own, CLIP_VALUE)
                    if CLIP_NORM is not None:
                        nn.utils.clip_grad_norm_(own, CLIP_NORM)
                    optimizers[name].step()
                    losses.setdefault(name, []).append(loss.item())
                total += sum(sum(each) / len(each) for each in losses.values()) * count_samples(batch)
                counted += count_samples(batch)
            elif CLOSURE:
                if JOINED:
                    samples = sum(count(criterion, part) if WEIGHTED else count_samples(part) for part in batch)
                else:
                    samples = count(criterion, batch) if WEIGHTED else count_samples(batch)

                def closure() -> Any:
                    optimizer.zero_grad()
                    step_loss = 0.0
                    pieces = batch if JOINED else micro_batches(batch)  # noqa: B023
                    for part in pieces:
                        with autocast:
                            loss, _ = compute(net, criterion, part)
                        if ACCUMULATE > 1 and REDUCTION != "sum":
                            share = count(criterion, part) if WEIGHTED else count_samples(part)
                            loss = loss * (share / samples)  # noqa: B023
                        loss.backward()
                        step_loss = step_loss + loss.detach()
                    return step_loss

                step_loss = optimizer.step(closure)
                if REDUCTION == "sum":
                    total += float(step_loss)
                else:
                    total += float(step_loss) * samples
                counted += samples
            else:
                for part in pieces:
                    with autocast:
                        loss, _ = compute(net, criterion, part)
                    samples = count(criterion, part) if WEIGHTED else count_samples(part)
                    if REDUCTION == "sum":
                        total += loss.item()
                    else:
                        total += loss.item() * samples
                    counted += samples

                    # Gradients accumulate until zero_grad: weighted by its samples, each mean adds up to the total.
                    if ACCUMULATE > 1 and REDUCTION != "sum":
                        loss = loss * (samples / whole)
                    if scaler is not None:
                        loss = scaler.scale(loss)
                    loss.backward()

                # Clipping needs unscaled gradients.
                if scaler is not None and (CLIP_VALUE is not None or CLIP_NORM is not None):
                    for opt in optimizers.values():
                        scaler.unscale_(opt)
                if CLIP_VALUE is not None:
                    nn.utils.clip_grad_value_(model.parameters(), CLIP_VALUE)
                if CLIP_NORM is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)

                if scaler is not None:
                    # A step whose scaled gradients overflowed is skipped, and the scale is reduced.
                    for opt in optimizers.values():
                        scaler.step(opt)
                    scaler.update()
                else:
                    for opt in optimizers.values():
                        opt.step()
                for opt in optimizers.values():
                    opt.zero_grad()

            if average is not None:
                average.update_parameters(model)
            if "batch" in SCHEDULES:
                for plan in batch_schedulers:
                    plan.step()
            if "timm" in SCHEDULES:
                updates += 1
                for plan in timm_schedulers:
                    plan.step_update(updates)

        values = {"epoch": epoch, "train_loss": total / counted}
        if valid is not None:
            values |= validate(evaluated, criterion, valid)
        history.append(values)
        print(values)

        if "loss" in SCHEDULES:
            for plan in loss_schedulers:
                plan.step(values[MONITOR])
        if "epoch" in SCHEDULES:
            for plan in epoch_schedulers:
                plan.step()
        if "timm" in SCHEDULES:
            for plan in timm_schedulers:
                plan.step(epoch + 1, values[MONITOR])

        if SAVE:
            DATA.mkdir(parents=True, exist_ok=True)
            path = DATA / f"state_dict_e{epoch}_{DATE}.pt"
            path.unlink(missing_ok=True)  # it may be a hard link to a file of a session, which must not be overwritten
            torch.save(evaluated.state_dict(), path)

        if PATIENCE is not None:
            if values[MONITOR] < best - MIN_DELTA:
                best, epochs_without_improvement = values[MONITOR], 0
            else:
                epochs_without_improvement += 1
            if epochs_without_improvement >= PATIENCE:
                break

    return model, history


if __name__ == "__main__":
    model, history = main()
