"""Sets up one rank of a training, runs it, and restores the user's objects afterwards.

What is not here: the loop (`loop.py`), and how ranks are started (`launch/`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from quik_nb.events import Emit, Notice
from quik_nb.training import rng, torch_switches
from quik_nb.training.boundary import StepBoundary
from quik_nb.training.commands import Commands, LocalCommands
from quik_nb.training.engine import Engine, compile_in_place
from quik_nb.training.evaluate import Validation
from quik_nb.training.forward import criterion_on
from quik_nb.training.job import Checkpoint, Job
from quik_nb.training.loop import Loop, Saves
from quik_nb.training.optimizers import freeze
from quik_nb.training.step_watch import StepWatch
from quik_nb.training.train_mode import on_device, preserve_training_mode, tell_modes
from quik_nb.training.world import World
from quik_nb.training.yielding import make_step


def run_rank(
    job: Job,
    world: World,
    commands: Commands,
    checkpoint: Checkpoint | None,
    emit: Emit,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Run one rank of a training to its end, and restore the user's objects.

    Args:
        job: what to train and up to which epoch; its model is trained in place.
        world: rank, world size and device.
        commands: requests of the user, such as a stop.
        checkpoint: receives the state on rank 0; None to save nothing.
        emit: called with every event of this rank.
        clock: returns seconds; replaced in tests.
    """
    __tracebackhide__ = True
    with loop_of(job, world, emit, commands, checkpoint, clock) as loop:
        loop.run()


@contextmanager
def loop_of(
    job: Job,
    world: World,
    emit: Emit,
    commands: Commands | None = None,
    checkpoint: Checkpoint | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Loop]:
    """The loop of a job, with the arguments of `run_rank`.

    All of the user's objects are restored in reverse order, even after an error: random number generators, torch's
    global switches, the model's device and training mode, gradients, frozen flags, the criterion, hooks.
    """
    recipe, model = job.recipe, job.model

    def tell(cause: str, text: str) -> None:
        emit(Notice(cause, text))

    with ExitStack() as given_back:
        given_back.enter_context(rng.preserved(world.device))
        given_back.enter_context(torch_switches.preserved())
        given_back.enter_context(on_device(model, world.device))
        given_back.enter_context(preserve_training_mode(model))

        # drop gradients left by a manual backward(), and leave none behind
        model.zero_grad()
        given_back.callback(model.zero_grad)
        given_back.callback(unfreeze, list(freeze(model, recipe.settings.freeze)))
        tell_modes(model, recipe.settings.eval_modules, tell)

        criterion = given_back.enter_context(criterion_on(recipe, world.device))
        train_step = make_step(recipe, criterion, recipe.train, tell=tell)
        valid_step = make_step(recipe, criterion, facts=train_step.facts, tell=tell)
        if job.has_own_loop or recipe.step is not None:
            given_back.enter_context(train_step.listening())
            given_back.enter_context(valid_step.listening())
        if loose := parameters_of(criterion):
            tell(
                "criterion has parameters",
                f"The criterion has parameters of its own ({', '.join(loose)}), which the optimizer does not train: "
                f"make it a part of the model, or use requires_grad_(False).",
            )

        by_hooks = "the loop is your own" if job.has_own_loop else ""
        if recipe.yields:
            by_hooks = "the step yields several losses"
        engine = Engine(recipe, model, train_step, world, by_hooks)
        given_back.callback(engine.parallel.close)
        if recipe.settings.compile:
            given_back.callback(compile_in_place(model, tell))

        boundary = StepBoundary(recipe.settings, world, commands or LocalCommands(), clock)
        validation = Validation(recipe, valid_step, world, tell)
        loop = Loop(job, engine, validation, boundary, Saves(world, checkpoint), emit)
        if job.has_own_loop:
            loop.watch = given_back.enter_context(StepWatch(model, engine.updater.known_optimizers))
        yield loop


def unfreeze(parameters: list[nn.Parameter]) -> None:
    """Set `requires_grad` of parameters that were frozen during the training."""
    for parameter in parameters:
        parameter.requires_grad_(True)


def parameters_of(criterion: object) -> list[str]:
    """The names of a criterion's own parameters that require gradients."""
    named = criterion.named_parameters() if isinstance(criterion, nn.Module) else ()
    return [name for name, parameter in named if parameter.requires_grad]
