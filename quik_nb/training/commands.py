"""What may be done to a run on its way: stop, pause, go on, another learning rate, a checkpoint.

`LocalCommands` is the plain form for a training in this process. With workers the same words are written into a small
shared file (`SharedCommands`), so that all ranks follow at the same step without a message of their own:

rank 0 picks up a request at the start of step s and schedules it for step s + 1. The gradients of step s are averaged
over all ranks after that, so whoever stands at the start of step s + 1 has waited for rank 0's part of step s, which
was sent after the note: every rank sees it there, and none follows it earlier. With GPUs the hosts run ahead of the
averaging; they wait for that of `AHEAD` steps before, and the request is scheduled for step s + AHEAD.
"""

import mmap
import time
from dataclasses import dataclass, replace
from pathlib import Path

NEVER = 2**62
AHEAD = 4
"""How many steps a rank with a GPU may be ahead of what the GPUs have done together."""
POLL_SECONDS = 0.05
"""How often a paused rank looks whether it may go on."""


@dataclass
class DueCommands:
    """What holds at a step."""

    stop: bool = False
    pause: bool = False
    lr: float | None = None
    checkpoint: bool = False


class LocalCommands:
    """Requests to a training in this process; each is obeyed at the next step boundary."""

    def __init__(self) -> None:
        self.stopping = False
        self.pausing = False
        self._lr: float | None = None
        self._checkpoint = False
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

    def request_checkpoint(self) -> None:
        """Keep the state in the midst of an epoch."""
        self._checkpoint = self.pending = True

    def at(self, step: int) -> DueCommands:
        """The due at the top of a step; a learning rate is handed out once."""
        self.pending = False  # before they are read: an interrupt may come at any line
        due = DueCommands(self.stopping, self.pausing, self._lr, self._checkpoint)
        self._lr, self._checkpoint = None, False
        if due.stop or due.pause:
            self.pending = True
        return due

    @property
    def stop_requested(self) -> bool:
        """Whether validation should be cut short."""
        return self.stopping


STOP, PAUSE, RATE, RATES, CHECKPOINT = range(5)
"""Words of a request: whether to stop, whether to pause, the learning rate, how many were asked for."""
STOP_AT, PAUSE_AT, AGREED_RATE, RATE_AT, AGREED_RATES, CHECKPOINT_AT = range(8, 14)
"""Words of what is agreed: the steps from which on to stop and to pause, the rate, its step, how many were taken up."""


class SharedCommands:
    """LocalCommands over process borders: a small file, mapped by the launching process and by each rank.

    The launching process writes requests, rank 0 writes what is agreed, the others only read. Every word is eight
    aligned bytes and is written at once, so nobody reads half of one; a number is written last of what it counts.
    """

    SIZE = 128

    def __init__(self, path: Path, rank: int | None = None, create: bool = False, ahead: int = 1) -> None:
        self.ahead = ahead
        if create:
            path.write_bytes(b"\0" * self.SIZE)
        with path.open("r+b") as file:
            self.map = mmap.mmap(file.fileno(), self.SIZE)
        self.words = memoryview(self.map).cast("q")
        self.rates = memoryview(self.map).cast("d")
        self.rank = rank
        self.seen_rates = 0
        if create:
            for word in (STOP_AT, PAUSE_AT, RATE_AT, CHECKPOINT_AT):
                self.words[word] = NEVER

    def stop(self) -> None:
        """End the run and keep everything."""
        self.words[STOP] = 1

    def pause(self) -> None:
        """Hold the run."""
        self.words[PAUSE] = 1

    def resume(self) -> None:
        """Go on after a pause."""
        self.words[PAUSE] = 0

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all parameter groups."""
        self.rates[RATE] = float(lr)
        self.words[RATES] += 1

    def request_checkpoint(self) -> None:
        """Keep the state in the midst of an epoch; rank 0 asks for it itself."""
        self.words[CHECKPOINT] = 1

    @property
    def paused(self) -> bool:
        """Whether a pause was asked for and not yet ended."""
        return bool(self.words[PAUSE])

    def close(self) -> None:
        """Let go of the file; what is asked for afterwards, such as by a late interrupt, goes nowhere."""
        words, rates = self.words, self.rates
        nowhere = memoryview(bytearray(self.SIZE))
        self.words, self.rates = nowhere.cast("q"), nowhere.cast("d")
        words.release()
        rates.release()
        self.map.close()

    @property
    def pending(self) -> bool:
        """Always looked at: reading the map costs less than a microsecond."""
        return True

    @property
    def stop_requested(self) -> bool:
        """Whether validation should be cut short; ranks may see it at different batches, and agree afterwards."""
        return bool(self.words[STOP])

    def at(self, step: int) -> DueCommands:
        """The due at the top of a step, equal on all ranks; rank 0 also takes up new requests."""
        if self.rank == 0:
            self._agree(step)
        # pause before stop: rank 0 ends a pause after it wrote the stop, so who misses the pause sees the stop
        pause = step >= self.words[PAUSE_AT]
        due = DueCommands(step >= self.words[STOP_AT], pause, checkpoint=step == self.words[CHECKPOINT_AT])
        count = self.words[AGREED_RATES]
        if count > self.seen_rates and step >= self.words[RATE_AT]:
            due.lr, self.seen_rates = self.rates[AGREED_RATE], count
        return due

    def _agree(self, step: int) -> None:
        words = self.words
        if words[STOP] and words[STOP_AT] == NEVER:  # in a pause all ranks look here, at this very step
            words[STOP_AT] = step if words[PAUSE_AT] <= step else step + self.ahead
        if not words[PAUSE]:
            words[PAUSE_AT] = NEVER
        elif words[PAUSE_AT] == NEVER:
            words[PAUSE_AT] = step + self.ahead
        if words[CHECKPOINT]:
            words[CHECKPOINT], words[CHECKPOINT_AT] = 0, step + self.ahead
        asked = words[RATES]  # one at a time: all have the last before the next
        if asked > words[AGREED_RATES] and (words[RATE_AT] == NEVER or step > words[RATE_AT]):
            self.rates[AGREED_RATE], words[RATE_AT] = self.rates[RATE], step + self.ahead
            words[AGREED_RATES] = asked


def wait_while_paused(commands: LocalCommands | SharedCommands, step: int) -> DueCommands:
    """Sleep until the run may go on or must stop; the due that then hold."""
    due = commands.at(step)
    while due.pause and not due.stop:
        time.sleep(POLL_SECONDS)
        later = commands.at(step)  # a rate is handed out once, so one that came with the pause is carried along
        lr = due.lr if later.lr is None else later.lr
        due = replace(later, lr=lr, checkpoint=due.checkpoint or later.checkpoint)
    return due
