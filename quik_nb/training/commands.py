"""Commands to a running training: stop, pause, resume, set the learning rate, write a checkpoint.

`Commands` is the interface. `LocalCommands` is for a training in this process. With workers, commands go through a
small memory-mapped file (`SharedCommands`), so that all ranks follow them at the same step without extra communication:

Rank 0 picks up a request at the start of step s and schedules it for step s + 1. After that, the gradients of step s
are averaged over all ranks. A rank at the start of step s + 1 has therefore waited for rank 0's gradients of step s,
which were sent after the request was scheduled: every rank sees it there, and none follows it earlier. With GPUs, the
processes run ahead of the averaging by less than `MAX_STEPS_AHEAD` steps, and a request is scheduled for step
s + MAX_STEPS_AHEAD.
"""

import mmap
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

NEVER = 2**62
"""A step number that no training reaches."""
MAX_STEPS_AHEAD = 4
"""How many steps a process may queue on its GPU ahead of the last step that all ranks have completed."""
POLL_SECONDS = 0.05
"""How often a paused rank checks whether it may continue."""


@dataclass
class DueCommands:
    """The commands to follow at the start of a step."""

    stop: bool = False
    pause: bool = False
    lr: float | None = None
    """the new learning rate of the first parameter group; None for no change"""
    checkpoint: bool = False


class Commands(Protocol):
    """Requests to a training, followed at the next step boundary, at the same step on all ranks."""

    def stop(self) -> None:
        """Stop the run and save its state."""

    def pause(self) -> None:
        """Pause the run until `resume` or `stop`."""

    def resume(self) -> None:
        """Continue after a pause."""

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the first parameter group; the others are scaled by the same factor."""

    def request_checkpoint(self) -> None:
        """Save the state within an epoch; requested by rank 0 itself."""

    @property
    def pending(self) -> bool:
        """Whether `at` may return a command: a cheap check for each step."""

    @property
    def stop_requested(self) -> bool:
        """Whether to cut validation short; ranks may see it at different batches, and agree afterwards."""

    def at(self, step: int) -> DueCommands:
        """The commands due at the start of a step, equal on all ranks; a learning rate is returned only once."""


class LocalCommands:
    """Commands to a training in this process."""

    def __init__(self) -> None:
        self._stop = False
        self._pause = False
        self._lr: float | None = None
        self._checkpoint = False
        self._pending = False

    def stop(self) -> None:
        """Stop the run and save its state."""
        self._stop = self._pending = True

    def pause(self) -> None:
        """Pause the run until `resume` or `stop`."""
        self._pause = self._pending = True

    def resume(self) -> None:
        """Continue after a pause."""
        self._pause = False

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the first parameter group; the others are scaled by the same factor."""
        self._lr = float(lr)
        self._pending = True

    def request_checkpoint(self) -> None:
        """Save the state within an epoch."""
        self._checkpoint = self._pending = True

    @property
    def pending(self) -> bool:
        """Whether there is a command to follow."""
        return self._pending

    @property
    def stop_requested(self) -> bool:
        """Whether to cut validation short."""
        return self._stop

    def at(self, step: int) -> DueCommands:
        """The commands due at the start of a step; a learning rate is returned only once."""
        self._pending = False  # before they are read, since an interrupt may come at any line
        due = DueCommands(self._stop, self._pause, self._lr, self._checkpoint)
        self._lr, self._checkpoint = None, False

        if due.stop or due.pause:  # these stay in effect
            self._pending = True
        return due


STOP, PAUSE, LR, LR_COUNT, CHECKPOINT = range(5)
"""Words for requests: whether to stop, to pause, the learning rate, how many were set, whether to checkpoint."""
STOP_AT, PAUSE_AT, AGREED_LR, LR_AT, AGREED_LR_COUNT, CHECKPOINT_AT = range(8, 14)
"""Words for what rank 0 has scheduled: the steps at which to stop, to pause, to set the learning rate and to
checkpoint; that learning rate, and the number of learning rates picked up so far."""


class SharedCommands:
    """Commands across processes: a small file, memory-mapped by the launching process and by each rank.

    The launching process writes requests, rank 0 writes what is scheduled, the other ranks only read. Every word is
    eight aligned bytes and written atomically; a counter is written after the value that it counts.

    Args:
        path: of the file.
        rank: of this process; None for the launching process.
        ahead: number of steps after which a request that rank 0 picks up is followed.
    """

    SIZE = 128
    """bytes"""

    def __init__(self, path: Path, rank: int | None = None, ahead: int = 1) -> None:
        self.rank = rank
        self.ahead = ahead
        with path.open("r+b") as file:
            self.map = mmap.mmap(file.fileno(), self.SIZE)
        self.words = memoryview(self.map).cast("q")
        self.rates = memoryview(self.map).cast("d")
        self.lr_count = 0
        """learning rates that this rank has followed"""

    @classmethod
    def create(cls, path: Path) -> "SharedCommands":
        """Create the file, in the launching process, before any rank opens it."""
        path.write_bytes(b"\0" * cls.SIZE)
        commands = cls(path)
        for word in (STOP_AT, PAUSE_AT, LR_AT, CHECKPOINT_AT):
            commands.words[word] = NEVER
        return commands

    def close(self) -> None:
        """Close the file; later requests, such as by a late interrupt, have no effect."""
        words, rates = self.words, self.rates
        unused = memoryview(bytearray(self.SIZE))
        self.words, self.rates = unused.cast("q"), unused.cast("d")
        words.release()
        rates.release()
        self.map.close()

    # ------------------------------------------------------------------ requests

    def stop(self) -> None:
        """Stop the run and save its state."""
        self.words[STOP] = 1

    def pause(self) -> None:
        """Pause the run until `resume` or `stop`."""
        self.words[PAUSE] = 1

    def resume(self) -> None:
        """Continue after a pause."""
        self.words[PAUSE] = 0

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the first parameter group; the others are scaled by the same factor."""
        self.rates[LR] = float(lr)
        self.words[LR_COUNT] += 1

    def request_checkpoint(self) -> None:
        """Save the state within an epoch; requested by rank 0 itself."""
        self.words[CHECKPOINT] = 1

    @property
    def paused(self) -> bool:
        """Whether a pause was requested and not yet ended."""
        return bool(self.words[PAUSE])

    # ------------------------------------------------------------------ what ranks see

    @property
    def pending(self) -> bool:
        """Always True, since reading the map takes less than a microsecond."""
        return True

    @property
    def stop_requested(self) -> bool:
        """Whether to cut validation short; ranks may see it at different batches, and agree afterwards."""
        return bool(self.words[STOP])

    def at(self, step: int) -> DueCommands:
        """The commands due at the start of a step, equal on all ranks; rank 0 also picks up new requests."""
        if self.rank == 0:
            self._schedule(step)

        # read pause before stop: rank 0 ends a pause after it wrote the stop, so a rank that misses one sees the other
        pause = step >= self.words[PAUSE_AT]
        due = DueCommands(step >= self.words[STOP_AT], pause, checkpoint=step == self.words[CHECKPOINT_AT])

        count = self.words[AGREED_LR_COUNT]
        if count > self.lr_count and step >= self.words[LR_AT]:
            due.lr, self.lr_count = self.rates[AGREED_LR], count
        return due

    def _schedule(self, step: int) -> None:
        """Schedule the step at which each new request is followed.

        | request | scheduled for |
        |---|---|
        | stop | `ahead` steps later; in a pause this step, since all ranks are polling |
        | pause | `ahead` steps later, until it is resumed |
        | learning rate | `ahead` steps later, the next one only when all ranks have the last |
        | checkpoint | `ahead` steps later, once |
        """
        words = self.words

        if words[STOP] and words[STOP_AT] == NEVER:
            in_pause = words[PAUSE_AT] <= step
            words[STOP_AT] = step if in_pause else step + self.ahead

        if not words[PAUSE]:
            words[PAUSE_AT] = NEVER
        elif words[PAUSE_AT] == NEVER:
            words[PAUSE_AT] = step + self.ahead

        if words[CHECKPOINT]:
            words[CHECKPOINT] = 0
            words[CHECKPOINT_AT] = step + self.ahead

        requested = words[LR_COUNT]
        all_have_the_last = words[LR_AT] == NEVER or step > words[LR_AT]
        if requested > words[AGREED_LR_COUNT] and all_have_the_last:
            self.rates[AGREED_LR] = self.rates[LR]
            words[LR_AT] = step + self.ahead
            words[AGREED_LR_COUNT] = requested


def wait_while_paused(commands: Commands, step: int) -> DueCommands:
    """Sleep while the run is paused and not stopped; returns the commands due after that."""
    due = commands.at(step)
    while due.pause and not due.stop:
        time.sleep(POLL_SECONDS)
        later = commands.at(step)

        # a learning rate and a checkpoint are returned only once, so remember those that came with the pause
        lr = due.lr if later.lr is None else later.lr
        due = replace(later, lr=lr, checkpoint=due.checkpoint or later.checkpoint)
    return due
