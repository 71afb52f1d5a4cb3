"""Workers in a notebook: what cells define travels, what ranks print comes home, the view is live, nothing hangs."""

import re
from typing import Any

import pytest
from harness.cells import cell
from harness.kernel import Kernel, Message

TRAVELLERS = cell("travellers")


def test_what_cells_define_travels(notebook: Kernel) -> None:
    """Classes, functions, lambdas, globals and datasets of a cell are the same in the workers."""
    notebook.ok(TRAVELLERS)
    result = notebook.ok(
        "print([alike(**parts) for parts in (\n"
        "    dict(add_data=(Rows(), Rows())),\n"
        "    dict(add_data=(Flow(), Flow())),\n"
        "    dict(add_data=(DataLoader(Rows(), batch_size=20, collate_fn=stacked), 0.2)),\n"
        "    dict(set_criterion=(Loss,)),\n"
        "    dict(set_criterion=(lambda outputs, target: nn.functional.cross_entropy(outputs * scale, target),)),\n"
        "    dict(set_optimizer=(Slower,)),\n"
        "    dict(set_scheduler=(slower,)),\n"
        "    dict(set_step=(lambda model, criterion, batch: criterion(model(prepared(batch[0])), batch[1]),)),\n"
        ")])"
    )

    assert str([True] * 8) == result.text.splitlines()[-1]


def test_a_cell_that_ran_again_counts(notebook: Kernel) -> None:
    """A class or global that was changed since the last run is what the next run takes."""
    notebook.ok("sign = 'first'\ndef say(rank, step):\n    print(sign, step) if step == 1 else None")
    first = notebook.ok("s = session(Net(say), epochs=1, view=False); s.train(processes=2)").text
    second = notebook.ok("sign = 'second'; s.train(processes=2)").text
    third = notebook.ok(
        "def say(rank, step):\n    print('anew', step) if step == 1 else None\n"
        "session(Net(say), epochs=1, view=False).train(processes=2);"
    ).text

    assert ["first 1\n", "second 1\n", "anew 1\n"] == [first, second, third]


def test_a_users_own_exception_can_be_caught(notebook: Kernel) -> None:
    """An exception class of a cell, raised in a worker, is caught by its name in the cell."""
    notebook.ok(
        "class BadRow(Exception):\n    pass\n\n"
        "def refuse(rank, step):\n    if rank == 1:\n        raise BadRow('row 7')"
    )
    result = notebook.ok(
        "try:\n    session(Net(refuse), view=False).train(processes=2)\nexcept BadRow as error:\n    print(repr(error))"
    )

    assert "BadRow('row 7')\n" == result.text


def test_rank_0_prints_into_the_cell(notebook: Kernel) -> None:
    """What rank 0 prints stands in the cell once, as it was printed, warnings included; other ranks are silent."""
    notebook.ok(
        "import sys, warnings\n"
        "def say(rank, step):\n"
        "    if step == 1:\n"
        "        print('hello from', rank); print('no end', end=''); print('loud', rank, file=sys.stderr)"
    )
    result = notebook.ok("session(Net(say), epochs=1, view=False).train(processes=2);")

    assert {"hello from 0\nno end", "loud 0\n"} == {
        "".join(m.content["text"] for m in result.of("stream") if m.content["name"] == name)
        for name in ("stdout", "stderr")
    }


def test_all_ranks_print_on_request(notebook: Kernel) -> None:
    """With output="all" the other ranks' prints come with their rank in front."""
    notebook.ok("def say(rank, step):\n    print('hello from', rank) if step == 1 else None")
    result = notebook.ok("session(Net(say), epochs=1, view=False, output='all').train(processes=3);")

    expected = ["[rank 1] hello from 1", "[rank 2] hello from 2", "hello from 0"]
    assert expected == sorted(result.text.splitlines())


def test_prints_come_while_the_cell_runs(notebook: Kernel) -> None:
    """A line that rank 0 prints appears at once, not when the training is over."""
    notebook.ok("def say(rank, step):\n    time.sleep(0.1); print('step', step)")
    cell = notebook.start("session(Net(say), epochs=1, view=False).train(processes=2);")
    heard = cell.until(lambda result: "step 1" in result.text)
    cell.finish()

    assert "step 8" not in heard.text


def table_rows(messages: list[Message]) -> list[int]:
    """Rows of the live table in each message that changed it."""
    values: list[Any] = [m.content["data"].get("state", {}).get("value", "") for m in messages]
    return [len(re.findall("<tr>", v.split("<tbody>")[-1])) for v in values if isinstance(v, str) and "<tbody>" in v]


def test_the_live_view_works_with_workers(notebook: Kernel) -> None:
    """Each epoch of the workers sends its row once, while the cell runs, and the record is what stays."""
    result = notebook.ok("session(Net(slow), epochs=4, view='auto').train(processes=2)")

    assert [1, 2, 3, 4] == [rows for rows in table_rows(result.of("comm_msg")) if rows]
    *_, record, widgets = result.displays
    assert "data:image/png;base64" in record["text/html"]
    assert {""} == set(widgets.values())


@pytest.mark.parametrize("processes", [2, 4])
def test_cores_are_shared_out(notebook: Kernel, processes: int) -> None:
    """Each worker computes with its share of the cores, at least one."""
    notebook.ok("def say(rank, step):\n    print(torch.get_num_threads()) if step == 1 else None")
    result = notebook.ok(
        "print(len(os.sched_getaffinity(0)))\n"
        f"session(Net(say), epochs=1, view=False, output='all').train(processes={processes});"
    )

    cores, *threads = (int(line.split()[-1]) for line in result.text.splitlines())
    assert [max(1, cores // processes)] * processes == threads


def test_ordinary_work_before_does_no_harm(notebook: Kernel) -> None:
    """Big products, ten other trainings and a busy thread in the kernel do not keep workers from running."""
    notebook.ok(
        "big = torch.randn(600, 600); big @ big\n"
        "for processes in [1, 2] * 5:\n"
        "    session(Net(), epochs=1, view=False).train(processes=processes)\n"
        "over = threading.Event()\n"
        "def busy():\n"
        "    while not over.is_set():\n"
        "        big @ big; time.sleep(0.001)\n"
        "thread = threading.Thread(target=busy, daemon=True); thread.start()"
    )
    result = notebook.ok("print(session(Net(), view=False).train(processes=2).state)", timeout=30)
    notebook.ok("over.set(); thread.join()")

    assert "finished\n" == result.text


def test_a_warm_start_is_quick(notebook: Kernel) -> None:
    """From the call to the first step of a second run it takes a fraction of a second (a tenth on a quiet machine)."""
    notebook.ok("def say(rank, step):\n    print(time.time()) if step == 1 else None\nstarts = []")
    code = "began = time.time(); session(Net(say), epochs=1, view=False).train(processes=2); print(began)"
    notebook.ok(code)
    seconds = []
    for _ in range(3):
        first, began = map(float, notebook.ok(code).text.split())
        seconds.append(first - began)

    print(f"from the call to the first step: {min(seconds):.3f} s")
    assert min(seconds) < 1.0


def test_fork_takes_what_cannot_be_pickled(notebook: Kernel) -> None:
    """start_method="fork" trains with a lock in the model, also after big products in the kernel."""
    notebook.ok("big = torch.randn(600, 600); big @ big\nlocked = Net(); locked.lock = threading.Lock()")
    result = notebook.run("session(locked, view=False).train(processes=2)")
    assert ["RecipeError"] == result.errors
    assert "session.model.lock is a lock" in result.traceback
    assert "start_method='fork'" in result.traceback

    forked = notebook.ok("print(session(locked, view=False, start_method='fork').train(processes=2).state)")

    assert "finished\n" == forked.text


@pytest.mark.slow
def test_spawn_is_a_choice(notebook: Kernel) -> None:
    """start_method="spawn" trains what cells define, from scratch."""
    result = notebook.ok("print(session(Net(), view=False, start_method='spawn').train(processes=2).state)")

    assert "finished\n" == result.text


UNPICKLABLE = """
class Rows(torch.utils.data.Dataset):
    def __init__(self):
        self.lock = threading.Lock()
    def __len__(self):
        return 100
    def __getitem__(self, i):
        return x[i], y[i]

guard = threading.Lock()
def guarded(outputs, target):
    with guard:
        return nn.functional.cross_entropy(outputs, target)

class Guarded(Net):
    def forward(self, x):
        with guard:
            return super().forward(x)
"""


@pytest.mark.parametrize(
    ("step", "path"),
    [
        ("add_data(train=Rows())", "session.train.dataset.lock"),
        ("add_model(nn.Sequential(Net(), Guarded()))", "session.model.1.forward (its guard)"),
        ("set_criterion(guarded)", "session.criterion.target (its guard)"),
        ("set_metrics(error=guarded)", "session.metrics.error (its guard)"),
        (
            "set_step(lambda model, criterion, batch: guarded(model(batch[0]), batch[1]))",
            "session.step (its guarded) (its guard)",
        ),
    ],
)
def test_what_cannot_travel_is_named(notebook: Kernel, step: str, path: str) -> None:
    """The message names the part by its path inside the session, and what to do."""
    notebook.ok(UNPICKLABLE)
    result = notebook.run(f"session(Net(), view=False).{step}.train(processes=2)")

    assert ["RecipeError"] == result.errors
    assert f"RecipeError: {path} is a lock, which cannot be sent to a worker" in result.traceback
    assert "__getstate__" in result.traceback


@pytest.mark.slow
def test_fifty_runs_leave_no_trace(notebook: Kernel) -> None:
    """Fifty runs in one kernel do not grow its memory, its file handles or its processes."""
    notebook.ok(
        "import gc, psutil\n"
        "def used():\n"
        "    gc.collect(); own = psutil.Process()\n"
        "    server = [p for p in own.children() if 'forkserver' in ' '.join(p.cmdline())]\n"
        "    both = [own, *server]\n"
        "    return [sum(p.memory_info().rss for p in both) / 2**20, sum(p.num_fds() for p in both),"
        " len(own.children(recursive=True)), own.num_threads()]\n"
        "def runs(count):\n"
        "    for _ in range(count):\n"
        "        session(Net(), epochs=1, view=False).train(processes=2)\n"
        "runs(10); before = used()"
    )
    notebook.ok("runs(50)", timeout=200)
    megabytes, files, processes, threads = eval(
        notebook.ok("print([now - then for now, then in zip(used(), before)])").text
    )

    print(f"after 50 runs: {megabytes:+.1f} MB, {files:+} file handles")
    assert megabytes < 15
    assert files < 5  # fifty, if a run kept one
    assert [0, 0] == [processes, threads]
