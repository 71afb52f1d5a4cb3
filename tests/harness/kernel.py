"""A real ipykernel driven from outside: cells go in, every message comes back with its time and its size on the wire.

The processes that a kernel starts are found by a mark in their environment, so that also those are seen whose parent
is gone. What is not here: front ends (see `lab`) and the contents of widgets beyond the messages that carry them.
"""

import os
import queue
import re
import signal
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.manager import KernelManager

MARK = "QUIK_NB_TEST_KERNEL"
"""Environment variable that the kernel and all that it starts inherit."""


@dataclass(frozen=True)
class Message:
    """One message on the iopub channel."""

    kind: str
    """message type, such as 'stream', 'comm_msg' or 'update_display_data'"""
    content: dict[str, Any]
    at: float
    """seconds after the cell was sent"""
    size: int
    """bytes on the wire"""


@dataclass(frozen=True)
class Result:
    """What came back from a cell, or from a stretch of time."""

    messages: tuple[Message, ...]
    seconds: float
    """from sending the cell until the kernel was idle again"""

    def of(self, *kinds: str) -> list[Message]:
        """The messages of these types, in order."""
        return [message for message in self.messages if message.kind in kinds]

    @property
    def text(self) -> str:
        """All that was printed, and the text of a last expression."""
        found = self.of("stream", "execute_result")
        return "".join(m.content["text"] if m.kind == "stream" else m.content["data"]["text/plain"] for m in found)

    @property
    def stderr(self) -> str:
        """What was printed to stderr: warnings, and IPython's own complaints about a magic."""
        return "".join(m.content["text"] for m in self.of("stream") if m.content["name"] == "stderr")

    @property
    def displays(self) -> list[dict[str, Any]]:
        """The mime bundles of displays and of their updates, in order."""
        found = self.of("display_data", "update_display_data", "execute_result")
        return [message.content["data"] for message in found]

    @property
    def errors(self) -> list[str]:
        """Names of the exceptions that the cell showed."""
        return [message.content["ename"] for message in self.of("error")]

    @property
    def traceback(self) -> str:
        """What the cell showed of its exceptions, without colours."""
        lines = [line for message in self.of("error") for line in message.content["traceback"]]
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines))


class Cell:
    """A cell that was sent and may still run: wait for something in it, act, then let it finish."""

    def __init__(self, kernel: "Kernel", code: str) -> None:
        self.kernel = kernel
        self.messages: list[Message] = []
        self.idle = False
        self.sent = time.monotonic()
        self._id = kernel.client.execute(code, allow_stdin=kernel.interactive)

    def until(self, condition: Callable[[Result], bool], timeout: float = 60) -> Result:
        """Take in messages until the condition holds for what came so far."""
        deadline = time.monotonic() + timeout
        while not condition(self.so_far):
            assert not self.idle, f"the cell ended first\n{self.so_far.text}\n{self.so_far.traceback}"
            self._receive(deadline, "the condition did not hold")
        return self.so_far

    def finish(self, timeout: float = 60) -> Result:
        """Take in messages until the kernel has run the cell to its end."""
        deadline = time.monotonic() + timeout
        while not self.idle:
            self._receive(deadline, "the cell was still running")
        result = self.so_far
        with suppress(queue.Empty):  # an interrupt may hit the kernel between the end of a cell and its reply
            self.kernel.client.get_shell_msg(timeout=5)
        return result

    @property
    def so_far(self) -> Result:
        """What came back until now."""
        return Result(tuple(self.messages), time.monotonic() - self.sent)

    def _receive(self, deadline: float, complaint: str) -> None:
        received = self.kernel.receive(0.1)
        if received is not None:
            self._sort(*received)
        elif not self.kernel.alive:
            raise AssertionError(f"the kernel died\n{self.so_far.text}")
        elif time.monotonic() > deadline:
            raise AssertionError(f"{complaint} after its time\n{self.so_far.text}\n{self.so_far.traceback}")

    def _sort(self, raw: dict[str, Any], size: int) -> None:
        kind, content = raw["header"]["msg_type"], raw["content"]
        ours = raw["parent_header"].get("msg_id") == self._id
        if ours and kind == "status":
            self.idle = content["execution_state"] == "idle"
        elif kind not in ("status", "execute_input"):
            # what a thread of an earlier cell sends in the meantime is on the wire too, so it counts
            self.messages.append(Message(kind, content, time.monotonic() - self.sent, size))


class Kernel:
    """A kernel of its own, in a folder of its own, until `close`.

    Args:
        folder: its working folder.
        env: variables of its environment, beside those of this process.
        interactive: whether cells come, as from a person's page, with a way to ask that person something.
    """

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None, interactive: bool = False) -> None:
        self.interactive = interactive
        self._mark = uuid.uuid4().hex
        settings = {"IPYTHONDIR": str(folder / ".ipython"), MARK: self._mark, **(env or {})}
        self._manager = KernelManager(kernel_name="python3")
        self._manager.start_kernel(env=os.environ | settings, cwd=str(folder))
        self.client = self._manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.pid: int = self._manager.provisioner.pid  # type: ignore[union-attr]

    def start(self, code: str) -> Cell:
        """Send a cell and return at once."""
        return Cell(self, code)

    def run(self, code: str, timeout: float = 60) -> Result:
        """Run a cell to its end, be it good or bad."""
        return self.start(code).finish(timeout)

    def ok(self, code: str, timeout: float = 60) -> Result:
        """Run a cell that must not raise."""
        result = self.run(code, timeout)
        assert result.errors == [], result.traceback
        return result

    def listen(self, seconds: float) -> Result:
        """Take in what is sent while no cell runs, such as by a background thread."""
        began = time.monotonic()
        messages = []
        while (left := began + seconds - time.monotonic()) > 0:
            received = self.receive(left)
            if received is not None and received[0]["header"]["msg_type"] != "status":
                raw, size = received
                at = time.monotonic() - began
                messages.append(Message(raw["header"]["msg_type"], raw["content"], at, size))
        return Result(tuple(messages), time.monotonic() - began)

    def receive(self, timeout: float) -> tuple[dict[str, Any], int] | None:
        """The next iopub message and its size in bytes; None where there is none in time (seconds)."""
        socket = self.client.iopub_channel.socket
        if not socket.poll(int(timeout * 1000)):
            return None
        frames = socket.recv_multipart()
        _, parts = self.client.session.feed_identities(frames)
        return self.client.session.deserialize(parts), sum(map(len, frames))

    def interrupt(self) -> None:
        """What the front end's interrupt button does: SIGINT to the kernel's whole process group."""
        self._manager.interrupt_kernel()

    def shut_down(self) -> None:
        """What the front end's "Shut down" does: ask the kernel to end, and wait until it has (10 s at most)."""
        self._manager.shutdown_wait_time = 10.0
        self._manager.shutdown_kernel(now=False)

    def kill(self) -> None:
        """End the kernel, and only it, the hard way."""
        os.kill(self.pid, signal.SIGKILL)

    @property
    def alive(self) -> bool:
        """Whether the kernel's process runs."""
        return bool(self._manager.is_alive())

    def processes(self) -> list[psutil.Process]:
        """All processes that the kernel started, directly or not, and that still run."""
        return [process for process in psutil.process_iter() if process.pid != self.pid and self._started(process)]

    def _started(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:  # another user's, or gone while we looked
            return False

    def close(self) -> None:
        """End the kernel and whatever it left."""
        self.client.stop_channels()
        self._manager.shutdown_kernel(now=True)
        end(self.processes())


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill processes; one that is gone already is fine."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
