"""What holds beyond one call of train(): unfinished epochs, folders picked up again, files kept, stops at an end."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.plain import SEED, distance, network, numbers, regression, weights
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler

from quik_nb import Loop, QuikSession, StopTraining
from quik_nb.training.boundary import HEARTBEAT_SECONDS
from quik_nb.training.rng import epoch_seed

DATE = "20210101"
STEPS = 7  # 101 samples in batches of 16


def saving(folder: Path, **settings: Any) -> QuikSession:
    """A session that writes into a folder."""
    return regression(**{"save": True, "base_dir": folder, "data_date": DATE, **settings})


def rows(session: QuikSession) -> list[tuple[Any, ...]]:
    """The history without its times, which are never equal."""
    return [tuple(row) for row in session.history.drop(columns="time").itertuples(index=False)]


def stopped_by(session: QuikSession, event: str, epochs: int | None = None) -> QuikSession:
    """The session, trained until a listener has heard of an event of this kind and stopped the run."""

    def enough(told: Any) -> None:
        raise StopTraining

    assert "stopped" == session.on(event, enough).train(epochs).state
    return session.off()


def stopped_within(session: QuikSession, epochs: int | None = None) -> QuikSession:
    """The session, stopped after some slow steps of an epoch, by a callback on `step_end`."""
    handle = session.model.register_forward_pre_hook(lambda model, inputs: time.sleep(1.5 * HEARTBEAT_SECONDS))
    stopped_by(session, "step_end", epochs)
    handle.remove()
    return session


# ---------------------------------------------------------------------- an unfinished epoch


def epoch_by_hand(
    model: nn.Module,
    optimizer: optim.Optimizer,
    size: int,
    epoch: int = 0,
    steps: int | None = None,
    schedule: lr_scheduler.LRScheduler | None = None,
) -> float:
    """Train an epoch, or its first steps, in batches of this size by hand; the mean loss."""
    x, y = numbers()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch_seed(SEED, epoch)))
    total = 0.0
    with torch.random.fork_rng():
        torch.manual_seed(epoch_seed(SEED, epoch))
        for batch in torch.split(order, size)[:steps]:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x[batch]), y[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if schedule is not None:
                schedule.step()
            total += loss.item() * len(batch)
    return total / len(x)


def test_other_batches_restart_the_unfinished_epoch() -> None:
    """With another batch size an epoch that was stopped is trained whole, on the weights and moments it has left."""
    by_hand, session = network(dropout=0.3), regression(network(dropout=0.3), epochs=1, lr=0.01)
    stopped_within(session.set_optimizer(optim.Adam))
    row = session.history.iloc[0]
    session.train(batch_size=8)
    optimizer = optim.Adam(by_hand.parameters(), lr=0.01)
    epoch_by_hand(by_hand, optimizer, 16, steps=round(row.fraction * STEPS))
    loss = epoch_by_hand(by_hand, optimizer, 8)

    assert 0.0 < row.fraction < 1.0
    assert [0] == list(session.history["epoch"])
    assert "fraction" not in session.history
    assert loss == pytest.approx(session.history["train_loss"][0], rel=1e-12)
    assert distance(by_hand, session.model) <= 1e-12


def test_other_batches_restart_the_schedule() -> None:
    """A schedule by batches is planned again if batches change within an epoch, so that it ends with the last one."""
    by_hand, session = network(), regression(epochs=2)
    stopped_within(session.set_optimizer(optim.Adam).set_scheduler(lr_scheduler.OneCycleLR, max_lr=0.1))
    steps = round(session.history["fraction"][0] * STEPS)
    session.train(2, batch_size=8)
    optimizer = optim.Adam(by_hand.parameters())
    schedule = lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=2 * STEPS)
    epoch_by_hand(by_hand, optimizer, 16, steps=steps, schedule=schedule)
    schedule = lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=2 * 13)
    for epoch in range(2):
        epoch_by_hand(by_hand, optimizer, 8, epoch, schedule=schedule)

    assert distance(by_hand, session.model) <= 1e-12


# ---------------------------------------------------------------------- a folder picked up again


def after_an_epoch(session: QuikSession) -> None:
    """The checkpoint of whole epochs."""
    session.train(2)


def within_an_epoch(session: QuikSession) -> None:
    """The checkpoint of a stop in the midst of an epoch."""
    session.train(1)
    stopped_within(session, 3)


def before_a_step(session: QuikSession) -> None:
    """The checkpoint of a stop at the beginning of a call that goes on."""
    session.train(2)
    stopped_by(session, "run_start", 2)


@pytest.mark.parametrize("begin", [after_an_epoch, within_an_epoch, before_a_step])
def test_rows_beyond_the_checkpoint_are_left_out(tmp_path: Path, begin: Callable[[QuikSession], None]) -> None:
    """A kernel killed after rows that no checkpoint holds is resumed at the checkpoint, and trains them once more."""
    session = saving(tmp_path, epochs=4).add_model(network(dropout=0.3)).set_optimizer(optim.Adam)
    begin(session)
    assert session.folder is not None
    file, before, held = session.folder / "checkpoint.pt", session.history, weights(session.model)
    kept = file.read_bytes()
    whole = sum(row.fraction == 1.0 for row in session._runs.state.history)
    session.train(4 - whole)
    file.write_bytes(kept)  # as if the kernel had been killed before the next one
    resumed = QuikSession.resume(session.folder)

    assert before.equals(resumed.history)
    assert 0.0 == distance(held, resumed.model)
    resumed.train(4 - whole, view=False)
    assert [0, 1, 2, 3] == list(resumed.history["epoch"])
    assert rows(session) == rows(resumed)
    assert 0.0 == distance(session.model, resumed.model)


def test_a_stop_before_any_step_leaves_nothing(tmp_path: Path) -> None:
    """A first run that was stopped before its first step leaves no file, and changes nothing of the next one."""
    straight, session = regression(epochs=1), saving(tmp_path, epochs=1)
    straight.train()
    stopped_by(session, "run_start")
    left = list(tmp_path.iterdir())
    session.train()

    assert [] == left
    assert rows(straight) == rows(session)


def test_an_error_at_once_leaves_the_unfinished_epoch(tmp_path: Path) -> None:
    """Where a call that goes on within an epoch fails at once, the folder is resumed with the steps done so far."""
    session = saving(tmp_path, epochs=2).add_model(network(dropout=0.3)).set_optimizer(optim.Adam)
    within_an_epoch(session)
    handle = session.model.register_forward_pre_hook(lambda model, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        session.train(1)
    handle.remove()
    resumed = QuikSession.resume(session.folder)

    assert session.history.equals(resumed.history)
    assert "fraction" in resumed.history
    session.train(1)
    resumed.train(1, view=False)
    assert rows(session) == rows(resumed)
    assert 0.0 == distance(session.model, resumed.model)


# ---------------------------------------------------------------------- files kept


def epochs_there(folder: Path) -> set[int]:
    """The epochs whose weights stand under their names by date."""
    names = {path.name for path in (folder / "data").glob(f"state_dict_e[0-9]*_{DATE}.pt")}
    return {int(name.removeprefix("state_dict_e").removesuffix(f"_{DATE}.pt")) for name in names}


@pytest.mark.parametrize(("keep", "stay"), [(1, {1, 5}), (2, {1, 4, 5}), ("best:1", {1}), ("best:2", {0, 1})])
def test_the_best_epoch_of_an_earlier_call_stays(tmp_path: Path, keep: int | str, stay: set[int]) -> None:
    """`keep` judges over all calls of train(): the best epoch of the first one stays while later ones are worse."""
    session = saving(tmp_path, lr=0.1, keep=keep)
    session.train(2)
    held = weights(session.model)
    session.train(2, lr=1.5)
    session.train(2, lr=1.5)

    assert [1, 0] == list(session.history.sort_values("valid_loss").epoch[:2])
    assert stay == epochs_there(tmp_path)
    assert 0.0 == distance(held, session.load_best().model)


def test_losses_of_another_kind_are_not_compared_for_files(tmp_path: Path) -> None:
    """After a change of the criterion, `keep="best:1"` keeps the best epoch since then, whatever was lower before."""
    session = saving(tmp_path, lr=0.1, keep="best:1").set_criterion(lambda o, t: 0.001 * (o - t).square().mean())
    session.train(2)
    session.set_criterion(nn.MSELoss).train(2)
    held = weights(session.model)

    assert [1, 0, 3, 2] == list(session.history.sort_values("valid_loss").epoch)
    assert {3} == epochs_there(tmp_path)
    assert 0.0 == distance(held, session.load_best().model)


def epoch_by_epoch(session: QuikSession, epochs: int, **settings: Any) -> list[dict[str, Any]]:
    """Train so many epochs, in a call each; the weights after each of them."""
    held = []
    for _ in range(epochs):
        session.train(1, **settings)
        held.append(weights(session.model))
    return held


@pytest.mark.parametrize("links", [True, False])
def test_sessions_of_one_date_leave_each_other_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """The names by date go over to the second session, and neither that nor `keep` takes weights from the other."""

    def no_links(*places: Path) -> None:
        raise PermissionError("no links here")

    if not links:
        monkeypatch.setattr("os.link", no_links)
    first, second = saving(tmp_path, lr=0.1), saving(tmp_path, lr=0.2)
    of_first, of_second = epoch_by_epoch(first, 4), epoch_by_epoch(second, 2)
    by_date = [torch.load(tmp_path / "data" / f"state_dict_e{epoch}_{DATE}.pt") for epoch in range(4)]

    assert [0.0] * 4 == [distance(*pair) for pair in zip([*of_second, *of_first[2:]], by_date, strict=True)]
    assert [0.0] * 4 == [distance(held, first.load_epoch(n).model) for n, held in enumerate(of_first)]

    (last,) = epoch_by_epoch(first, 1, keep=1)
    assert [4] == first.saved_epochs
    assert {0, 1, 4} == epochs_there(tmp_path)  # the first two are names of the second session
    assert [0.0] * 2 == [distance(held, second.load_epoch(n).model) for n, held in enumerate(of_second)]

    second.train(4, keep=1)
    assert [5] == second.saved_epochs
    assert {5} == epochs_there(tmp_path)  # it had taken the name of 4 as well, and given it up
    assert 0.0 == distance(last, first.load_epoch(4).model)


# ---------------------------------------------------------------------- a stop at an end


def at_the_last_step(session: QuikSession, stop: Callable[[], None]) -> Callable[[], object]:
    """Stop in the last training step of the first epoch, which nothing validates; the way to undo it."""
    seen: list[nn.Module] = []

    def count(model: nn.Module, inputs: Any) -> None:
        seen.append(model)
        if len(seen) == STEPS:
            stop()

    session.add_data(train=numbers())
    return session.model.register_forward_pre_hook(count).remove


def after_validation(session: QuikSession, stop: Callable[[], None]) -> Callable[[], object]:
    """Stop in a metric, which is asked when all samples were seen."""

    def stops(outputs: Tensor, targets: Tensor) -> float:
        stop()
        return 0.0

    session.set_metrics(stops=stops, check=False)  # else the trial before training would stop it
    return lambda: session.set_metrics(stops=lambda outputs, targets: 0.0)


def at_the_row(session: QuikSession, stop: Callable[[], None]) -> Callable[[], object]:
    """Stop when the row is sent."""
    return session.on("epoch_end", lambda event: stop()).off


LAST_MOMENTS = [at_the_last_step, after_validation, at_the_row]


def pressing(session: QuikSession) -> Callable[[], None]:
    """What the Stop button does."""

    def stop() -> None:
        assert session.run is not None
        session.run.stop()

    return stop


@pytest.mark.parametrize("when", LAST_MOMENTS)
def test_a_stop_at_an_epochs_end_ends_the_run_there(when: Any) -> None:
    """A stop that comes when an epoch is all but over leaves it whole, and the next call begins with the one after."""
    straight, session = regression(epochs=3), regression(epochs=3)
    when(straight, lambda: None)
    straight.train()
    undo = when(session, pressing(session))
    run = session.train()
    after = rows(session)
    undo()
    session.train(2)

    assert "stopped" == run.state
    assert rows(straight)[:1] == after
    assert rows(straight) == rows(session)
    assert 0.0 == distance(straight.model, session.model)


@pytest.mark.parametrize("when", LAST_MOMENTS)
def test_a_stop_at_an_epochs_end_begins_no_other_one(when: Any) -> None:
    """A loop of one's own is not handed another epoch after a stop that came at the end of one."""
    session, begun = regression(epochs=3), []

    def loop(pieces: Loop) -> None:
        for epoch in pieces.iter_epochs():
            begun.append(epoch)
            for x, y in pieces.loader("train"):
                loss = pieces.criterion(pieces.model(x), y)
                pieces.backward(loss)
                pieces.metrics.add_loss(loss)
            pieces.end_epoch()

    when(session, pressing(session))
    run = session.traverse(loop)

    assert "stopped" == run.state
    assert [0] == begun
    assert [0] == list(session.history["epoch"])


@pytest.mark.parametrize("when", LAST_MOMENTS)
def test_a_stop_at_the_end_of_all_finishes(when: Any) -> None:
    """A stop that comes when nothing is left to train changes nothing."""
    session = regression(epochs=1)
    when(session, pressing(session))

    assert "finished" == session.train().state
    assert [0] == list(session.history["epoch"])
    assert "fraction" not in session.history
