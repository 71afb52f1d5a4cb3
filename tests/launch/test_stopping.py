"""One interrupt stops all ranks soon and keeps everything; a second one ends them at once."""

import time

import pytest
from harness.kernel import Cell, Kernel
from harness.workers import workers

ROUNDING = 1e-9


def interrupted(notebook: Kernel, cell: Cell, text: str) -> float:
    """Interrupt the cell once it shows a text; the seconds until it has ended with one KeyboardInterrupt."""
    cell.until(lambda result: text in result.text)
    began = time.monotonic()
    notebook.interrupt()
    result = cell.finish(timeout=20)
    seconds = time.monotonic() - began

    assert ["KeyboardInterrupt"] == result.errors
    assert "its rows, weights and state are kept" in result.traceback
    assert 1 == result.traceback.count("Traceback")
    assert len(result.traceback.splitlines()) < 25
    return seconds


@pytest.mark.parametrize("processes", [2, 3])
def test_an_interrupt_stops_all_ranks_within_a_second(notebook: Kernel, processes: int) -> None:
    """The cell ends with one short KeyboardInterrupt, and the rows so far stay, the last one marked as partial."""
    cell = notebook.start(f"s = session(Net(slow), epochs=100)\ns.train(processes={processes})")
    assert interrupted(notebook, cell, "\n        1 ") < 1.0

    share = float(notebook.ok("print(s.run.state, s.history.fraction.iloc[-1])").text.split()[1])
    assert 0 < share <= 1


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_stopped_training_goes_on_at_that_step(notebook: Kernel, processes: int) -> None:
    """Interrupted in the middle of an epoch and continued, on any number of processes, it comes to the same numbers."""
    cell = notebook.start("s = session(Net(slow), epochs=3)\ns.train(processes=2)")
    interrupted(notebook, cell, "\n        0 ")
    whole = notebook.ok(
        "share = s.history.fraction.iloc[-1]\n"
        f"s.train(epochs=3 - int((s.history.fraction == 1).sum()), processes={processes})\n"
        "w = session(Net(), epochs=3); w.train(processes=1)\n"
        "print(share, abs(s.history.valid_loss - w.history.valid_loss).max(),"
        " (s.model.layer.weight - w.model.layer.weight).abs().max().item(), list(s.history.epoch))"
    )

    share, losses, weights, epochs = whole.text.splitlines()[-1].split(maxsplit=3)
    assert 0 < float(share) <= 1
    assert float(losses) <= ROUNDING
    assert float(weights) <= ROUNDING
    assert "[0, 1, 2]" == epochs


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4])
def test_an_interrupt_at_any_time_leaves_a_session_to_train_on(notebook: Kernel, seconds: float) -> None:
    """An interrupt before the first step is not lost, and the session can be trained afterwards."""
    cell = notebook.start("s = session(Net(slow), epochs=100)\nprint('begun', flush=True)\ns.train(processes=2)")
    cell.until(lambda result: "begun" in result.text)
    time.sleep(seconds)
    notebook.interrupt()
    assert ["KeyboardInterrupt"] == cell.finish(timeout=10).errors

    assert "finished" == notebook.ok("print(s.train(epochs=1, processes=2).state)").text.splitlines()[-1]


@pytest.mark.parametrize("kind", ["rows", "Flow()"])
def test_an_interrupt_in_validation_stops_there(notebook: Kernel, kind: str) -> None:
    """A long validation, also over a stream, is cut short, and is done anew when the training goes on."""
    notebook.ok(
        "class Checked(Net):\n"
        "    def forward(self, x):\n"
        "        if not self.training:\n"
        "            print('checking', flush=True); time.sleep(0.03)\n"
        "        return super().forward(x)\n"
        "rows = torch.utils.data.TensorDataset(x, y)\n"
        "class Flow(torch.utils.data.IterableDataset):\n"
        "    def __iter__(self):\n        yield from rows"
    )
    cell = notebook.start(
        "s = session(Checked(), epochs=2)\n"
        f"s.add_data(train=(x, y), valid=torch.utils.data.DataLoader({kind}, batch_size=10))\n"
        "s.train(processes=2)"
    )
    assert interrupted(notebook, cell, "checking") < 1.5

    result = notebook.ok(
        "s.train(epochs=1, view=False); print(list(s.history.epoch), s.history.valid_loss.notna().all())"
    )
    assert "[0] True" == result.text.splitlines()[-1]


def test_a_second_interrupt_ends_at_once(notebook: Kernel) -> None:
    """Where a step takes long, a second interrupt does not wait for it."""
    notebook.ok("def long(rank, step):\n    print('long', flush=True); time.sleep(60)")
    cell = notebook.start("s = session(Net(long))\ns.train(processes=2)")
    cell.until(lambda result: "long" in result.text)
    notebook.interrupt()
    time.sleep(0.3)
    began = time.monotonic()
    notebook.interrupt()
    result = cell.finish(timeout=20)

    assert ["KeyboardInterrupt"] == result.errors
    assert time.monotonic() - began < 2.0
    assert "2" == notebook.ok("1 + 1").text


@pytest.mark.parametrize(
    "where", ["multiprocessing.process.BaseProcess.start", "multiprocessing.forkserver.read_signed"]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_two_interrupts_while_a_worker_starts_leave_none(notebook: Kernel, rank: int, where: str) -> None:
    """They are raised when it is known that the worker runs, so that it is ended like the others.

    A worker runs before its number is read from the fork server, and is known when it has started.
    """
    notebook.ok(
        "import multiprocessing.forkserver, multiprocessing.process\n"
        f"original, calls = {where}, []\n"
        "def interrupted(*args):\n"
        "    calls.append(args)\n"
        f"    if len(calls) == {rank + 1}:\n"
        "        time.sleep(0.2)\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    return original(*args)\n"
        f"{where} = interrupted"
    )
    result = notebook.run("s = session(Net(), epochs=100); s.train(processes=2)", timeout=20)
    notebook.ok(f"{where} = original")

    assert ["KeyboardInterrupt"] == result.errors
    assert [] == workers(notebook)
    assert "finished" == notebook.ok("print(s.train(epochs=1, processes=2).state)").text.split()[-1]


def test_many_interrupts_do_no_harm(notebook: Kernel) -> None:
    """Whoever hammers the button gets a kernel that goes on, with no worker left (IPython itself is hit, too)."""
    notebook.ok("def long(rank, step):\n    print('long', flush=True); time.sleep(60)")
    cell = notebook.start("s = session(Net(long))\ns.train(processes=3)")
    cell.until(lambda result: "long" in result.text)
    for _ in range(6):
        notebook.interrupt()
        time.sleep(0.03)
    cell.finish(timeout=20)

    assert "finished" in notebook.ok("print(session(Net()).train(processes=2).state)").text


def test_a_listener_can_stop_the_workers(notebook: Kernel) -> None:
    """What listens to the session in the notebook stops the ranks as well; the cell ends normally."""
    result = notebook.ok(
        "from quik_nb import StopTraining\n"
        "def enough(event):\n    raise StopTraining\n"
        "s = session(Net(slow), epochs=100); s.on('epoch_end', enough); s.train(processes=2); print(s.run.state)"
    )

    assert "stopped" == result.text.splitlines()[-1]
    assert "2" >= notebook.ok("print(len(s.history))").text.strip()
