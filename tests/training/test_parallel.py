"""Ranks keep one model: both ways of making gradients equal against one rank in float64, and the proof that they do.

All checks run in one group of two processes that is started once: each is a function of a `World`.
"""

import multiprocessing
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness.plain import distance, network, numbers, regression
from torch import Tensor, nn, optim
from torch.utils.checkpoint import checkpoint

from quik_nb.errors import WorkerError
from quik_nb.recipe.settings import Settings
from quik_nb.training.commands import LocalCommands
from quik_nb.training.data.batch import shard_batch
from quik_nb.training.job import Job
from quik_nb.training.parallel import Agreement, AroundTheStep, ByHooks, OneRank, checksum, parallel
from quik_nb.training.rank import run_rank
from quik_nb.training.world import World

EXACT = 1e-12
BATCH = 10
X, Y = numbers(40)


class Net(nn.Module):
    """Two linear layers, one that may take no part, and a method beside forward."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.body, self.head, self.other = nn.Linear(5, 8), nn.Linear(8, 1), nn.Linear(8, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x))) + 0.0 * self.other(torch.tanh(self.body(x)))  # type: ignore[no-any-return]

    def score(self, x: Tensor) -> Tensor:
        """Not through forward."""
        return self.head(torch.tanh(self.body(x))) + self.other(torch.tanh(self.body(x)))  # type: ignore[no-any-return]


class Rows(nn.Module):
    """Embeddings with sparse gradients, one of which takes no part."""

    def __init__(self, used: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.rows = nn.Embedding(6, 1, sparse=True).double()
            self.spare = nn.Embedding(6, 1, sparse=True).double()
        self.spare.requires_grad_(used)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows((x[:, 0] > 0).long() + (x[:, 1] > 0).long())  # type: ignore[no-any-return]


def error(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(x), y)


def by_method(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(model.score(x), y)


def by_submodules(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(model.head(model.body(x).relu()) + model.other(model.body(x)), y)


def with_penalty(model: Any, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    outputs = model.score(x)
    (slopes,) = torch.autograd.grad(outputs.sum(), x, create_graph=True)
    return nn.functional.mse_loss(outputs, y) + slopes.square().sum(1).mean()


def several_forwards(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(x) - model(-x), y) + model(x + 1).square().mean()


def recomputed(model: Any, x: Tensor, y: Tensor) -> Tensor:
    hidden = checkpoint(model.body, x, use_reentrant=False)
    return nn.functional.mse_loss(checkpoint(model.head, hidden.tanh(), use_reentrant=False) + model.other(hidden), y)


def recomputed_reentrant(model: Any, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    hidden = checkpoint(model.body, x, use_reentrant=True)
    return nn.functional.mse_loss(checkpoint(model.head, hidden.tanh(), use_reentrant=True) + model.other(hidden), y)


def unused(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(model.head(model.body(x).tanh()), y)


def unused_on_some(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """The last layer takes part only where the first input is large: on one rank and not on the other."""
    hidden = model.body(x).tanh()
    chosen = x[:, 0] > 1.0
    loss = nn.functional.mse_loss(model.head(hidden), y)
    if chosen.any():
        loss = loss + (model.other(hidden[chosen])).square().sum() / len(x)
    return loss


@dataclass(frozen=True)
class Case:
    """What is done in a step, and how it is trained."""

    step: Callable[..., Tensor]
    model: Callable[[], nn.Module] = Net
    parts: int = 1
    """micro-batches per step"""
    backwards: int = 1
    """backward passes of each loss"""
    clip: float | None = None
    find_unused: bool = False
    hooks_only: bool = False
    """whether DistributedDataParallel cannot do it"""


CASES = {
    "forward": Case(error),
    "methods of the model": Case(by_method),
    "submodules called directly": Case(by_submodules),
    "double backward": Case(with_penalty),
    "several forwards": Case(several_forwards),
    "checkpointing": Case(recomputed),
    "reentrant checkpointing": Case(recomputed_reentrant, hooks_only=True),
    "unused parameters": Case(unused, find_unused=True),
    "parameters unused on a rank": Case(unused_on_some, find_unused=True),
    "sparse parameters": Case(error, lambda: Rows(used=False)),
    "sparse parameters, one unused": Case(error, Rows, find_unused=True, hooks_only=True),
    "clipping": Case(by_method, clip=0.1),
    "accumulate": Case(by_method, parts=2),
    "two backward passes of a step": Case(by_method, backwards=2, hooks_only=True),
}

WAYS: dict[str, Callable[..., OneRank]] = {
    "around the step": AroundTheStep,
    "by hooks": lambda model, step, world, find_unused: ByHooks(model, step, world, "it is a test"),
}


def trained(case: Case, world: World, way: Callable[..., OneRank]) -> dict[str, Tensor]:
    """The weights after some steps, as a loop by hand makes them with gradients that are averaged over ranks."""
    model = case.model()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    together = way(model, case.step, world, case.find_unused)
    for start in range(0, len(X), BATCH):
        for shard in shard_batch(start, start + BATCH, world, case.parts):
            together.sync_gradients(shard.last)
            loss = together(X[shard.start : shard.stop], Y[shard.start : shard.stop])
            loss = loss * (shard.samples * world.world_size / shard.total)
            for i in range(case.backwards):
                (loss / case.backwards).backward(retain_graph=i + 1 < case.backwards)  # type: ignore[no-untyped-call]
        if case.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), case.clip)
        optimizer.step()
        optimizer.zero_grad()
    together.close()
    return model.state_dict()


# ---------------------------------------------------------------------- checks that run on each rank


def drifting(world: World) -> str:
    """What is said where the weights of a rank have moved away from those of the others."""
    model = Net()
    agreement = Agreement(model, world, Ticks())
    with torch.no_grad():
        model.head.weight[0, 3] += 0.01 * world.rank
    return said_by(agreement, world)


def rounding(world: World) -> str:
    """What is said of a difference in the last bits."""
    model = Net()
    agreement = Agreement(model, world, Ticks())
    with torch.no_grad():
        model.head.weight *= 1.0 + 1e-15 * world.rank
    assert checksum(model) != checksum(Net()) or world.rank == 0
    return said_by(agreement, world)


def not_a_number(world: World) -> str:
    """What is said where all ranks have the same weights that are no numbers."""
    model = Net()
    agreement = Agreement(model, world, Ticks())
    with torch.no_grad():
        model.head.bias.fill_(torch.nan)
    return said_by(agreement, world)


def said_by(agreement: Agreement, world: World) -> str:
    words = torch.tensor(agreement.words(is_last=True), dtype=torch.float64)
    try:
        agreement.check(world.sum(words).tolist())
    except WorkerError as error:
        return str(error)
    return ""


class Ticks:
    """A clock by which everything takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def collectives(world: World) -> dict[str, float]:
    """How often the ranks speak with each other in an epoch, beside the gradients, by the function of torch."""
    counted = []
    for epochs in (1, 3):
        recipe = regression(model=network(), epochs=epochs, batch_size=50)._recipe
        with counting() as calls:
            run_rank(Job(recipe, epochs, "here"), world, LocalCommands(), None, lambda event: None)
        counted.append(calls)
    return {name: (counted[1][name] - counted[0][name]) / 2 for name in counted[1] if counted[1][name]}


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Counts calls of the functions by which ranks communicate."""
    names = ("all_reduce", "broadcast", "all_gather", "all_gather_object", "broadcast_object_list", "barrier", "reduce")
    originals = {name: getattr(dist, name) for name in names}
    calls: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            calls[name] += 1
            return originals[name](*args, **keywords)

        return call

    for name in names:
        setattr(dist, name, counted(name))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def ways_taken(world: World) -> list[str]:
    """Which way is taken for a plain model, for a loop of one's own, and for sparse parameters that may be unused."""
    settings = Settings(find_unused_parameters=True)
    chosen = [
        parallel(Net(), error, world, settings),
        parallel(Net(), error, world, settings, by_hooks="the loop is your own"),
        parallel(Rows(), error, world, settings),
    ]
    return [type(each).__name__ for each in chosen]


CHECKS: dict[str, Callable[[World], Any]] = {
    **{
        f"{name}, {way}": lambda world, case=case, make=make: trained(case, world, make)  # type: ignore[misc]
        for name, case in CASES.items()
        for way, make in WAYS.items()
        if way == "by hooks" or not case.hooks_only
    },
    "drifting": drifting,
    "rounding": rounding,
    "not a number": not_a_number,
    "collectives": collectives,
    "ways taken": ways_taken,
}


# ---------------------------------------------------------------------- the group


def run_checks(rank: int, folder: Path) -> None:
    """One rank: all checks in order, and what they gave in a file."""
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of DistributedDataParallel, about speed
    torch.set_num_threads(1)  # or a forked process hangs in its first parallel operation
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    world, results = World(rank, 2), {}
    for name, check in CHECKS.items():
        try:
            results[name] = check(world)
        except Exception:
            results[name] = traceback.format_exc()
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each check gave, by rank."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=run_checks, args=(rank, folder)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=300)
    assert [0, 0] == [process.exitcode for process in ranks]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one(results: list[dict[str, Any]], name: str, way: str) -> None:
    """Whatever a step does, by either way two ranks end with the weights of one."""
    case = CASES[name]
    if case.hooks_only and way != "by hooks":
        pytest.skip("DistributedDataParallel cannot do it, so the other way is taken")
    alone = trained(case, World(), lambda model, step, world, find_unused: OneRank(model, step, world))
    for rank in range(2):
        weights = results[rank][f"{name}, {way}"]
        assert not isinstance(weights, str), weights
        assert distance(alone, weights) <= EXACT


def test_a_rank_that_drifts_is_named(results: list[dict[str, Any]]) -> None:
    """The parameter that differs, by how much, and what does such things are said on all ranks."""
    for each in results:
        assert "head.weight differs by" in each["drifting"]
        assert "Use the same update on all ranks" in each["drifting"]


def test_rounding_and_nan_are_no_drift(results: list[dict[str, Any]]) -> None:
    """Ranks may differ in the last bits, and may all have weights that are no numbers."""
    assert ["", ""] == [each["rounding"] for each in results]
    assert ["", ""] == [each["not a number"] for each in results]


def test_the_proof_costs_no_further_message(results: list[dict[str, Any]]) -> None:
    """An epoch has the messages for its losses, its validation and the question for a stop; the proof rides on them."""
    assert [{"all_reduce": 3.0}] * 2 == [each["collectives"] for each in results]


def test_which_parallel_mode_is_chosen(results: list[dict[str, Any]]) -> None:
    """DistributedDataParallel where it is right, and hooks where it would not be."""
    assert [["AroundTheStep", "ByHooks", "ByHooks"]] * 2 == [each["ways taken"] for each in results]
    assert "OneRank" == type(parallel(Net(), error, World(), Settings())).__name__
