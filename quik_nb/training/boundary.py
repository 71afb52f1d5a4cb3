"""What happens between two optimizer steps: commands, the limit on running ahead of the GPU, heartbeats.

What is not here: what the commands are (`commands.py`), and what is done about them (`loop.py`).
"""

import math
from collections import deque
from collections.abc import Callable

import torch

from quik_nb.recipe.settings import Settings
from quik_nb.training.commands import MAX_STEPS_AHEAD, Commands, DueCommands, wait_while_paused
from quik_nb.training.world import World

HEARTBEAT_SECONDS = 0.1
"""Seconds between two heartbeats; not at each step, since reading the smoothed loss synchronizes with the device."""


class StepBoundary:
    """The boundary between two optimizer steps of one rank.

    Args:
        settings: for `checkpoint_minutes`.
        world: rank, world size and device.
        commands: requests of the user.
        clock: returns seconds.
    """

    def __init__(self, settings: Settings, world: World, commands: Commands, clock: Callable[[], float]) -> None:
        minutes = settings.checkpoint_minutes
        self.world = world
        self.commands = commands
        self.clock = clock
        self.steps_done = 0
        """optimizer steps of this run, by which all ranks follow a command at the same step"""
        self._checkpoint_seconds = math.inf if minutes is None else minutes * 60
        self._next_heartbeat = clock() + HEARTBEAT_SECONDS
        self._next_checkpoint = clock() + self._checkpoint_seconds
        self._gpu_steps: deque[torch.cuda.Event] = deque()
        """recorded after the latest steps, to see how far the GPU is"""

    def step_done(self) -> None:
        """Count an optimizer step."""
        self.steps_done += 1
        if self.world.world_size > 1 and self.world.device.type == "cuda":
            self._gpu_steps.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
            self._gpu_steps[-1].record()

    def limit_run_ahead(self) -> None:
        """Wait until the GPU has fewer than `MAX_STEPS_AHEAD` steps queued.

        Commands rely on a limit to how many steps ranks can be apart. A collective on the CPU blocks the process; one
        on a GPU blocks only the GPU, and the process runs ahead.
        """
        while len(self._gpu_steps) >= MAX_STEPS_AHEAD:
            self._gpu_steps.popleft().synchronize()

    def due(self) -> tuple[DueCommands, float]:
        """The commands to follow now, and the seconds spent in a pause."""
        before = self.clock()
        due = wait_while_paused(self.commands, self.steps_done)
        paused = self.clock() - before
        return due, paused if paused > HEARTBEAT_SECONDS else 0.0

    def heartbeat_is_due(self) -> bool:
        """Whether a heartbeat is due."""
        return self.clock() >= self._next_heartbeat

    def heartbeat_sent(self) -> None:
        """Schedule the next heartbeat; on rank 0, also request a checkpoint if one is due."""
        now = self.clock()
        self._next_heartbeat = now + HEARTBEAT_SECONDS
        if now >= self._next_checkpoint and self.world.is_logger:
            self._next_checkpoint = now + self._checkpoint_seconds
            self.commands.request_checkpoint()
