"""Ranks obey at the same step, whenever they look and however the requests fall."""

import multiprocessing
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quik_nb.training.commands import LocalCommands, SharedCommands, wait_while_paused

Log = list[tuple[int, str]]
"""What a rank did: (step, "stop" or "paused" or a learning rate)."""


class Ranks:
    """Ranks as threads, each in a loop of steps.

    A step begins only when all ranks have come to the end of the step `ahead` before it: with 1 as where gradients meet
    on the CPU, with more as where GPUs make only themselves wait.
    """

    def __init__(self, path: Path, world_size: int, steps: int, jitter: float, ahead: int = 1) -> None:
        self.parent = SharedCommands.create(path)
        self.steps, self.jitter, self.ahead = steps, jitter, ahead
        self.ended = [threading.Barrier(world_size) for _ in range(steps)]
        self.reached = 0
        """the step that rank 0 stands at"""
        self.logs: list[Log] = [[] for _ in range(world_size)]
        self.threads = [threading.Thread(target=self._live, args=(path, rank)) for rank in range(world_size)]

    def _live(self, path: Path, rank: int) -> None:
        commands = SharedCommands(path, rank, ahead=self.ahead)
        chance, log, meetings = random.Random(rank), self.logs[rank], deque[threading.Thread]()
        for step in range(self.steps):
            time.sleep(chance.random() * self.jitter * (1 + 3 * (rank == 0)))
            while len(meetings) >= self.ahead:
                meetings.popleft().join(20)
            if rank == 0:
                self.reached = step
            due = commands.at(step)
            if due.lr is not None:
                log.append((step, f"lr {due.lr}"))
            if due.pause and not due.stop:
                log.append((step, "paused"))
                due = wait_while_paused(commands, step)
                if due.lr is not None:
                    log.append((step, f"lr {due.lr}"))
            if due.stop:
                log.append((step, "stop"))
                break
            time.sleep(chance.random() * self.jitter)
            meetings.append(threading.Thread(target=self.ended[step].wait, args=(20,)))  # the gradients meet
            meetings[-1].start()
        commands.close()

    @contextmanager
    def running(self) -> Iterator[SharedCommands]:
        """Within it they train; afterwards they have ended."""
        for thread in self.threads:
            thread.start()
        yield self.parent
        for thread in self.threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self.threads)
        self.parent.close()

    def wait_for(self, step: int) -> None:
        """Until rank 0 has come to a step."""
        while self.reached < step:
            time.sleep(0.001)


@pytest.mark.parametrize("ahead", [1, 4])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_stop_at_the_same_step(tmp_path: Path, world_size: int, ahead: int) -> None:
    """A stop that comes at any moment ends all ranks at one step, soon, however far they run ahead of each other."""
    ranks = Ranks(tmp_path / "commands", world_size, steps=500, jitter=0.004, ahead=ahead)
    with ranks.running() as parent:
        ranks.wait_for(10)
        time.sleep(0.003)
        parent.stop()
        asked = ranks.reached
    (step, what), *_ = ranks.logs[0]

    assert "stop" == what
    assert asked <= step <= asked + 1 + ahead
    assert [ranks.logs[0]] * world_size == ranks.logs


@pytest.mark.parametrize(("world_size", "ahead"), [(2, 1), (3, 1), (3, 4)])
def test_all_ranks_set_the_learning_rate_at_the_same_step(tmp_path: Path, world_size: int, ahead: int) -> None:
    """Learning rates that are set again and again reach every rank at equal steps, and the last one always."""
    ranks = Ranks(tmp_path / "commands", world_size, steps=200, jitter=0.002, ahead=ahead)
    with ranks.running() as parent:
        for number in range(1, 30):
            parent.set_lr(number / 100)
            time.sleep(0.003)

    assert [ranks.logs[0]] * world_size == ranks.logs
    assert "lr 0.29" == ranks.logs[0][-1][1]


@pytest.mark.parametrize("then", [SharedCommands.stop, SharedCommands.resume])
def test_a_pause_holds_all_ranks(tmp_path: Path, then: Callable[[SharedCommands], None]) -> None:
    """All ranks pause at one step, take no further one, and go on or stop together."""
    ranks = Ranks(tmp_path / "commands", 3, steps=60, jitter=0.002)
    with ranks.running() as parent:
        ranks.wait_for(10)
        parent.pause()
        time.sleep(0.2)
        held = ranks.reached
        assert parent.paused
        parent.set_lr(0.5)
        time.sleep(0.2)
        still = ranks.reached
        then(parent)
    paused, *rest = ranks.logs[0]

    assert held == still == paused[0]
    assert [ranks.logs[0]] * 3 == ranks.logs
    assert ([(held, "stop")] if then is SharedCommands.stop else [(held + 1, "lr 0.5")]) == rest


def test_pauses_one_after_the_other(tmp_path: Path) -> None:
    """Pauses and resumes in quick succession leave no rank behind."""
    ranks = Ranks(tmp_path / "commands", 3, steps=200, jitter=0.001)
    with ranks.running() as parent:
        for _ in range(10):
            parent.pause()
            time.sleep(0.01)
            parent.resume()
            time.sleep(0.005)
        parent.stop()

    assert [[step for step, what in ranks.logs[0] if what == "stop"]] * 3 == [
        [step for step, what in log if what == "stop"] for log in ranks.logs
    ]


def write_for_ever(path: Path) -> None:
    """Rank 0 at work, and a parent that asks for one rate after the other."""
    commands, parent = SharedCommands(path, rank=0), SharedCommands(path)
    step = 0
    while True:
        parent.set_lr(1.0 + step % 2)
        commands.at(step)
        step += 1


def test_no_reader_meets_half_a_word(tmp_path: Path) -> None:
    """While another process writes without a pause, a reader sees no order that nobody gave."""
    path = tmp_path / "commands"
    SharedCommands.create(path).close()
    reader = SharedCommands(path, rank=1)
    writer = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(path,), daemon=True)
    writer.start()
    until, seen = time.monotonic() + 1.0, set()
    while time.monotonic() < until:
        due = reader.at(2**40)
        seen.add((due.stop, due.pause, due.lr))
    writer.kill()
    writer.join()

    assert seen <= {(False, False, rate) for rate in (None, 1.0, 2.0)}


def test_controls_of_one_process() -> None:
    """A rate is handed out once, a stop and a pause hold, and nothing is pending where nothing was asked."""
    commands = LocalCommands()
    pending = [commands.pending]
    commands.set_lr(0.1)
    pending.append(commands.pending)
    rates = [commands.at(0).lr, commands.at(1).lr]
    pending.append(commands.pending)
    commands.stop()

    assert [False, True, False] == pending
    assert [0.1, None] == rates
    assert [True, True] == [commands.at(2).stop, commands.at(3).stop]
    assert commands.stop_requested
