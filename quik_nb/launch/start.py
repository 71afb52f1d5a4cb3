"""`launch(job, placement)`: the training started where the placement says."""

from quik_nb.launch.base import Launch
from quik_nb.launch.in_process import InProcess
from quik_nb.launch.placement import Placement
from quik_nb.launch.workers import Workers
from quik_nb.storage.checkpointer import Saver
from quik_nb.training.trainer import Job


def launch(job: Job, placement: Placement, saver: Saver | None) -> Launch:
    """Start a training; `drive` of what comes back hands out its events."""
    if placement.in_process:
        return InProcess(job, placement.devices[0], saver)
    return Workers(job, placement, saver)
