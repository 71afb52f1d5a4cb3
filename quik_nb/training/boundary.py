"""What happens between two steps: commands, how far a rank may run ahead, and what is due by the clock."""

import math
from collections import deque
from collections.abc import Callable

import torch

from quik_nb.recipe.settings import Settings
from quik_nb.training.commands import AHEAD, Commands, DueCommands, wait_while_paused
from quik_nb.training.world import World

HEARTBEAT_SECONDS = 0.1
"""Time between two signs of life within an epoch; reading the smoothed loss waits for the device, so not each step."""


class StepBoundary:
    """The boundary between two optimizer steps of one rank.

    Args:
        settings: with the minutes between checkpoints.
        world: this rank among the others.
        commands: what is asked of the run.
        clock: gives seconds.
    """

    def __init__(self, settings: Settings, world: World, commands: Commands, clock: Callable[[], float]) -> None:
        minutes = settings.checkpoint_minutes
        self.world = world
        self.commands = commands
        self.clock = clock
        self.steps_done = 0
        """optimizer steps of this call, by which ranks follow commands in step"""
        self._checkpoint_seconds = math.inf if minutes is None else minutes * 60
        self._next_heartbeat = clock() + HEARTBEAT_SECONDS
        self._next_checkpoint = clock() + self._checkpoint_seconds
        self._gpu_steps: deque[torch.cuda.Event] = deque()
        """of the latest steps: how far the GPU has come"""

    def step_done(self) -> None:
        """Count an optimizer step."""
        self.steps_done += 1
        if self.world.world_size > 1 and self.world.device.type == "cuda":
            self._gpu_steps.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
            self._gpu_steps[-1].record()

    def limit_run_ahead(self) -> None:
        """Wait until the GPU has done all but the latest steps.

        What ranks follow is agreed by how far they may be apart. A collective of the CPU makes this process wait; one
        of a GPU makes only the GPU wait.
        """
        while len(self._gpu_steps) >= AHEAD:
            self._gpu_steps.popleft().synchronize()

    def due(self) -> tuple[DueCommands, float]:
        """The commands to follow now, and the seconds that a pause among them took."""
        before = self.clock()
        due = wait_while_paused(self.commands, self.steps_done)
        paused = self.clock() - before
        return due, paused if paused > HEARTBEAT_SECONDS else 0.0

    def heartbeat_is_due(self) -> bool:
        """Whether a sign of life is due."""
        return self.clock() >= self._next_heartbeat

    def heartbeat_sent(self) -> None:
        """Wait for the next sign of life; and ask for a checkpoint, on rank 0, where one is due."""
        now = self.clock()
        self._next_heartbeat = now + HEARTBEAT_SECONDS
        if now >= self._next_checkpoint and self.world.is_logger:
            self._next_checkpoint = now + self._checkpoint_seconds
            self.commands.request_checkpoint()
