"""What may be done to a run on its way: stop, pause, go on, another learning rate.

`Controls` is the plain form for a training in this process. With workers the same four words are written into a small
shared file (`SharedControls`), so that all ranks follow at the same step without a message of their own:

rank 0 takes up a request at the top of step s and notes "from step s+1 on". The gradients of step s are averaged over
all ranks after that, so whoever stands at the top of step s+1 has waited for rank 0's part of step s, which was sent
after the note: every rank sees it there, and none obeys it earlier.
"""

import mmap
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEVER = 2**62
POLL_SECONDS = 0.05
"""How often a paused rank looks whether it may go on."""


@dataclass
class Orders:
    """What holds at a step."""

    stop: bool = False
    pause: bool = False
    lr: float | None = None


class Controls:
    """Requests to a training in this process; each is obeyed at the next step boundary."""

    def __init__(self) -> None:
        self.stopping = False
        self.pausing = False
        self._lr: float | None = None
        self.pending = False
        """whether there is anything to obey: the loop's only question at each step"""

    def stop(self) -> None:
        """End the run and keep everything."""
        self.stopping = self.pending = True

    def pause(self) -> None:
        """Hold the run."""
        self.pausing = self.pending = True

    def resume(self) -> None:
        """Go on after a pause."""
        self.pausing = False

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all parameter groups."""
        self._lr, self.pending = float(lr), True

    def at(self, step: int) -> Orders:
        """The orders at the top of a step; a learning rate is handed out once."""
        orders = Orders(self.stopping, self.pausing, self._lr)
        self._lr, self.pending = None, self.stopping or self.pausing
        return orders

    @property
    def hurry(self) -> bool:
        """Whether validation should be cut short."""
        return self.stopping


_REQUEST = struct.Struct("<qqdq")  # stop, pause, lr, number of lr requests
_AGREED = struct.Struct("<qqdqq")  # stop from step, pause from step, lr, lr from step, number of lr requests


class SharedControls:
    """Controls over process borders: a small file, mapped by the launching process and by each rank.

    The launching process writes requests, rank 0 writes what is agreed, the others only read.
    """

    SIZE = 128
    AGREED_AT = 64

    def __init__(self, path: Path, rank: int | None = None, create: bool = False) -> None:
        if create:
            path.write_bytes(b"\0" * self.SIZE)
        with path.open("r+b") as file:
            self.map = mmap.mmap(file.fileno(), self.SIZE)
        self.rank = rank
        self.seen_lr = 0
        if create:
            self._write_agreed(NEVER, NEVER, 0.0, NEVER, 0)

    def stop(self) -> None:
        """End the run and keep everything."""
        _, pause, lr, count = self._request()
        _REQUEST.pack_into(self.map, 0, 1, pause, lr, count)

    def pause(self) -> None:
        """Hold the run."""
        stop, _, lr, count = self._request()
        _REQUEST.pack_into(self.map, 0, stop, 1, lr, count)

    def resume(self) -> None:
        """Go on after a pause."""
        stop, _, lr, count = self._request()
        _REQUEST.pack_into(self.map, 0, stop, 0, lr, count)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all parameter groups."""
        stop, pause, _, count = self._request()
        _REQUEST.pack_into(self.map, 0, stop, pause, float(lr), count + 1)

    @property
    def pending(self) -> bool:
        """Always looked at: reading the map costs less than a microsecond."""
        return True

    @property
    def hurry(self) -> bool:
        """Whether validation should be cut short; ranks may see it at different batches, and agree afterwards."""
        return bool(self._request()[0])

    def at(self, step: int) -> Orders:
        """The orders at the top of a step, equal on all ranks; rank 0 also takes up new requests."""
        if self.rank == 0:
            self._agree(step)
        stop_at, pause_at, lr, lr_at, count = self._read(_AGREED, self.AGREED_AT)
        orders = Orders(step >= stop_at, step >= pause_at)
        if step >= lr_at and count > self.seen_lr:
            orders.lr, self.seen_lr = lr, count
        return orders

    def _agree(self, step: int) -> None:
        stop, pause, new_lr, count = self._request()
        stop_at, pause_at, lr, lr_at, agreed = self._read(_AGREED, self.AGREED_AT)
        if stop and stop_at == NEVER:
            stop_at = step if pause_at <= step else step + 1  # in a pause all ranks look here, at this very step
        if pause and pause_at == NEVER:
            pause_at = step + 1
        if not pause:
            pause_at = NEVER
        if count > agreed and (lr_at == NEVER or step > lr_at):  # one at a time: all have the last before the next
            lr, lr_at, agreed = new_lr, step + 1, count
        self._write_agreed(stop_at, pause_at, lr, lr_at, agreed)

    def _read(self, fields: struct.Struct, offset: int) -> tuple[Any, ...]:
        """Fields that another process may be writing: read until two readings agree."""
        values = fields.unpack_from(self.map, offset)
        while (again := fields.unpack_from(self.map, offset)) != values:
            values = again
        return values

    def _request(self) -> tuple[Any, ...]:
        return self._read(_REQUEST, 0)

    def _write_agreed(self, stop_at: int, pause_at: int, lr: float, lr_at: int, count: int) -> None:
        _AGREED.pack_into(self.map, self.AGREED_AT, stop_at, pause_at, lr, lr_at, count)


def wait_while_paused(controls: Controls | SharedControls, step: int) -> Orders:
    """Sleep until the run may go on or must stop; the orders that then hold."""
    orders = controls.at(step)
    while orders.pause and not orders.stop:
        time.sleep(POLL_SECONDS)
        orders = controls.at(step)
    return orders
