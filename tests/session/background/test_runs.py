"""A background run leaves the kernel free, and its handle knows how it stands and how it ended."""

import pytest
from harness.kernel import Kernel

LONG = "s = session(Net(slow), epochs=100, view=False)\nrun = s.train(background=True"
"""A run of 100 epochs of 0.2 seconds."""


def last(kernel: Kernel, code: str) -> str:
    """The last line that a cell prints."""
    return kernel.ok(code).text.splitlines()[-1]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_kernel_is_free_while_it_trains(notebook: Kernel, processes: int) -> None:
    """The cell returns at once, others answer, and the handle shows more rows each time it is looked at."""
    began = notebook.ok(f"{LONG}, processes={processes})\nprint(run.state)")
    counts = [0]
    while counts[-1] < 3:
        answer = notebook.ok("time.sleep(0.2); print(run.state, len(run.history))")
        state, count = answer.text.split()[-2:]
        assert "running" == state
        counts.append(int(count))
    ended = last(notebook, "run.stop(); print(run.wait().state, run.error, len(run.history) == len(s.history))")

    assert "running" in began.text
    assert began.seconds < 2.0  # an epoch takes 0.2, and 100 are to come
    assert sorted(counts) == counts
    assert "stopped None True" == ended


def test_it_comes_to_the_same_numbers_as_the_cell_that_waits(notebook: Kernel) -> None:
    """In the background and in the foreground, the same history and the same weights."""
    result = last(
        notebook,
        "a, b = session(Net()), session(Net())\n"
        "a.train(background=True).wait(); b.train(processes=1)\n"
        "columns = ['train_loss', 'valid_loss', 'lr']\n"
        "print(a.run.state, a.history[columns].equals(b.history[columns]),"
        " torch.equal(a.model.layer.weight, b.model.layer.weight))",
    )

    assert "finished True True" == result


def test_a_run_is_shown_in_later_cells(notebook: Kernel) -> None:
    """Under the cell that trains the view is enough; in a later one the run says how it ended."""
    training = notebook.ok("s = session(Net(), epochs=2, view='auto'); s.train(processes=1)")
    later = notebook.ok("s.run")

    assert "Run(" not in training.text
    assert later.text.startswith("Run(finished: 2 epochs, best valid_loss")


def test_wait_takes_a_time(notebook: Kernel) -> None:
    """`wait` with a timeout returns, and leaves the run as it is."""
    result = notebook.ok(f"{LONG})\nbegan = time.time(); print(run.wait(0.1).state, time.time() - began < 1)")
    notebook.ok("run.stop(); run.wait()")

    assert "running True" in result.text


def test_a_failed_run_says_so_in_its_view_and_once_more(notebook: Kernel) -> None:
    """The view ends with the user's exception, the next use of the session warns once, and the handle has the error."""
    notebook.ok(
        "def bad(rank, step):\n    time.sleep(0.05)\n    if step == 12:\n        raise ValueError('bad <b>&</b> batch')"
    )
    cell = notebook.ok("s = session(Net(bad), view='auto'); run = s.train(background=True)")
    shown = notebook.ok("while run.state == 'running':\n    time.sleep(0.05)\ntime.sleep(0.5)").displays
    use = "import warnings\nwarnings.simplefilter('always')\ns.predict(x[:1]); print()"
    told = [notebook.ok(use).stderr.count("The background run failed") for _ in range(2)]
    error = last(notebook, "print(run.state, type(run.error).__name__, len(s.history), 'bad <b>' in str(run.error))")
    waited = notebook.run("run.wait()")

    record = [display for display in shown if display.get("text/html")][-1]
    assert 2 == len(cell.displays)  # the view, and what stands in its place on a page without widgets
    assert "failed" in record["text/plain"]
    assert "bad &lt;b&gt;&amp;&lt;/b&gt; batch" in record["text/html"]
    assert [1, 0] == told
    assert "failed ValueError 1 True" == error
    assert "if step == 12" not in waited.text
    assert "bad <b>&</b> batch" in waited.traceback
    assert "finished" == last(notebook, "s.model.before = slow; print(s.train(epochs=1).state)")


def test_an_error_that_was_waited_for_is_not_reported_again(notebook: Kernel) -> None:
    """Who has seen the exception from `wait` is not warned of it afterwards."""
    notebook.ok("def bad(rank, step):\n    raise ValueError('at once')\ns = session(Net(bad), view=False)")
    waited = notebook.run("s.train(background=True).wait()")
    used = notebook.ok("import warnings\nwarnings.simplefilter('error')\ns.predict(x[:1]); print(s.run.state)")

    assert ["ValueError"] == waited.errors
    assert "failed" == used.text.splitlines()[-1]


@pytest.mark.parametrize(
    "use", ["s.train()", "s.traverse(print)", "s.reset()", "s.lr_find()", "s.load_epoch(0)", "s.save('s.pt')"]
)
def test_what_would_mix_two_trainings_is_refused(notebook: Kernel, use: str) -> None:
    """A second training on a running session is refused in a sentence that says what to type."""
    notebook.ok(f"{LONG})")
    refused = notebook.run(use)
    state = last(notebook, "print(run.state); run.stop(); run.wait(); print(run.state)")

    assert ["RecipeError"] == refused.errors
    assert "a run of this session is running" in refused.traceback
    assert "session.run.wait()" in refused.traceback
    assert "session.run.stop()" in refused.traceback
    assert "stopped" == state


def test_another_session_may_train_meanwhile(notebook: Kernel) -> None:
    """Two sessions do not disturb each other."""
    result = last(
        notebook,
        f"{LONG})\n"
        "other = session(Net()); other.train(background=True); other.run.wait(); print(run.state)\n"
        "run.stop(); run.wait(); print(other.run.state, run.state)",
    )

    assert "finished stopped" == result


def test_a_stopped_run_continues_in_the_background(notebook: Kernel) -> None:
    """Stopped anywhere and continued, it equals a run that was left alone."""
    result = last(
        notebook,
        "s = session(Net(slow), epochs=4)\n"
        "s.train(background=True); time.sleep(0.5); s.run.stop(); s.run.wait()\n"
        "done = int((s.history.get('fraction', s.history.epoch * 0 + 1) == 1).sum())\n"
        "s.train(epochs=4 - done, background=True).wait()\n"
        "w = session(Net(), epochs=4); w.train(processes=1)\n"
        "print(list(s.history.epoch), abs(s.history.valid_loss - w.history.valid_loss).max() < 1e-12,"
        " torch.allclose(s.model.layer.weight, w.model.layer.weight, atol=1e-12))",
    )

    assert "[0, 1, 2, 3] True True" == result


def test_the_session_answers_with_the_weights_of_the_last_row(notebook: Kernel) -> None:
    """While it trains, predict, evaluate and plot work; in a pause they tell of the row that is shown."""
    result = notebook.ok(
        f"{LONG}, processes=2)\n"
        "while len(run.history) < 2:\n    time.sleep(0.02)\n"
        "outputs, losses = s.predict(x), s.evaluate('valid')\n"
        "print(outputs.shape, sorted(losses), type(s.plot()).__name__)\n"
        "run.pause(); time.sleep(1)\n"
        "row = s.history.iloc[-1]\n"
        "print(run.state, abs(s.evaluate('valid')['loss'] - row.valid_loss) < 1e-9)\n"
        "same = torch.equal(s.predict(x), s.model(x).detach())\n"
        "run.stop(); run.wait(); print(same)"
    )

    lines = result.text.splitlines()
    assert "torch.Size([1000, 3]) ['loss'] InlineFigure" in lines
    assert "paused True" in lines
    assert "True" == lines[-1]


def test_what_workers_print_is_shown_under_the_run(notebook: Kernel) -> None:
    """Prints of a background run come out, once, while other cells run."""
    notebook.ok("def tell(rank, step):\n    if step == 3:\n        print('third step')\n    time.sleep(0.05)")
    cell = notebook.ok("s = session(Net(tell), epochs=1, view='auto'); s.train(background=True)")
    later = notebook.ok("s.show(); s.run.wait()")

    assert 1 == (cell.text + later.text).count("third step")
