"""A worker that raises, dies or hangs: the notebook shows who and where, in seconds, and nothing is left."""

import shutil
import time
from pathlib import Path

import psutil
import pytest
from harness.kernel import Kernel
from harness.workers import Notebook, leftovers, workers

from quik_nb.launch.failure import Failure, root_cause
from quik_nb.launch.transfer import Scratch

GONE_SECONDS = 5.0

BREAKS = """
def breaks(how):
    def before(rank, step):
        if rank == 1 and step == 12:
            how()
    return Net(before)

def raises():
    values = {}
    return values["missing"]  # the line to show
"""


def state(notebook: Kernel) -> str:
    """The state of the run and the epochs that were kept."""
    return notebook.ok("print(s.run.state, list(s.history.epoch))").text.strip()


def test_a_worker_that_raises_shows_the_users_line(notebook: Kernel) -> None:
    """The user's own exception, the line in their cell and the rank; nothing of the errors that follow elsewhere."""
    code = BREAKS.strip()
    notebook.ok(code)
    result = notebook.run("s = session(breaks(raises), epochs=3); s.train(processes=3)", timeout=15)

    assert ["KeyError"] == result.errors
    assert result.traceback.rstrip().splitlines()[-1].startswith(("KeyError: 'missing'", "quik_nb: this was a batch"))
    assert "Rank 1 of 3 failed here:" in result.traceback
    assert 'return values["missing"]  # the line to show' in result.traceback
    assert "Cell In[" in result.traceback
    assert f"line {len(code.splitlines())}, in raises" in result.traceback
    assert [] == [word for word in ("gloo", "Connection", "DistBackendError", "allreduce") if word in result.traceback]
    assert len(result.traceback.splitlines()) < 40
    assert "failed [0]" == state(notebook)


def test_the_same_training_can_go_on_after_a_failure(notebook: Kernel) -> None:
    """After a failure the session has the state of its last row, and trains on from there."""
    notebook.ok(BREAKS)
    notebook.run("s = session(breaks(raises), epochs=3); s.train(processes=2)")
    result = notebook.ok(
        "s.model.before = slow; s.train(epochs=2, processes=2)\n"
        "w = session(Net(), epochs=3); w.train(processes=1)\n"
        "print((s.model.layer.weight - w.model.layer.weight).abs().max().item() < 1e-9)"
    )

    assert "True" == result.text.splitlines()[-1]


def test_an_error_that_only_tells_of_another_is_passed_over() -> None:
    """A lost connection that is reported first is not what the user sees, where another rank failed by itself."""
    lost = Failure(0, "RuntimeError", "[gloo/transport/tcp/pair.cc] Connection closed by peer")
    cause = Failure(1, "ValueError", "a bad batch")

    assert cause == root_cause([lost, cause])
    assert lost == root_cause([lost])


def test_a_failure_on_all_ranks_is_told_once(notebook: Kernel) -> None:
    """An error that all ranks meet is shown as one."""
    notebook.ok("def wrong(rank, step):\n    raise ValueError('everywhere')")
    result = notebook.run("s = session(Net(wrong)); s.train(processes=3)", timeout=15)

    assert ["ValueError"] == result.errors
    assert 1 == result.traceback.count("failed here")


def test_an_exception_with_arguments_of_its_own_arrives(notebook: Kernel) -> None:
    """An exception that does not come through pickling by itself arrives as its own class, with its words and line."""
    notebook.ok(
        "class Odd(Exception):\n"
        "    def __init__(self, a, b):\n        super().__init__(f'{a} and {b}')\n"
        "def wrong(rank, step):\n    raise Odd(1, 2)"
    )
    result = notebook.run("s = session(Net(wrong)); s.train(processes=2)", timeout=15)

    assert ["Odd"] == result.errors
    assert "Odd: 1 and 2" in result.traceback
    assert "in wrong" in result.traceback


@pytest.mark.parametrize(
    ("signal", "cause"),
    [("SIGKILL", "memory ran out"), ("SIGSEGV", "compiled code crashed"), ("SIGTERM", "something outside")],
)
def test_a_worker_that_is_killed_is_told(notebook: Kernel, signal: str, cause: str) -> None:
    """A worker that a signal ended: which rank, which signal, the likely cause."""
    notebook.ok(BREAKS)
    result = notebook.run(
        f"s = session(breaks(lambda: os.kill(os.getpid(), signal.{signal})), epochs=3); s.train(processes=3)",
        timeout=15,
    )

    assert ["WorkerError"] == result.errors
    assert f"Rank 1 of 3 was killed by {signal}" in result.traceback
    assert cause in result.traceback
    assert "failed [0]" == state(notebook)


def test_a_worker_that_exits_is_told(notebook: Kernel) -> None:
    """A worker whose code leaves the process is told by its rank and exit code."""
    notebook.ok(BREAKS)
    result = notebook.run("s = session(breaks(lambda: os._exit(3)), epochs=3); s.train(processes=2)", timeout=15)

    assert ["WorkerError"] == result.errors
    assert "Rank 1 of 2 ended with exit code 3" in result.traceback


def test_a_worker_that_calls_exit_is_told(notebook: Kernel) -> None:
    """sys.exit in a step does not end the kernel or hang the others."""
    notebook.ok(BREAKS + "\nimport sys")
    result = notebook.run("s = session(breaks(lambda: sys.exit(4)), epochs=3); s.train(processes=2)", timeout=15)

    assert "Rank 1 of 2" in result.traceback
    assert "SystemExit" in result.traceback


def test_a_hanging_worker_is_found(notebook: Kernel) -> None:
    """After the timeout the message says on which line of the user's cell which rank stands."""
    notebook.ok(BREAKS + "\ndef hangs():\n    time.sleep(1000)  # here it stands")
    result = notebook.run("s = session(breaks(hangs), epochs=3, timeout=2); s.train(processes=2)", timeout=20)

    assert ["WorkerError"] == result.errors
    assert "no sign of life for 2 seconds" in result.traceback
    before, after = result.traceback.split("Rank 1 of 2 stands here:")
    assert "Rank 0 of 2 stands here:" in before
    assert "time.sleep(1000)  # here it stands" in after
    assert "in hangs" in after
    assert "QuikSession(timeout=4)" in result.traceback
    assert "failed [0]" == state(notebook)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("step", [5, 8, 9])
def test_a_rank_in_an_endless_loop_is_named(notebook: Kernel, rank: int, step: int) -> None:
    """The line of the rank that loops is shown, whichever it is, and not how the other one's waiting ended."""
    notebook.ok(
        f"def loops(rank, step):\n    while rank == {rank} and step == {step}:\n        pass  # the line to show"
    )
    result = notebook.run("s = session(Net(loops), epochs=3, timeout=3); s.train(processes=2)", timeout=20)

    assert ["WorkerError"] == result.errors
    after = result.traceback.split(f"Rank {rank} of 2 stands here:")[1]
    assert "in loops" in after.split("Rank 1 of 2")[0]


def test_a_rank_that_loops_and_prints_is_named(notebook: Kernel) -> None:
    """Prints are a sign of life, so that it is the other rank's waiting that ends; the loop is shown all the same."""
    notebook.ok(
        "def loops(rank, step):\n"
        "    while rank == 0 and step == 5:\n"
        "        print('still here'); time.sleep(0.2)  # the line to show"
    )
    result = notebook.run("s = session(Net(loops), epochs=3, timeout=2); s.train(processes=2)", timeout=30)

    assert ["WorkerError"] == result.errors
    assert "Rank 1 waited for another one in vain" in result.traceback
    assert "in loops" in result.traceback.split("Rank 0 of 2 stands here:")[1]
    assert "QuikSession(timeout=4)" in result.traceback


def test_a_pause_is_no_hang(notebook: Kernel) -> None:
    """A run that is paused for longer than the timeout goes on."""
    result = notebook.ok(
        "s = session(Net(slow), epochs=3, timeout=1)\n"
        "def hold(event):\n"
        "    if event.row.epoch == 0:\n"
        "        s.run.pause(); threading.Timer(2.5, s.run.resume).start()\n"
        "s.on('epoch_end', hold); s.train(processes=2); print(s.run.state)"
    )

    assert result.seconds > 2.5
    assert "finished" == result.text.splitlines()[-1]


def test_rows_that_were_on_their_way_are_not_lost(notebook: Kernel) -> None:
    """A callback that raises while workers train on leaves no gap between its row and the last one."""
    result = notebook.run(
        "def fails(event):\n    if event.row.epoch == 1:\n        time.sleep(0.5); raise KeyError('mine')\n"
        "s = session(Net(), epochs=200, view=False).on('epoch_end', fails)\n"
        "try:\n    s.train(processes=2)\n"
        "finally:\n    epochs = s.history.epoch.tolist(); print(epochs == list(range(len(epochs))), len(epochs) > 2)"
    )

    assert ["KeyError"] == result.errors
    assert "True True" == result.text.splitlines()[-1]


LOADED = """
class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, i):
        return x[i], y[i]

def loaded(model, **settings):
    loader = torch.utils.data.DataLoader(Rows(), batch_size=100, num_workers=2)
    return session(model, **settings).add_data(train=loader, valid=0.2)
"""


def test_loading_workers_work_in_workers(notebook: Kernel) -> None:
    """A DataLoader with two loading processes gives the same in workers, and its processes end with the run."""
    notebook.ok(LOADED)
    result = notebook.ok(
        "losses = []\n"
        "for processes in (1, 2):\n"
        "    s = loaded(Net(), epochs=2, view=False); s.train(processes=processes)\n"
        "    losses.append(s.history.train_loss)\n"
        "print(abs(losses[0] - losses[1]).max() < 1e-9)"
    )

    assert "True\n" == result.text


@pytest.mark.parametrize("how", ["raises", "lambda: os.kill(os.getpid(), signal.SIGKILL)"])
def test_loading_workers_end_with_a_failed_run(notebook: Kernel, how: str) -> None:
    """Also where a rank raises or is killed, the loading processes of all ranks are gone."""
    notebook.ok(BREAKS + LOADED)
    result = notebook.run(f"s = loaded(breaks({how}), epochs=3); s.train(processes=2)", timeout=20)

    assert 1 == len(result.errors)
    until = time.monotonic() + 1.0
    while workers(notebook) and time.monotonic() < until:  # the system tells them a moment later
        time.sleep(0.05)
    assert [] == workers(notebook)


def test_loading_workers_end_with_an_interrupt(notebook: Kernel) -> None:
    """An interrupt, which reaches loading processes too, ends in one KeyboardInterrupt and none of their tracebacks."""
    notebook.ok(LOADED)
    cell = notebook.start("s = loaded(Net(slow), epochs=100); s.train(processes=2)")
    cell.until(lambda result: "\n        1 " in result.text)
    notebook.interrupt()
    result = cell.finish(timeout=10)

    assert ["KeyboardInterrupt"] == result.errors
    assert "" == result.stderr


def test_a_worker_that_fails_at_the_start_is_told(notebook: Kernel) -> None:
    """A part that refuses to come back from its pickle in the worker is the user's error, with its line."""
    notebook.ok("class Refuses(Net):\n    def __setstate__(self, state):\n        raise RuntimeError('not here')")
    result = notebook.run("s = session(Refuses()); s.train(processes=2)", timeout=15)

    assert ["RuntimeError"] == result.errors
    assert "raise RuntimeError('not here')" in result.traceback


def everything_gone(kernel: Kernel) -> float:
    """Seconds until no process of a kernel is left."""
    began = time.monotonic()
    while kernel.processes() and time.monotonic() < began + 2 * GONE_SECONDS:
        time.sleep(0.05)
    return time.monotonic() - began


def test_workers_end_with_their_kernel(own_notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is killed takes workers, loading processes and servers along; the next start removes its files."""
    kernel, temporary = own_notebook
    kernel.ok(LOADED)
    cell = kernel.start("s = loaded(Net(slow), epochs=1000); s.train(processes=2)")
    cell.until(lambda result: "\n        1 " in result.text and len(workers(kernel)) > 2)  # loaders live for an epoch
    kernel.kill()
    assert everything_gone(kernel) < GONE_SECONDS

    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    scratch = Scratch().folder()

    assert [scratch] == [path for path in temporary.iterdir() if not path.name.startswith("torchinductor")]


def test_a_kernel_that_ends_leaves_no_files(own_notebook: Notebook) -> None:
    """After an ordinary end, as by the restart button, neither processes nor temporary files are there."""
    kernel, temporary = own_notebook
    kernel.ok("s = session(Net()); s.train(processes=2)")
    kernel.client.shutdown()
    psutil.wait_procs([psutil.Process(kernel.pid)], timeout=30)

    assert everything_gone(kernel) < GONE_SECONDS
    assert [] == [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor")]


def test_temporary_files_that_are_cleaned_away(own_notebook: Notebook) -> None:
    """Where the folder for temporary files is emptied, by whomever, the next training starts as the first one did."""
    kernel, temporary = own_notebook
    kernel.ok("s = session(Net()); s.train(processes=2)")
    for path in temporary.glob("quik_nb_*"):
        shutil.rmtree(path)

    assert "finished" == kernel.ok("print(s.train(epochs=1, processes=2).state)").text.splitlines()[-1]


def test_a_folder_in_use_is_not_swept(own_notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process leaves the folder alone whose owner lives, also where it cannot see that process."""
    kernel, temporary = own_notebook
    kernel.ok("s = session(Net()); s.train(processes=2)")
    (folder,) = temporary.glob("quik_nb_*")
    renamed = folder.rename(temporary / f"quik_nb_1_{folder.name[-8:]}")  # of a process that this one cannot know
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    other = Scratch()
    other.folder()

    assert renamed.exists()


def test_a_run_leaves_only_the_samples(notebook: Kernel, started: Notebook) -> None:
    """Between runs there is the one file of samples in the folder for temporary files, and none of the run's."""
    notebook.ok("s = session(Net()); s.train(processes=2)")

    assert [] == leftovers(*started)
    assert ["data"] == [path.name.split("_")[0] for path in Path(started.temporary).glob("quik_nb_*/*.pt")]
