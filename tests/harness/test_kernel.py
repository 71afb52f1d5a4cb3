"""The kernel that the other tests drive is itself what it says."""

import signal

import pytest

from harness.kernel import Kernel


def test_run_brings_text_home(kernel: Kernel) -> None:
    """A cell's prints and its last expression come back as text."""
    result = kernel.run("print('one'); 1 + 1")

    assert "one\n2" == result.text


def test_run_brings_errors_home(kernel: Kernel) -> None:
    """An exception comes back with its name and the line of the cell."""
    result = kernel.run("wrong = 1\nwrong / 0")

    assert ["ZeroDivisionError"] == result.errors
    assert "wrong / 0" in result.traceback


def test_ok_refuses_errors(kernel: Kernel) -> None:
    """A cell that must not raise fails the test with the cell's own traceback."""
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        kernel.ok("1 / 0")


def test_messages_have_time_and_size(kernel: Kernel) -> None:
    """Messages come in order, with rising times and with at least the bytes of their text."""
    result = kernel.run("import time\nfor i in range(3):\n    print('x' * 1000, flush=True); time.sleep(0.1)")

    streams = result.of("stream")
    assert sorted(message.at for message in streams) == [message.at for message in streams]
    assert all(message.size > len(message.content["text"]) for message in streams)
    assert streams[-1].at < result.seconds


def test_displays_hold_updates(kernel: Kernel) -> None:
    """A display and its update come back as mime bundles in order."""
    result = kernel.run(
        "from IPython.display import display\n"
        "handle = display({'text/plain': 'a'}, raw=True, display_id=True)\n"
        "handle.update({'text/plain': 'b'}, raw=True)"
    )

    assert [{"text/plain": "a"}, {"text/plain": "b"}] == result.displays


def test_interrupt_reaches_a_running_cell(kernel: Kernel) -> None:
    """A cell can be waited for in its middle, and interrupted there."""
    cell = kernel.start("import time\nprint('begun', flush=True)\ntime.sleep(60)")
    cell.until(lambda result: "begun" in result.text)
    kernel.interrupt()

    assert ["KeyboardInterrupt"] == cell.finish().errors
    assert "2" == kernel.ok("1 + 1").text


def test_listen_hears_threads(kernel: Kernel) -> None:
    """What a thread displays after its cell has ended is heard."""
    kernel.ok(
        "import threading\n"
        "from IPython.display import display\n"
        "handle = display({'text/plain': 'a'}, raw=True, display_id=True)\n"
        "threading.Timer(0.3, handle.update, [{'text/plain': 'later'}], {'raw': True}).start()"
    )

    assert [{"text/plain": "later"}] == kernel.listen(1).displays


def test_processes_are_found_after_their_parent_died(kernel: Kernel) -> None:
    """A process that outlives the kernel is found, though it is nobody's child any more."""
    started = kernel.ok("import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True).pid")
    assert [int(started.text)] == [process.pid for process in kernel.processes()]

    kernel.kill()

    assert [int(started.text)] == [process.pid for process in kernel.processes()]


def test_no_process_is_left_after_an_end(kernel: Kernel) -> None:
    """A process that ended is not counted, also where nobody waited for it."""
    pid = int(kernel.ok("import subprocess; sleeper = subprocess.Popen(['sleep', '60']); sleeper.pid").text)
    kernel.ok(f"import os; os.kill({pid}, {signal.SIGKILL:d})")

    assert [] == [process.pid for process in kernel.processes()]
