"""What a step, a saved epoch and a view cost: quik_nb beside the loop that a careful person writes by hand.

    python tests/benchmarks/steps.py loop     three tasks, view and saving off, against the hand-written loop
    python tests/benchmarks/steps.py save     digits, saving on against saving off
    python tests/benchmarks/steps.py view     digits in a real kernel, view on against off and against that loop

One thread. All are run in turn, so that the machine's moods meet every contestant alike.
"""

import gc
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from tempfile import TemporaryDirectory

import contestants
import torch
from contestants import Contestant, Losses
from kernels import SETUP, Kernel, kernel
from measure import Seconds, Timed, both, in_turn, spread
from tasks import NAMES, Task, load

EPOCH_SECONDS = 0.017
"""The short epoch for which the costs of saving and of a view are told."""


def timed(make: Callable[[int], Contestant], losses: list[Losses] | None = None) -> Timed:
    """Times the training that is made for a round, and notes its losses."""

    def run(number: int) -> Seconds:
        fit, result = make(number)
        gc.collect()  # the one before leaves its own
        wall, cpu = time.perf_counter(), time.process_time()
        fit()
        taken = Seconds(time.perf_counter() - wall, time.process_time() - cpu)
        if losses is not None:
            losses.append(result())
        return taken

    return run


def loop(task: Task, rounds: int) -> None:
    """quik_nb against the hand-written loop."""
    by_hand: list[Losses] = []
    by_kit: list[Losses] = []
    kit = timed(lambda number: contestants.ours(task, number), by_kit)
    seconds, ratios = in_turn(timed(lambda number: contestants.floor(task, number), by_hand), {"kit": kit}, rounds)
    step = 1e6 * median(s.wall for s in seconds) / task.steps
    print(f"{task.name}: by hand {step:.0f} us/step, quik_nb {both(ratios['kit'])} of it")
    for name, hand, ours in zip(("train", "valid"), zip(*by_hand, strict=True), zip(*by_kit, strict=True), strict=True):
        print(f"    {name} loss: by hand {spread(hand, 4)}, quik_nb {spread(ours, 4)}")


def save(task: Task, rounds: int) -> None:
    """Saving on against saving off: to new files, and over those of an earlier training."""
    off = timed(lambda number: contestants.ours(task, number))
    with TemporaryDirectory() as folder:
        # each round has a folder of its own, or all have the same
        new = timed(lambda number: contestants.ours(task, number, save=True, folder=f"{folder}/{time.time_ns()}"))
        over = timed(lambda number: contestants.ours(task, number, save=True, folder=folder))
        seconds, ratios = in_turn(off, {"new": new, "over": over}, rounds)
    print(f"saving, {lasting(task, seconds)}: on/off {both(ratios['new'])}, over files {both(ratios['over'])}")


def view(task: Task, rounds: int) -> None:
    """View on against view off, and both against the hand-written loop, in one kernel."""
    again = f"tasks.load('digits', {task.epochs}, {len(task.x) + len(task.valid_x)})"
    with kernel(SETUP, f"task = replace({again}, batch_size={task.batch_size})") as made:
        off, on = in_cell(made, "ours(task, {})"), in_cell(made, "ours(task, {}, view='auto')")
        seconds, ratios = in_turn(off, {"on": on}, rounds)
        _, against = in_turn(in_cell(made, "floor(task, {})"), {"on": on, "off": off}, rounds)
    print(f"view, {lasting(task, seconds)}: on/off {both(ratios['on'])}")
    print(f"    of the loop by hand: on {both(against['on'])}, off {both(against['off'])}")


def in_cell(made: Kernel, contestant: str) -> Timed:
    """Times a cell that trains, from sending it until the kernel is idle again."""

    def run(number: int) -> Seconds:
        made.ok(f"fit, losses = contestants.{contestant.format(number)}; gc.collect();")
        wall = made.ok("cpu = time.process_time(); fit();", timeout=120).seconds
        return Seconds(wall, float(made.ok("time.process_time() - cpu").text))

    return run


def lasting(task: Task, seconds: Sequence[Seconds]) -> str:
    """The length of an epoch in words."""
    return f"{task.epochs} epochs of {1e3 * median(s.wall for s in seconds) / task.epochs:.1f} ms"


def lengths(options: Namespace) -> list[Task]:
    """The digits as they are, and with a batch that makes an epoch about `EPOCH_SECONDS` long on this machine."""
    task = load("digits", options.epochs, options.rows)
    measured = timed(lambda number: contestants.ours(task, number))
    step = min(measured(number).wall for number in range(5)) / task.steps
    steps = max(1, round(EPOCH_SECONDS / step))
    return [task, replace(task, batch_size=max(1, len(task.x) // steps))]


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("loop", "save", "view"))
    parser.add_argument("--rounds", type=int, default=7, help="besides the first, which is not counted")
    parser.add_argument("--task", choices=NAMES, help="loop: only this one")
    parser.add_argument("--epochs", type=int, help="instead of the task's own")
    parser.add_argument("--rows", type=int, help="only so many samples, to try it out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == "loop":
        for name in [options.task] if options.task else NAMES:
            loop(load(name, options.epochs, options.rows), options.rounds)
    else:
        for task in lengths(options):
            {"save": save, "view": view}[options.part](task, options.rounds)
