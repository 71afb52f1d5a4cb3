"""`launch(job, placement, saver)`: the training started by the launcher that the placement names.

A further launcher is a function and a line in `LAUNCHERS`, and a rule in `placement.py` that chooses it. Each is
imported when it is first asked for: a training in this process needs nothing of what starts others.
"""

from quik_nb.launch.base import Launcher, Running
from quik_nb.launch.placement import Placement
from quik_nb.storage.checkpointer import Checkpointer
from quik_nb.training.job import Job


def in_process(job: Job, placement: Placement, saver: Checkpointer | None) -> Running:
    """Train in this process."""
    from quik_nb.launch.in_process import InProcess

    return InProcess(job, placement, saver)


def workers(job: Job, placement: Placement, saver: Checkpointer | None) -> Running:
    """Train in worker processes, one for each device."""
    from quik_nb.launch.workers import Workers

    return Workers(job, placement, saver)


LAUNCHERS = {
    "in_process": Launcher(in_process, copies_objects=False),
    "workers": Launcher(workers, copies_objects=True),
}


def launch(job: Job, placement: Placement, saver: Checkpointer | None) -> Running:
    """Prepare a training; within its context, `events` trains.

    Args:
        job: what to train, and from where on.
        placement: by which launcher, and on which devices.
        saver: writes files at each epoch's end; None for none.

    Raises:
        RecipeError: something in the job cannot be sent to workers.
    """
    return LAUNCHERS[placement.launcher].launch(job, placement, saver)
