"""How the ranks of a training keep one model: equal gradients, equal buffers, one full state, and a proof of it.

There are two ways to make gradients equal, behind one face:

- `AroundTheStep`: DistributedDataParallel with the whole step inside its forward, so that methods and attributes of the
  model work in it as on one rank. It overlaps communication with the backward pass, and is right where a step has one
  backward pass.
- `ByHooks`: gradients are averaged when a backward pass ends, whichever way it came about: loops of the user's own,
  several backward passes for one step, forwards that no wrapper sees.

`OneRank` is the same face without any communication. All that knows DistributedDataParallel is in this file.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from quik_nb.errors import RecipeError, WorkerError
from quik_nb.recipe.settings import Settings
from quik_nb.training.world import World

ROUNDING = 1e-6
"""Relative difference of a parameter between two ranks that is taken for rounding."""

AGREEMENT_SHARE = 0.01
"""Part of an epoch's time that the proof of agreement may take."""

CHECKSUM_BYTES = 2**22
"""Of a parameter on a GPU that are summed up at once."""

StepFunction = Callable[..., Any]
"""`step(model, *what the engine passes)`, as the forward step of the recipe is."""


class OneRank:
    """A training of one rank: the step is called as it is, and there is nobody to agree with.

    Args:
        model: the module that is trained, on its device.
        step: what is done with a batch, called with the model first.
        world: this rank among the others.
    """

    reason = ""
    """how gradients are made equal, and why in this way"""

    def __init__(self, model: nn.Module, step: StepFunction, world: World) -> None:
        self.model = model
        self.step = step
        self.world = world

    def __call__(self, *args: Any) -> Any:
        """Do the step with the user's own module."""
        return self.step(self.model, *args)

    def sync_gradients(self, wanted: bool) -> None:
        """Say before a forward pass whether its gradients complete those of an optimizer step."""

    def sync_buffers(self) -> None:
        """Give all ranks the buffers of rank 0, such as batch statistics (all ranks participate)."""

    def state_dict(self, module: nn.Module) -> dict[str, Any]:
        """The full state of a module (all ranks participate; only rank 0 writes it)."""
        return module.state_dict()

    def include(self, parameters: Iterable[nn.Parameter]) -> None:
        """Keep further parameters equal on all ranks, such as those of a critic (all ranks participate)."""

    def close(self) -> None:
        """Give the model back as it was."""


class _Ranks(OneRank):
    """What both ways share."""

    def sync_buffers(self) -> None:
        for buffer in self.model.buffers():
            dist.broadcast(buffer, src=0)


class AroundTheStep(_Ranks):
    """DistributedDataParallel around the whole step.

    Args:
        model, step, world: as of `OneRank`.
        find_unused: whether some parameters may take no part in a loss.
    """

    reason = "gradients are averaged by DistributedDataParallel around the step, which has one backward pass"

    def __init__(self, model: nn.Module, step: StepFunction, world: World, find_unused: bool) -> None:
        super().__init__(model, step, world)
        self.wrapper = DistributedDataParallel(_WholeStep(model, step), find_unused_parameters=find_unused)

    def __call__(self, *args: Any) -> Any:
        return self.wrapper(*args)

    def sync_gradients(self, wanted: bool) -> None:
        self.wrapper.require_backward_grad_sync = wanted  # as no_sync() does


class _WholeStep(nn.Module):
    """A step as a module, for DistributedDataParallel to wrap: its parameters are those of the model."""

    def __init__(self, model: nn.Module, step: StepFunction) -> None:
        super().__init__()
        self.model = model
        self.step = step

    def forward(self, *args: Any) -> Any:
        return self.step(self.model, *args)


class ByHooks(_Ranks):
    """Gradients are averaged whenever a backward pass ends.

    A hook on each parameter notes which of them a pass has reached. When it ends, one all-reduce averages their
    gradients; its last words say which parameters were reached on any rank, as an optimizer leaves out those without a
    gradient. Averaging, rather than adding up, does no harm where it is done twice for one step.

    Args:
        model, step, world: as of `OneRank`.
        reason: why this way was taken.
    """

    def __init__(self, model: nn.Module, step: StepFunction, world: World, reason: str) -> None:
        super().__init__(model, step, world)
        self.reason = f"gradients are averaged by hooks, since {reason}"
        self._complete = True
        self._waiting = False
        self._reached: set[nn.Parameter] = set()

        for buffer in model.buffers():
            dist.broadcast(buffer.detach(), src=0)
        self._known: dict[nn.Parameter, None] = {}
        """all parameters that are kept equal, in an order that is the same on all ranks"""
        self._handles: list[Any] = []
        self._sparse: list[nn.Parameter] = []
        self._dense: list[list[nn.Parameter]] = []
        self.include(model.parameters())

    def include(self, parameters: Iterable[nn.Parameter]) -> None:
        new = [parameter for parameter in parameters if parameter not in self._known]
        for parameter in new:
            dist.broadcast(parameter.detach(), src=0)
        self._known.update(dict.fromkeys(new))

        hook: Any = self._note
        trained = [p for p in new if p.requires_grad]
        self._handles += [p.register_post_accumulate_grad_hook(hook) for p in trained]  # type: ignore[no-untyped-call]

        sparse = sparse_parameters(self.model)
        all_trained = [p for p in self._known if p.requires_grad]
        self._sparse = [p for p in all_trained if p in sparse]
        self._dense = grouped_by_dtype(p for p in all_trained if p not in sparse)

    def __call__(self, *args: Any) -> Any:
        self.sync_buffers()
        return super().__call__(*args)

    def sync_gradients(self, wanted: bool) -> None:
        self._complete = wanted

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, parameter: Tensor) -> None:
        """Called in the backward pass for each parameter whose gradient is complete."""
        self._reached.add(parameter)  # type: ignore[arg-type]
        if self._complete and not self._waiting:
            self._waiting = True
            torch.autograd.Variable._execution_engine.queue_callback(self._average)

    def _average(self) -> None:
        """Average the gradients of all that this step has reached (all ranks participate)."""
        self._waiting = False
        for parameters in self._dense:
            self._average_dense(parameters)
        for parameter in self._sparse:
            self._average_sparse(parameter)
        self._reached.clear()

    def _average_dense(self, parameters: list[nn.Parameter]) -> None:
        like = parameters[0]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        reached = torch.tensor([float(p in self._reached) for p in parameters], dtype=like.dtype, device=like.device)

        buffer = torch.cat([*(gradient.flatten() for gradient in gradients), reached])
        dist.all_reduce(buffer)

        sizes = [p.numel() for p in parameters]
        averages = torch.split(buffer[: -len(parameters)].div_(self.world.world_size), sizes)
        anywhere = buffer[-len(parameters) :].tolist()
        for parameter, gradient, average, count in zip(parameters, gradients, averages, anywhere, strict=True):
            if count:
                parameter.grad = gradient.copy_(average.view_as(gradient))

    def _average_sparse(self, parameter: nn.Parameter) -> None:
        gradient = parameter.grad
        if gradient is None:
            empty = torch.zeros((1, 0), dtype=torch.int64, device=parameter.device)
            nothing = parameter.new_zeros(0, *parameter.shape[1:])
            gradient = torch.sparse_coo_tensor(empty, nothing, parameter.shape, check_invariants=False)
        gradient = gradient.coalesce()
        dist.all_reduce(gradient)
        if gradient._nnz():
            parameter.grad = gradient / self.world.world_size


def parallel(model: nn.Module, step: StepFunction, world: World, settings: Settings, by_hooks: str = "") -> OneRank:
    """The way in which the ranks of this world keep one model.

    Args:
        model: on its device.
        step: what is done with a batch.
        world: this rank among the others.
        settings: of the training.
        by_hooks: why gradients cannot be made equal around the step; empty where they can.

    Raises:
        RecipeError: `sync_batchnorm` on a CPU.
    """
    if world.world_size == 1:
        return OneRank(model, step, world)

    if settings.sync_batchnorm:
        if world.device.type == "cpu":
            raise RecipeError(
                "sync_batchnorm=True was asked for, and PyTorch synchronises batch statistics on GPUs only: leave it "
                "out on the CPU, where each rank normalises by its own part of the batch, or use nn.GroupNorm."
            )
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]

    # an unused one of those is an error of DistributedDataParallel
    if settings.find_unused_parameters and sparse_parameters(model):
        by_hooks = by_hooks or "embeddings with sparse gradients may take no part in a loss"
    if by_hooks:
        return ByHooks(model, step, world, by_hooks)
    return AroundTheStep(model, step, world, settings.find_unused_parameters)


def sparse_parameters(model: nn.Module) -> set[Tensor]:
    """The parameters whose gradients are sparse: those of embeddings that were made with `sparse=True`."""
    modules = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse]
    return {module.weight for module in modules}


def grouped_by_dtype(parameters: Iterator[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters that can share a buffer, in an order that is the same on all ranks."""
    groups: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    return list(groups.values())


class Agreement:
    """The proof, at an epoch's end, that all ranks hold the same model.

    Each rank has a slot for its checksum in the message that adds up the losses, so that it costs no further one. Rank
    0 says in one more word for how many epochs the proof is left out, where it would take more than `AGREEMENT_SHARE`
    of their time.

    Args:
        model: whose trained parameters are compared.
        world: this rank among the others.
        clock: gives seconds.
    """

    def __init__(self, model: nn.Module, world: World, clock: Callable[[], float]) -> None:
        self.model = model
        self.world = world
        self.clock = clock
        self._epochs_to_wait = 0
        self._epoch_began = clock()
        self._checked = False

    def words(self, is_last: bool) -> list[float]:
        """What this rank adds to the message of sums.

        Args:
            is_last: whether this is the last epoch, which is always checked.
        """
        if self.world.world_size == 1:
            return []
        words = [0.0] * (self.world.world_size + 1)
        self._checked = is_last or self._epochs_to_wait == 0
        if not self._checked:
            self._epochs_to_wait -= 1
            return words

        before = self.clock()
        words[self.world.rank] = float(checksum(self.model))
        now = self.clock()
        if self.world.is_logger:
            allowed = AGREEMENT_SHARE * max(now - self._epoch_began, 1e-9)
            words[-1] = float(int((now - before) / allowed))
        self._epoch_began = now
        return words

    def check(self, words: list[float]) -> None:
        """Compare what the ranks sent (all ranks participate).

        Raises:
            WorkerError: they no longer hold the same model.
        """
        if not words or not self._checked:
            return
        *checksums, wait = words
        self._epochs_to_wait = int(wait)
        if len(set(checksums)) > 1:
            check_that_ranks_agree(self.model, self.world)


def checksum(model: nn.Module) -> int:
    """A number of 32 bits that tells whether two ranks have the same trained parameters, bit for bit.

    On the CPU it is the CRC32 of their bytes; on a GPU a sum of their bits weighted by position, modulo 2**32. Plain
    sums would miss rows that changed places.

    >>> checksum(nn.Linear(2, 1)) == checksum(nn.Linear(2, 1))
    False
    """
    total = 0
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        values = parameter.detach().contiguous().flatten().view(torch.uint8)
        if values.device.type == "cpu":
            total = zlib.crc32(values.numpy().data, total)
        else:
            # in pieces, as the weights take eight bytes for each byte of the parameter
            for piece in torch.split(values, CHECKSUM_BYTES):
                weights = torch.arange(1, len(piece) + 1, device=piece.device)
                total = (31 * total + int((piece * weights).sum())) % 2**32
    return total


def check_that_ranks_agree(model: nn.Module, world: World) -> None:
    """Compare the trained parameters of all ranks one by one (all ranks participate).

    Raises:
        WorkerError: one differs by more than rounding; the message names it.
    """
    worst, name_of_worst = 0.0, ""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        first = parameter.detach().clone()
        dist.broadcast(first, src=0)
        difference = relative_difference(first, parameter.detach())
        largest = torch.tensor(
            difference, dtype=torch.float64, device="cpu" if world.device.type == "cpu" else world.device
        )
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        if largest.item() > worst:
            worst, name_of_worst = largest.item(), name

    if worst > ROUNDING:
        raise WorkerError(
            f"The ranks no longer hold the same model: {name_of_worst} differs by {worst:.1e} of its size. Something "
            f"changes weights on one rank only, such as random numbers, an optimizer that is not told to the session, "
            f"or a branch on the rank. Use the same update on all ranks; the state of the last row is kept."
        )


def relative_difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors, relative to the larger one's largest element; NaN equals NaN."""
    both_nan = one.isnan() & other.isnan()
    difference = (one.double() - other.double()).abs().masked_fill(both_nan, 0.0)
    if difference.isnan().any():
        return float("inf")
    size = torch.maximum(one.abs().max(), other.abs().max()).double().nan_to_num(1.0)
    return float(difference.max() / size.clamp(min=1e-30)) if difference.numel() else 0.0
