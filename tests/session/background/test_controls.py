"""Stop, pause, resume and another learning rate reach all ranks whenever they come, and stay in the record."""

import time

import pytest
from harness.cells import cell
from harness.kernel import Kernel
from harness.workers import workers

CHECKED = cell("checked")
"""A validation of 0.2 seconds, in ten batches."""

MOMENTS = {
    "before the first step": "pass",
    "in the middle of an epoch": "until(lambda: len(run.history) == 1); time.sleep(0.3)",
    "in validation": "until(lambda: len(run.history) == 1); time.sleep(0.1)",
    "between epochs": "until(lambda: len(run.history) == 1)",
}


def last(kernel: Kernel, code: str) -> str:
    """The last line that a cell prints."""
    return kernel.ok(code).text.splitlines()[-1]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("moment", MOMENTS)
def test_controls_are_obeyed_at_any_moment(notebook: Kernel, moment: str, processes: int) -> None:
    """A rate, a pause, its end and a stop are obeyed whenever they come, marks tell of them, and no rank hangs."""
    notebook.ok(CHECKED)
    result = last(
        notebook,
        f"s = checked(epochs=50); run = s.train(background=True, processes={processes})\n"
        f"{MOMENTS[moment]}\n"
        "run.set_lr(0.003); run.pause(); states = [run.state]; time.sleep(0.3)\n"
        "run.resume(); states.append(run.state); before = len(run.history)\n"
        "until(lambda: len(run.history) > before + 1)\n"
        "began = time.time(); run.stop(); run.wait(); took = time.time() - began\n"
        "labels = [mark.label for mark in s.annotations]\n"
        "print(states, run.state, took < 2, 'lr 0.003' in labels, s.history.lr.iloc[-1])",
    )

    assert "['paused', 'running'] stopped True True 0.003" == result


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("order", ["pause", "stop", "set_lr"])
def test_an_order_at_the_last_step_is_no_deadlock(notebook: Kernel, order: str, processes: int) -> None:
    """An order for which no step is left ends with the run; a handle that is over does nothing."""
    argument = "0.5" if order == "set_lr" else ""
    result = last(
        notebook,
        "import pathlib\nmark = pathlib.Path('mark'); mark.unlink(missing_ok=True)\n"
        "def late(rank, step):\n    if step == 8:\n        mark.touch(); time.sleep(0.3)\n"
        f"s = session(Net(late), epochs=1, view=False); run = s.train(background=True, processes={processes})\n"
        "while not mark.exists():\n    time.sleep(0.01)\n"
        f"run.{order}({argument}); run.wait(20)\n"
        "ended = run.state; run.pause(); run.resume(); run.set_lr(0.1); run.stop()\n"
        "print(ended, run.state == ended, len(s.history))",
    )

    # a stop cuts the validation, so that the row is a partial one
    assert f"{'stopped' if order == 'stop' else 'finished'} True 1" == result


@pytest.mark.parametrize("processes", [1, 2])
def test_paused_workers_use_no_cpu(notebook: Kernel, processes: int) -> None:
    """In a pause nothing is computed: over a second, a worker's clock moves by next to nothing."""
    notebook.ok(
        "def busy(rank, step):\n    end = time.time() + 0.02\n    while time.time() < end:\n        pass\n"
        f"s = session(Net(busy), epochs=500, view=False); run = s.train(background=True, processes={processes})\n"
        "while len(run.history) < 1:\n    time.sleep(0.02)"
    )
    running = used(notebook)
    notebook.ok("run.pause(); time.sleep(0.5)")
    paused = used(notebook)
    rows = [last(notebook, "print(len(run.history))") for _ in range(2)]
    notebook.ok("run.stop(); run.wait()")

    assert running > 0.2
    assert paused < 0.1
    assert rows[0] == rows[1]


def used(kernel: Kernel, seconds: float = 1.0) -> float:
    """Seconds of processor time that the kernel's workers use within a stretch of time."""
    found = workers(kernel)
    before = [process.cpu_times() for process in found]
    time.sleep(seconds)
    after = [process.cpu_times() for process in found]
    return sum(b.user + b.system - a.user - a.system for a, b in zip(before, after, strict=True))


def test_a_pause_is_no_part_of_the_epochs_time(notebook: Kernel) -> None:
    """A pause is a mark with its length, drawn on the curve, and the row's seconds are without it."""
    result = last(
        notebook,
        "s = session(Net(slow), epochs=2, view=False); run = s.train(background=True)\n"
        "while not s._runs.history.live:\n    time.sleep(0.01)\n"
        "run.pause(); time.sleep(2); run.resume(); run.wait()\n"
        "from quik_nb.views.svg import svg\n"
        "drawn = svg(s._runs.history)\n"
        "labels = [mark.label for mark in s.annotations]\n"
        "print(labels, s.history.time.sum() < 1.5, 'paused 2 s' in drawn)",
    )

    assert "['paused 2 s'] True True" == result


def test_a_rate_set_in_a_pause_holds_afterwards(notebook: Kernel) -> None:
    """Of the rates asked for in a pause, the last one holds from the first step after it."""
    result = last(
        notebook,
        "s = session(Net(slow), epochs=3, view=False); run = s.train(background=True, processes=2)\n"
        "while len(run.history) < 1:\n    time.sleep(0.01)\n"
        "run.pause(); time.sleep(0.3)\n"
        "for lr in (0.5, 0.25, 0.125):\n    run.set_lr(lr)\n"
        "run.resume(); run.wait()\n"
        "print(run.state, list(s.history.lr), s.annotations[-1].label)",
    )

    assert "finished [0.01, 0.125, 0.125] lr 0.125" == result


@pytest.mark.parametrize("lr", ["-1", "0", "float('nan')", "float('inf')", "'fast'", "None"])
def test_a_rate_that_is_none_is_refused_when_it_is_set(notebook: Kernel, lr: str) -> None:
    """A learning rate that is no number above 0 is refused in a sentence, and the run goes on."""
    notebook.ok("s = session(Net(slow), epochs=100, view=False); run = s.train(background=True)")
    refused = notebook.run(f"run.set_lr({lr})")
    state = last(notebook, "print(run.state); run.stop(); run.wait();")

    assert ["RecipeError"] == refused.errors
    assert "use run.set_lr(3e-4)" in refused.traceback
    assert "running" == state


def test_many_orders_in_a_row(notebook: Kernel) -> None:
    """Orders as fast as they can be given, on two ranks: in the end what was asked last holds."""
    result = last(
        notebook,
        "s = session(Net(), epochs=3000, view=False); run = s.train(background=True, processes=2)\n"
        "while len(run.history) < 1:\n    time.sleep(0.01)\n"
        "for i in range(200):\n"
        "    run.pause(); time.sleep(0.001 * (i % 7)); run.set_lr(0.001 * (i + 1)); run.resume()\n"
        "    time.sleep(0.001 * (i % 5))\n"
        "before = len(run.history); end = time.time() + 20\n"
        "while len(run.history) < before + 2 and time.time() < end:\n    time.sleep(0.01)\n"
        "print(run.state, s.history.lr.iloc[-1]); run.pause(); run.stop(); print(run.wait(20).state)",
    )

    assert "stopped" == result


def test_a_stop_in_a_pause_ends_the_run(notebook: Kernel) -> None:
    """A run that is held can be stopped, and goes on later where it was."""
    result = last(
        notebook,
        "s = session(Net(slow), epochs=4, view=False); run = s.train(background=True, processes=2)\n"
        "while len(run.history) < 1:\n    time.sleep(0.01)\n"
        "time.sleep(0.1); run.pause(); time.sleep(0.5); began = time.time(); run.stop(); run.wait()\n"
        "quick = time.time() - began < 2\n"
        "done = int((s.history.get('fraction', s.history.epoch * 0 + 1) == 1).sum())\n"
        "s.train(epochs=4 - done, processes=1)\n"
        "w = session(Net(), epochs=4, view=False); w.train(processes=1)\n"
        "print(run.state, quick, abs(s.history.valid_loss - w.history.valid_loss).max() < 1e-9)",
    )

    assert "stopped True True" == result
