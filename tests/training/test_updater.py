"""Averaged weights, frozen parameters, parameter groups, early stopping, compile, precision, files of the best."""

from copy import deepcopy
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from harness.plain import distance, network, numbers, plain_loop, regression
from torch import nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from quik_nb import RecipeError, StopTraining
from quik_nb.events import EpochEnd
from quik_nb.training.data.batch import Batch
from quik_nb.training.engine import compile_in_place
from quik_nb.training.precision import Autocast
from quik_nb.training.updater import GradientWeights
from quik_nb.training.world import World


def test_average_is_torch_own() -> None:
    """With ema the model held is torch's average over the steps of the plain loop."""
    by_hand = network()
    average = AveragedModel(by_hand, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # type: ignore[no-untyped-call]
    optimizer = optim.SGD(by_hand.parameters(), lr=0.1)
    step = lambda: average.update_parameters(by_hand)  # noqa: E731
    plain_loop(by_hand, numbers(), nn.MSELoss(), optimizer, epochs=2, after_step=step)
    session = regression(epochs=2, lr=0.1, ema=0.9)
    session.train()

    assert distance(average.module, session.model) <= 1e-12
    assert session.evaluate("valid")["loss"] == pytest.approx(session.history.valid_loss[1])


@pytest.mark.parametrize("processes", [1, 2])
def test_average_continues(processes: int) -> None:
    """Two and two epochs with averaged weights equal four, also across modes."""
    four, parts = regression(epochs=4, ema=0.9), regression(epochs=4, ema=0.9)
    four.train()
    parts.train(2)
    parts.train(2, processes=processes)

    assert distance(four.model, parts.model) <= 1e-12


def test_average_of_loaded_weights() -> None:
    """Weights that were loaded by hand are what an average goes on from, not the ones behind the old average."""
    session = regression(epochs=1, ema=0.9)
    session.train()
    session.model.load_state_dict(network().state_dict())
    session.train(lr=1e-9)

    assert distance(network(), session.model) <= 1e-6


def test_frozen_parameters_stay() -> None:
    """What a pattern freezes keeps its weights, the rest is trained, and the model is given back as it was."""
    session = regression(epochs=2, freeze="0, *.bias")
    before = deepcopy(session.model.state_dict())
    session.train()
    after = session.model.state_dict()

    assert {"3.weight"} == {name for name in before if not torch.equal(before[name], after[name])}
    assert [True] * 4 == [p.requires_grad for p in session.model.parameters()]


def test_groups_of_parameters() -> None:
    """Groups get their own keywords, as torch's parameter groups would."""
    by_hand = network()
    groups = [{"params": by_hand[0].parameters()}, {"params": by_hand[3].parameters(), "lr": 0.2}]  # type: ignore[index]
    plain_loop(by_hand, numbers(), nn.MSELoss(), optim.SGD(groups, lr=0.01), epochs=2)
    session = regression(epochs=2, lr=0.01).set_optimizer(optim.SGD, groups={"3": {"lr": 0.2}})
    session.train()

    assert distance(by_hand, session.model) <= 1e-12
    assert "3: {'lr': 0.2}" in repr(session)


@pytest.mark.parametrize("wrong", [{"freeze": "hed"}, {"groups": {"hed": {"lr": 1.0}}}])
def test_pattern_that_fits_nothing(wrong: dict[str, Any]) -> None:
    """A pattern that fits no parameter is an error with the near name."""
    model = nn.Sequential()
    model.add_module("head", network())
    session = regression(model, **{k: v for k, v in wrong.items() if k == "freeze"})
    if "groups" in wrong:
        session.set_optimizer(optim.SGD, **wrong)
    with pytest.raises(RecipeError, match="did you mean 'head"):
        session.train()


@pytest.mark.parametrize("processes", [1, 2])
def test_patience_ends_the_training(processes: int) -> None:
    """After `patience` epochs without a loss better by `min_delta`, the run is finished and says why."""
    session = regression(epochs=9, patience=2, min_delta=100.0)
    ends: list[Any] = []
    run = session.on("run_end", ends.append).train(processes=processes)

    assert "finished" == run.state
    assert [0, 1, 2] == list(session.history.epoch)
    best = session.history.valid_loss.min()
    assert [f"no better valid_loss for 2 epochs; the best is epoch 2 with {best:.4g}"] == [end.reason for end in ends]


def test_callbacks_get_plain_events() -> None:
    """A function is called with each event of its kind; raising StopTraining ends the run as the button would."""
    seen: list[EpochEnd] = []

    def watch(event: EpochEnd) -> None:
        seen.append(event)
        if event.row.epoch == 1:
            raise StopTraining

    run = regression(epochs=5).on("epoch_end", watch).train()

    assert "stopped" == run.state
    assert [0, 1] == [event.row.epoch for event in seen]
    with pytest.raises(RecipeError, match="did you mean 'epoch_end'"):
        regression().on("epochend", watch)


def test_compiled_model_gives_the_same_numbers() -> None:
    """A compiler changes the speed at most: here one that hands the model back as it is."""
    session, plain = regression(epochs=2), regression(epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda call: call)
        session.train(compile=True)
    plain.train()

    assert 0.0 == distance(plain.model, session.model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while its compiler is imported
def test_compiled_by_torch() -> None:
    """torch.compile's own code trains to the same weights, up to rounding."""
    session, plain = regression(epochs=1, compile=True), regression(epochs=1)
    session.train()
    plain.train()

    assert distance(plain.model, session.model) <= 1e-6


def test_compiler_that_fails_is_left_aside() -> None:
    """Where the compiler fails, training goes on without it and says so once."""
    from torch._dynamo.exc import TorchDynamoException

    notes: list[tuple[str, str]] = []
    net = network()

    def broken(*args: Any) -> None:
        raise TorchDynamoException("no compiler here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda call: broken)
        undo = compile_in_place(net, lambda *note: notes.append(note))
    x, _ = numbers()
    assert torch.equal(network()(x), net(x))
    assert torch.equal(network()(x), net(x))
    undo()
    told = ("compile failed", "torch.compile failed (no compiler here); training goes on without it.")
    assert [told] == notes


@pytest.mark.parametrize("processes", [1, 2])
def test_bf16_on_the_cpu(processes: int) -> None:
    """A model that knows nothing of it trains in bfloat16, and its weights stay in float32."""
    session = regression(network(dtype=torch.float32), epochs=2, lr=0.05, precision="bf16")
    session.add_data(train=numbers(dtype=torch.float32), valid=numbers(37, dtype=torch.float32))
    session.train(processes=processes)
    full = regression(network(dtype=torch.float32), epochs=2, lr=0.05)
    full.add_data(train=numbers(dtype=torch.float32), valid=numbers(37, dtype=torch.float32)).train()

    assert {torch.float32} == {p.dtype for p in session.model.parameters()}
    assert list(full.history.train_loss) == pytest.approx(list(session.history.train_loss), rel=0.05)
    assert list(full.history.train_loss) != list(session.history.train_loss)


@pytest.mark.parametrize("processes", [1, 2])
def test_norm_is_recorded(processes: int) -> None:
    """With clip_norm the history has the mean over each epoch's steps of the gradients' norm before it is clipped."""
    by_hand, norms = network(), []
    clip = lambda: norms.append(nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0).item())  # noqa: E731
    optimizer = optim.SGD(by_hand.parameters(), lr=0.1)
    plain_loop(by_hand, numbers(), nn.MSELoss(), optimizer, epochs=2, after_backward=clip)
    steps = len(norms) // 2
    session = regression(epochs=2, lr=0.1, clip_norm=1.0)
    session.train(processes=processes)

    assert min(norms) < 1.0 < max(norms)  # so that some are clipped
    assert [fmean(norms[:steps]), fmean(norms[steps:])] == pytest.approx(list(session.history.grad_norm), rel=1e-9)
    assert distance(by_hand, session.model) <= 1e-12


@pytest.mark.parametrize("processes", [1, 2])
def test_metrics_on_the_training_split(processes: int) -> None:
    """With train=True a metric is measured on the training batches too, over all ranks at once."""
    session = regression(epochs=1, lr=1e-9)
    session.set_metrics(worst=lambda outputs, targets: (outputs - targets).abs().max(), train=True)
    session.train(processes=processes)
    x, y = numbers()
    worst = (network()(x) - y).abs().max().item()

    assert worst == pytest.approx(session.history.train_worst[0], abs=1e-6)


def test_files_of_the_best_stay(tmp_path: Path) -> None:
    """keep="best:2" leaves the files of the two best epochs."""
    session = regression(epochs=5, lr=0.05, save=True, keep="best:2", base_dir=tmp_path, data_date="20210101")
    session.train()
    best = session.history.sort_values("valid_loss").epoch[:2]
    names = {path.name for path in (tmp_path / "data").glob("state_dict_e[0-9]*")}

    assert {f"state_dict_e{epoch}_20210101.pt" for epoch in best} == names


@pytest.mark.parametrize("processes", [1, 2])
def test_checkpoint_within_an_epoch(tmp_path: Path, processes: int) -> None:
    """Every `checkpoint_minutes` the whole state is written, also in the midst of an epoch, and changes no number."""
    from quik_nb.storage.checkpointer import read_checkpoint

    steps: list[int] = []

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            import time

            time.sleep(0.02 * self.training)
            return self.net(x)  # type: ignore[no-any-return]

    session = regression(Slow(), samples=400, epochs=1, save=True, base_dir=tmp_path, checkpoint_minutes=1e-4)

    def look(event: Any) -> None:
        assert session.folder is not None
        if (session.folder / "checkpoint.pt").exists():
            steps.append(read_checkpoint(session.folder)[1].step)

    session.on("step_end", look).train(processes=processes)
    plain = regression(Slow(), samples=400, epochs=1)
    plain.train()

    assert any(step > 0 for step in steps)
    assert distance(plain.model, session.model) <= 1e-12


# ---------------------------------------------------------------------- the weight of a loss in the gradient

FOUR, TWO, NONE = Batch(None, 4, 6), Batch(None, 2, 6), Batch(None, 0, 6)


@pytest.mark.parametrize(
    ("batches", "counts", "reduction", "in_parts", "slope"),
    [
        ([(FOUR, 1.0), (TWO, 4.0)], [None, None], "mean", True, (4 * 1.0 + 2 * 4.0) / 6),
        ([(FOUR, 1.0), (TWO, 4.0)], [10, 5], "mean", True, (10 * 1.0 + 5 * 4.0) / 15),
        ([(FOUR, 3.0)], [10], "mean", False, 3.0),
        ([(FOUR, 1.0), (TWO, 4.0)], [None, None], "sum", True, 5.0),
        ([(FOUR, 1.0), (TWO, 4.0)], [10, 5], "sum", True, 5.0),
        ([(FOUR, 1.0), (NONE, 9.0)], [None, None], "mean", True, 4 * 1.0 / 6),
        ([(FOUR, 1.0), (NONE, 9.0)], [10, 7], "mean", True, 1.0),
        ([(FOUR, 1.0), (NONE, 9.0)], [None, None], "sum", True, 1.0),
    ],
)
def test_weights_of_micro_batches(
    batches: list[tuple[Batch, float]], counts: list[int | None], reduction: str, in_parts: bool, slope: float
) -> None:
    """The gradient of a step by the table of `GradientWeights`, for losses of known slope."""
    parameter = nn.Parameter(torch.zeros((), dtype=torch.float64))
    weights = GradientWeights(World(), in_parts)
    for (batch, of_loss), count in zip(batches, counts, strict=True):
        counted = None if count is None else torch.tensor(float(count))
        weights.weigh(parameter * of_loss, batch, counted, reduction).backward()  # type: ignore[no-untyped-call]
    weights.divide([parameter])

    assert parameter.grad is not None
    assert slope == pytest.approx(parameter.grad.item(), abs=1e-12)


@pytest.mark.parametrize("ranks", [2, 3])
def test_weights_are_multiplied_by_the_ranks(ranks: int) -> None:
    """As gradients are averaged over ranks, each adds its share as many times."""
    weights = GradientWeights(World(0, ranks), in_parts=True)
    loss = torch.tensor(6.0)

    assert 6.0 * 4 * ranks / 6 == pytest.approx(weights.weigh(loss, FOUR, None, "mean").item())
    assert 6.0 * 10 * ranks == pytest.approx(weights.weigh(loss, FOUR, torch.tensor(10.0), "mean").item())
    assert 6.0 * ranks == pytest.approx(weights.weigh(loss, FOUR, None, "sum").item())


def test_a_loss_that_is_the_whole_step_is_left_as_it_is() -> None:
    """Without parts there is nothing to weigh, so the graph has no further node."""
    loss = torch.tensor(6.0)

    assert loss is GradientWeights(World(), in_parts=False).weigh(loss, Batch(None, 6, 6), None, "mean")


def test_weights_start_again_with_each_step() -> None:
    """The counts of a step are no part of the next."""
    parameter = nn.Parameter(torch.zeros(()))
    weights = GradientWeights(World(), in_parts=True)
    for _ in range(2):
        parameter.grad = None
        weights.weigh(parameter * 3.0, FOUR, torch.tensor(10.0), "mean").backward()  # type: ignore[no-untyped-call]
        weights.divide([parameter])
        assert 3.0 == pytest.approx(float(parameter.grad))  # type: ignore[arg-type]


def test_autocast_within_autocast() -> None:
    """A loop that enters autocast around a step that does so too leaves it as it was, also through an error."""
    autocast = Autocast(torch.device("cpu"), "bf16")
    x = torch.ones(2, 2)
    with autocast:
        with autocast:
            assert torch.bfloat16 == (x @ x).dtype
        assert torch.bfloat16 == (x @ x).dtype
        with pytest.raises(KeyError), autocast:
            raise KeyError
        assert torch.bfloat16 == (x @ x).dtype

    assert not torch.is_autocast_enabled("cpu")
    with Autocast(torch.device("cpu"), "fp32"):
        assert torch.float32 == (x @ x).dtype
