"""What may be done to a run on its way: stop, pause, resume, another learning rate, a checkpoint.

`Commands` is what a training and whoever commands it know. `LocalCommands` is for a training in this process. With
workers the same words are written into a small shared file (`SharedCommands`), so that all ranks follow at the same
step without a message of their own:

rank 0 picks up a request at the start of step s and schedules it for step s + 1. The gradients of step s are averaged
over all ranks after that, so whoever stands at the start of step s + 1 has waited for rank 0's part of step s, which
was sent after the note: every rank sees it there, and none follows it earlier. With GPUs the hosts run ahead of the
averaging; they wait for that of `AHEAD` steps before, and the request is scheduled for step s + AHEAD.
"""

import mmap
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

NEVER = 2**62
"""A step that no training comes to."""
AHEAD = 4
"""How many steps a rank with a GPU may be ahead of what the GPUs have done together."""
POLL_SECONDS = 0.05
"""How often a paused rank looks whether it may go on."""


@dataclass
class DueCommands:
    """What is to be done at the start of a step."""

    stop: bool = False
    pause: bool = False
    lr: float | None = None
    """the new learning rate of the first parameter group; None for no change"""
    checkpoint: bool = False


class Commands(Protocol):
    """Requests to a training, obeyed at the next step boundary, by all ranks at the same one."""

    def stop(self) -> None:
        """End the run and keep everything."""

    def pause(self) -> None:
        """Hold the run until `resume` or `stop`."""

    def resume(self) -> None:
        """Go on after a pause."""

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the first parameter group; the others are scaled alike."""

    def request_checkpoint(self) -> None:
        """Keep the state in the middle of an epoch; rank 0 of the training asks for it itself."""

    @property
    def pending(self) -> bool:
        """Whether `at` may have something to say: all that a training asks at each step."""

    @property
    def stop_requested(self) -> bool:
        """Whether validation should be cut short; ranks may see it at different batches, and agree afterwards."""

    def at(self, step: int) -> DueCommands:
        """What is due at the start of a step, equal on all ranks; a learning rate is given once."""


class LocalCommands:
    """Commands to a training in this process."""

    def __init__(self) -> None:
        self._stop = False
        self._pause = False
        self._lr: float | None = None
        self._checkpoint = False
        self._pending = False

    def stop(self) -> None:
        """End the run and keep everything."""
        self._stop = self._pending = True

    def pause(self) -> None:
        """Hold the run until `resume` or `stop`."""
        self._pause = self._pending = True

    def resume(self) -> None:
        """Go on after a pause."""
        self._pause = False

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the first parameter group; the others are scaled alike."""
        self._lr = float(lr)
        self._pending = True

    def request_checkpoint(self) -> None:
        """Keep the state in the middle of an epoch."""
        self._checkpoint = self._pending = True

    @property
    def pending(self) -> bool:
        """Whether there is anything to obey."""
        return self._pending

    @property
    def stop_requested(self) -> bool:
        """Whether validation should be cut short."""
        return self._stop

    def at(self, step: int) -> DueCommands:
        """What is due at the start of a step; a learning rate is given once."""
        self._pending = False  # before they are read: an interrupt may come at any line
        due = DueCommands(self._stop, self._pause, self._lr, self._checkpoint)
        self._lr, self._checkpoint = None, False

        if due.stop or due.pause:  # which hold until further notice
            self._pending = True
        return due


STOP, PAUSE, LR, LR_COUNT, CHECKPOINT = range(5)
"""Words of a request: whether to stop, to pause, the rate, how many rates were set, whether to write a checkpoint."""
STOP_AT, PAUSE_AT, AGREED_LR, LR_AT, AGREED_LR_COUNT, CHECKPOINT_AT = range(8, 14)
"""Words of what rank 0 scheduled: the steps at which to stop, to pause, to set the rate and to checkpoint; that rate,
and how many of those that were set it has picked up."""


class SharedCommands:
    """Commands over process borders: a small file, mapped by the launching process and by each rank.

    The launching process writes requests, rank 0 writes what is agreed, the others only read. Every word is eight
    aligned bytes and is written at once, so nobody reads half of one; a number is written last of what it counts.

    Args:
        path: of the file.
        rank: of this process; None for the launching one.
        ahead: steps between a request that rank 0 picks up and its step.
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
        self.rates_given = 0

    @classmethod
    def create(cls, path: Path) -> "SharedCommands":
        """Make the file, in the launching process and before any rank opens it."""
        path.write_bytes(b"\0" * cls.SIZE)
        made = cls(path)
        for word in (STOP_AT, PAUSE_AT, LR_AT, CHECKPOINT_AT):
            made.words[word] = NEVER
        return made

    def close(self) -> None:
        """Let go of the file; what is asked for afterwards, such as by a late interrupt, goes nowhere."""
        words, rates = self.words, self.rates
        nowhere = memoryview(bytearray(self.SIZE))
        self.words, self.rates = nowhere.cast("q"), nowhere.cast("d")
        words.release()
        rates.release()
        self.map.close()

    # ------------------------------------------------------------------ requests

    def stop(self) -> None:
        """End the run and keep everything."""
        self.words[STOP] = 1

    def pause(self) -> None:
        """Hold the run until `resume` or `stop`."""
        self.words[PAUSE] = 1

    def resume(self) -> None:
        """Go on after a pause."""
        self.words[PAUSE] = 0

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the first parameter group; the others are scaled alike."""
        self.rates[LR] = float(lr)
        self.words[LR_COUNT] += 1

    def request_checkpoint(self) -> None:
        """Keep the state in the middle of an epoch; rank 0 asks for it itself."""
        self.words[CHECKPOINT] = 1

    @property
    def paused(self) -> bool:
        """Whether a pause was asked for and not yet ended."""
        return bool(self.words[PAUSE])

    # ------------------------------------------------------------------ what ranks see

    @property
    def pending(self) -> bool:
        """Always looked at: reading the map costs less than a microsecond."""
        return True

    @property
    def stop_requested(self) -> bool:
        """Whether validation should be cut short; ranks may see it at different batches, and agree afterwards."""
        return bool(self.words[STOP])

    def at(self, step: int) -> DueCommands:
        """What is due at the start of a step, equal on all ranks; rank 0 also picks up new requests."""
        if self.rank == 0:
            self._schedule(step)

        # pause before stop: rank 0 ends a pause after it wrote the stop, so who misses the pause sees the stop
        pause = step >= self.words[PAUSE_AT]
        due = DueCommands(step >= self.words[STOP_AT], pause, checkpoint=step == self.words[CHECKPOINT_AT])

        count = self.words[AGREED_LR_COUNT]
        if count > self.rates_given and step >= self.words[LR_AT]:
            due.lr, self.rates_given = self.rates[AGREED_LR], count
        return due

    def _schedule(self, step: int) -> None:
        """Say at which step each new request is followed.

        | request | scheduled for |
        |---|---|
        | stop | `ahead` steps later; this very step in a pause, where all ranks look |
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
    """Sleep until the run may go on or must stop; what is due then."""
    due = commands.at(step)
    while due.pause and not due.stop:
        time.sleep(POLL_SECONDS)
        later = commands.at(step)

        # a rate and a checkpoint are given once, so those that came with the pause are carried along
        lr = due.lr if later.lr is None else later.lr
        due = replace(later, lr=lr, checkpoint=due.checkpoint or later.checkpoint)
    return due
