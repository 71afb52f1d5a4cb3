"""**The** loop: one rank of a training, from `RunStart` to `RunEnd`.

    def fit(loop):
        for _ in loop.iter_epochs():
            for batch in loop.batches("train"):
                loop.train_step(batch)
            loop.end_epoch()

`session.train()` is `session.traverse(fit)`: a loop of the user's own has the same pieces, the same view, stops and
files, and gives the same numbers. Everything that happens is pushed into one `emit`:

    RunStart
    for each epoch:
        for each batch:       commands? . forward . backward . (last micro-batch: clip, step, zero) . heartbeat?
        validation            . the sums of all ranks . scheduler
        snapshot              . checkpoint (rank 0) . EpochEnd
    RunEnd

Nothing here draws, writes a file, knows a notebook or starts a process.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from quik_nb.errors import DivergenceError, RecipeError, StopTraining, WorkerError
from quik_nb.events import Annotation, Emit, EpochEnd, Notice, Row, RunEnd, RunStart
from quik_nb.history import score
from quik_nb.recipe.data import SPLITS
from quik_nb.recipe.settings import Settings
from quik_nb.training import rng
from quik_nb.training.boundary import StepBoundary
from quik_nb.training.data.batch import Batch
from quik_nb.training.data.batches import eval_batches, train_batches
from quik_nb.training.engine import Engine
from quik_nb.training.epoch import EpochRecord, mean_loss
from quik_nb.training.evaluate import Validation
from quik_nb.training.forward import StepContext, StepOutput
from quik_nb.training.job import Checkpoint, Job
from quik_nb.training.monitor import Monitor
from quik_nb.training.parallel import Agreement
from quik_nb.training.precision import Autocast
from quik_nb.training.progress import Progress, Snapshot, unsaved_buffers
from quik_nb.training.step_watch import StepWatch
from quik_nb.training.train_mode import begin_training_mode
from quik_nb.training.world import World

STOP_SECONDS = 5.0
"""How long ranks that raise `StopTraining` wait for each other, beside the time of three steps."""

T = TypeVar("T")


class Stopped(BaseException):  # a signal, which an `except Exception` in a user's loop must let pass
    """The run was stopped at a step boundary."""


@dataclass
class Position:
    """Where a training stands."""

    epoch: int
    step: int
    """optimizer steps done in this epoch"""
    drawn: bool = False
    """whether all batches of the epoch were handed out"""
    rng_states: list[rng.State] | None = None
    """of all ranks, to go on with in an epoch that was begun in an earlier call"""

    def next_epoch(self) -> None:
        """Stand at the beginning of the next epoch."""
        self.epoch += 1
        self.step = 0
        self.drawn = False


class Saves:
    """Hands the state of each row to the checkpoint, with what was done to the run since the last one.

    Args:
        world: this rank among the others.
        checkpoint: what rank 0 hands its state to; None for nothing.
    """

    def __init__(self, world: World, checkpoint: Checkpoint | None) -> None:
        self.world = world
        self.checkpoint = checkpoint if world.is_logger else None
        self.annotations: list[Annotation] = []
        """since the last row"""

    def begin(self, snapshot: Snapshot) -> None:
        """Before the first step."""
        if self.checkpoint is not None:
            self.checkpoint.begin(snapshot)

    def save(self, snapshot: Snapshot) -> None:
        """After a row, and before the event that tells of it."""
        if self.checkpoint is not None:
            self.checkpoint(snapshot, self.annotations)
        self.annotations = []


class Loop:
    """A training on one rank: what a loop of your own is called with.

    Attributes:
        metrics: `metrics.add_loss(loss)` counts a loss towards the epoch's mean, `metrics.add(kl=kl)` makes a column.

    >>> def loop(session):
    ...     for epoch in session.iter_epochs():
    ...         for x, y in session.loader("train"):
    ...             loss = session.criterion(session.model(x), y)
    ...             session.backward(loss)
    ...             session.metrics.add_loss(loss)
    ...         session.end_epoch()
    """

    def __init__(
        self, job: Job, engine: Engine, validation: Validation, boundary: StepBoundary, saves: Saves, emit: Emit
    ) -> None:
        recipe, world = job.recipe, engine.world
        self.metrics = LoopMetrics(self)
        self._job = job
        self._engine = engine
        self._validation = validation
        self._boundary = boundary
        self._saves = saves
        self._emit = emit
        self._train = train_batches(recipe, world, self._notify)
        self._position = Position(job.progress.epoch, job.progress.step, rng_states=job.progress.rng_states)
        self._record = EpochRecord(recipe, world, boundary.clock, job.progress)
        self._monitor = Monitor(recipe.settings, job.progress)
        self._agreement = Agreement(engine.model, world, boundary.clock)
        self.watch: StepWatch | None = None
        """on the optimizers of a loop of the user's own"""

        engine.updater.restore(job.progress, job.epochs, self._train.steps)

    @property
    def model(self) -> nn.Module:
        """The model: a module of your own class, with its methods, on any number of ranks."""
        return self._engine.model

    @property
    def criterion(self) -> Any:
        """As `set_criterion` made it, on the device."""
        criterion = self._engine.forward_step.criterion
        if criterion is None:
            raise RecipeError(
                "session.criterion was asked for, and none was set: use set_criterion(nn.CrossEntropyLoss), or compute "
                "the loss in the loop."
            )
        return criterion

    @property
    def world(self) -> World:
        """This rank among the others: `rank`, `world_size`, `device`, `is_logger`."""
        return self._engine.world

    @property
    def settings(self) -> Settings:
        """The settings of the session."""
        return self._job.recipe.settings

    @property
    def reason(self) -> str:
        """Why the training ends before its last epoch, in words; empty while it does not."""
        return self._monitor.reason

    # ------------------------------------------------------------------ the pieces of a loop

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the session, the first of several, for those who step it themselves."""
        if not self._engine.updater.optimizers:
            raise RecipeError(
                "session.optimizer was asked for, and none was set: use set_optimizer(optim.AdamW), or "
                "session.register('main', optim.AdamW(session.model.parameters()))."
            )
        return next(iter(self._engine.updater.optimizers.values()))

    @property
    def scheduler(self) -> Any:
        """The learning-rate scheduler of the first optimizer, or None."""
        first = next(iter(self._engine.updater.schedules.values()), None)
        return None if first is None else first.scheduler

    def register(self, name: str, thing: T) -> T:
        """Keep an object of the loop's own: it gets back its state of an earlier call, which is saved with each row.

        An optimizer has the column `lr_NAME`, or `lr` where no other steps, and `backward(loss, NAME)` steps it.

        Args:
            name: a word, the same in each call.
            thing: an optimizer, a scheduler, a module, or anything else with `state_dict` and `load_state_dict`.

        >>> def loop(session):
        ...     optimizer = session.register("main", torch.optim.Adam(session.model.parameters(), lr=1e-3))
        """
        self._engine.register(name, thing)
        return thing

    def iter_epochs(self) -> Iterator[int]:
        """The epochs still to train: a run that goes on starts where it stood."""
        position = self._position
        while position.epoch < self._job.epochs and not self.reason:
            begin_training_mode(self.model, self.settings.eval_modules)
            rng.seed_all(rng.epoch_seed(self.settings.seed, position.epoch, self.world.rank))
            self._record.start_clock()

            epoch = position.epoch
            yield epoch

            if position.epoch == epoch:
                raise RecipeError(
                    f"The loop went through epoch {epoch} and did not close it, so it would never end: "
                    f"call session.end_epoch() after the batches of each epoch."
                )

    def loader(self, split: str = "train") -> Iterator[Any]:
        """This rank's batches of a split, on the device; those of "train" draw the bar and follow a stop.

        Args:
            split: "train", "valid" or "test".
        """
        __tracebackhide__ = True
        for batch in self.batches(split):
            if split == "train":
                self.metrics.batch = batch
            if batch.samples or split == "train":
                yield batch.data

    def batches(self, split: str = "train") -> Iterator[Batch]:
        """As `loader`, with what the kit knows of each batch: its samples, those of its step, whether it is the last.

        Args:
            split: "train", "valid" or "test".
        """
        __tracebackhide__ = True
        if split == "train":
            return self._train_batches()
        source = getattr(self._job.recipe, split, None) if split in SPLITS else None
        if source is None:
            raise RecipeError(f"loader({split!r}): there is no such split; add_data({split}=...) sets one.")
        return eval_batches(source, self._job.recipe, self.world, self._notify).epoch(self.settings.seed, 0)

    def autocast(self) -> Autocast:
        """The context of a forward pass; nothing where `precision` is fp32."""
        return self._engine.autocast

    def train_step(self, batch: Batch) -> StepOutput:
        """One batch of `batches("train")`: forward, backward, and after the last micro-batch of a step, the update."""
        __tracebackhide__ = True
        context = StepContext("train", self._position.epoch, self._position.step, self.world)
        output = self._engine.train_step(batch, context)
        self._record.add(output, batch)
        return output

    def backward(self, loss: Tensor, optimizer: str | None = None) -> None:
        """The backward pass of a loss; after the last micro-batch of a step: clip, step, zero, scheduler.

        Args:
            loss: one number, the mean over the samples of the batch.
            optimizer: the name of the one that steps by this loss alone, with all gradients zeroed before; None for
                those of the session.
        """
        self._engine.backward(loss, self.metrics.current_batch, optimizer)

    def validate(self) -> dict[str, float]:
        """`valid_loss` and the metrics of the validation split now; `end_epoch` does it by itself."""
        __tracebackhide__ = True
        if self._validation.batches is None:
            return {}
        self._check_losses()  # rather than metrics that choke on NaN
        self._engine.parallel.sync_buffers()

        commands = self._boundary.commands
        evaluation = self._validation.start(self._engine.eval_model, self._engine.autocast, self._position.epoch)
        for done, steps in evaluation.over(self._validation.batches):
            evaluation.cut = bool(commands.pending and commands.stop_requested)
            if self._boundary.heartbeat_is_due():
                self._send_heartbeat("valid", done, steps)

        loss = evaluation.loss()
        if loss is None:
            raise Stopped  # the steps of the epoch are done, its row is not
        return {"valid_loss": loss, **evaluation.columns()}

    def end_epoch(self, values: Mapping[str, Any] | None = None) -> None:
        """Close the epoch: validate, step the scheduler, save, draw (all ranks participate).

        Args:
            values: `valid_loss` and further columns that the loop measured itself, of which the mean over the ranks
                counts; None to validate here.
        """
        __tracebackhide__ = True
        self._close_epoch(self._measured(values))

        goes_on = self._position.epoch < self._job.epochs and not self.reason
        if goes_on and self._stop_agreed():
            raise Stopped

    def next_epoch(self) -> None:
        """Stand at the beginning of the next epoch without closing this one: no row, no validation."""
        self._position.next_epoch()
        self._record = EpochRecord(self._job.recipe, self.world, self._boundary.clock)

    def step_loss(self) -> float:
        """The loss of the latest optimizer step, over its micro-batches on this rank; waits for the device."""
        self._record.losses.read()
        return self._record.losses.last_step

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the first parameter group from now on; the others are scaled alike."""
        self._engine.updater.set_lr(lr)

    # ------------------------------------------------------------------ the batches of training

    def _train_batches(self) -> Iterator[Batch]:
        __tracebackhide__ = True
        if self._position.drawn:
            raise RecipeError(
                f"The loop draws the batches of epoch {self._position.epoch} a second time, and all have been trained "
                f"on: make all updates of a batch in one pass, and call session.end_epoch() after it."
            )
        batches = self._train.epoch(self.settings.seed, self._position.epoch, skip=self._position.step)
        self._restore_rng()

        at_boundary = True
        while True:
            # before the next batch is drawn: what it takes of the random numbers must not be lost
            if at_boundary:
                self._follow_commands()

            before = self._boundary.clock()
            batch = next(batches, None)
            self._record.waited += self._boundary.clock() - before
            if batch is None:
                self._position.drawn = True
                return

            self._engine.begin_batch(batch)
            yield batch

            at_boundary = batch.last
            if at_boundary:
                self._step_done()
            if self._boundary.heartbeat_is_due():
                self._send_heartbeat()

    def _restore_rng(self) -> None:
        """Go on with this rank's random numbers; with new ones, equally sure, where there were other ranks before."""
        states, self._position.rng_states = self._position.rng_states, None
        if states is None:
            return
        if len(states) == self.world.world_size:
            rng.restore(states[self.world.rank], self.world.device)
        else:
            position = self._position
            rng.seed_all(rng.epoch_seed(self.settings.seed, position.epoch, self.world.rank, position.step))

    def _step_done(self) -> None:
        self._position.step += 1
        self._boundary.step_done()

    def count_own_step(self) -> None:
        """Count a step of a loop that draws its batches elsewhere, and follow commands there."""
        self._engine.forward_step.begin_batch()
        self._step_done()
        if self._boundary.heartbeat_is_due():
            self._send_heartbeat()
        self._follow_commands()

    def _follow_commands(self) -> None:
        self._boundary.limit_run_ahead()
        # what is asked for after the last step is followed at the end of the epoch
        if not self._boundary.commands.pending or self._position.step == self._train.steps:
            return

        due, paused = self._boundary.due()
        if paused:
            self._record.started += paused
            self._annotate(f"paused {paused:.0f} s")
        if due.lr is not None:
            self.set_lr(due.lr)
            self._annotate(f"lr {due.lr:g}")
        if due.stop:
            raise Stopped
        if due.checkpoint and self._position.step:
            self._checkpoint_within()

    def _notify(self, cause: str, text: str) -> None:
        self._emit(Notice(cause, text))

    def _annotate(self, label: str) -> None:
        annotation = Annotation(self._position.epoch + self._fraction(), label)
        self._saves.annotations.append(annotation)
        self._emit(annotation)

    def _fraction(self) -> float:
        """Of this epoch that is trained; half of it where its length is not known."""
        return self._position.step / self._train.steps if self._train.steps else 0.5

    def _check_losses(self) -> None:
        """A loss that is no number ends the training here rather than at the epoch's end."""
        __tracebackhide__ = True
        updater = self._engine.updater
        self._record.check(self._position.epoch, updater.lr, updater.scaler is not None)

    def _send_heartbeat(self, phase: str = "train", step: int | None = None, steps: int | None = None) -> None:
        """Send a sign of life.

        Args:
            phase: "train" or "valid".
            step: batches done in validation.
            steps: of validation in all, where that is known.
        """
        __tracebackhide__ = True
        self._check_losses()
        updater = self._engine.updater
        event = self._record.heartbeat(self._position.epoch, self._position.step, self._train.steps)
        event = replace(event, lr=updater.lr, lrs=updater.take_lrs())
        if phase == "valid":
            event = replace(event, phase="valid", step=step or 0, steps=steps)
        self._emit(event)
        self._boundary.heartbeat_sent()

    # ------------------------------------------------------------------ the end of an epoch

    def _measured(self, values: Mapping[str, Any] | None) -> dict[str, float]:
        """The columns of validation: what the loop measured itself, else what is measured here.

        Of what a loop measured the mean over the ranks that tell it counts: a rate or an end hangs on it on all ranks.
        """
        __tracebackhide__ = True
        if not self._job.has_own_loop:
            return self._validated()

        told = self.world.gather(None if values is None else plain_numbers(values))
        given = [each for each in told if each is not None]
        if not given:
            return self._validated()
        names = dict.fromkeys(name for each in given for name in each)
        measured = {name: [each[name] for each in given if name in each] for name in names}
        return {name: sum(each) / len(each) for name, each in measured.items()}

    def _validated(self) -> dict[str, float]:
        __tracebackhide__ = True
        try:
            return self.validate()
        except (DivergenceError, StopTraining):
            raise
        except Exception:
            # such as of a metric: the epoch is trained, and is not to be lost for it; but not where another rank may
            # not have failed, and would be waited for
            if self.world.world_size == 1:
                self.save_partial()
            raise

    def _close_epoch(self, values: dict[str, float]) -> None:
        __tracebackhide__ = True
        position, record, updater = self._position, self._record, self._engine.updater
        lrs = updater.lrs()
        lr = lrs.pop("lr", math.nan)
        columns = {**values, **record.columns(), **self._values(), **updater.norms.columns(), **lrs}
        total, count = self._agreed_sums()
        self._check_losses()
        loss = mean_loss(total, count, position.epoch, self._job.has_own_loop)
        row = record.row(position.epoch, loss, columns, lr)

        updater.end_epoch(position.epoch, score(row))
        self._tell()
        is_best = self._monitor.update(row)
        data_wait = record.data_wait
        self.next_epoch()

        self._saves.save(self.snapshot(row))
        self._emit(EpochEnd(row, is_best, data_wait))

    def _tell(self) -> None:
        """Tell what the steps of this epoch showed."""
        found = list(self._engine.updater.notices())
        if self.watch is not None:
            is_whole = self._record.first_step == 0  # else all steps may have been made in an earlier call
            found += [notice for notice in self.watch.end_epoch() if is_whole]
        for cause, text in found:
            self._notify(cause, text)

    def _values(self) -> dict[str, float]:
        """Columns of the further numbers that a step or loop of the user's own gave (all ranks participate)."""
        may_have = self._job.recipe.step is not None or self._job.has_own_loop
        return self._record.values.compute(self.world) if may_have else {}

    def _agreed_sums(self) -> tuple[float, float]:
        """Loss and count over all ranks, and in the same message the proof that ranks hold one model."""
        is_last = self._position.epoch + 1 == self._job.epochs
        total, count, *proof = self._record.sums(*self._agreement.words(is_last))
        self._agreement.check(proof)
        return total, count

    def _stop_agreed(self) -> bool:
        """Whether a stop was asked for that all ranks can follow here, at the epoch's end."""
        asked = self._boundary.commands.stop_requested
        if self.world.world_size == 1:
            return asked
        own = torch.tensor(float(self.world.is_logger and asked), device=self.world.device)
        return bool(self.world.sum(own))

    # ------------------------------------------------------------------ state

    def save_partial(self) -> None:
        """Save the state within an epoch, with a row that says how much of it is trained (all ranks participate)."""
        if self._position.step:
            self._emit(EpochEnd(self._checkpoint_within()))

    def _checkpoint_within(self) -> Row:
        """Save the state within an epoch; gives its row (all ranks participate)."""
        position, record = self._position, self._record
        total, count = record.sums()
        self._check_losses()
        loss = mean_loss(total, count, position.epoch, self._job.has_own_loop)
        fraction = min(self._fraction(), 0.99)  # at 1.0 the epoch would be whole
        row = record.row(position.epoch, loss, {}, self._engine.updater.lr, fraction)

        states = self.world.gather(rng.capture(self.world.device))
        within = {"loss_sum": total, "loss_count": count, "seconds": row.time, "rng_states": states}
        self._saves.save(self.snapshot(row, **within))
        return row

    def snapshot(self, row: Row | None = None, **within: Any) -> Snapshot:
        """The state as it is now, with the weights that validation saw (all ranks participate).

        Args:
            row: the last one; None before the first.
            within: sums, seconds and random states of an epoch under way, by the names of `Progress`.
        """
        progress = Progress(
            epoch=self._position.epoch,
            step=self._position.step,
            unsaved_buffers=unsaved_buffers(self._engine.eval_model),
            **within,
            **self._monitor.state(),
            **self._engine.updater.state(),
        )
        return Snapshot(self._engine.parallel.state_dict(self._engine.eval_model), progress, row)

    # ------------------------------------------------------------------ the run

    def run(self) -> None:
        """Run the job's loop from beginning to end."""
        __tracebackhide__ = True
        self._saves.begin(self.snapshot())
        self._emit(self._start())

        try:
            self._job.loop(self)
        except (Stopped, StopTraining) as signal:
            if isinstance(signal, StopTraining):
                self._leave_step()
            self.save_partial()
            self._emit(RunEnd("stopped"))
            return
        self.save_partial()  # a loop that ended without end_epoch
        self._emit(RunEnd("finished", self.reason))

    def _leave_step(self) -> None:
        """Leave out the step in which `StopTraining` was raised, as all ranks must have done.

        Raises:
            WorkerError: it was not raised on all of them.
        """
        epoch, step = self._position.epoch, self._position.step
        seconds = STOP_SECONDS + 3 * self._record.seconds / max(1, step)
        missing = self.world.missing(f"stop/{epoch}/{step}", seconds)
        if missing:
            others = ", ".join(map(str, missing))
            raise WorkerError(
                f"StopTraining was raised on rank {self.world.rank} in step {step} of epoch {epoch}, and not on rank "
                f"{others}, which would wait for it: raise it by what is equal on all ranks, such as a loss that "
                f"world.sum() has added up, or in a callback that session.on() registers."
            )
        self._record.losses.leave_step()

    def _start(self) -> RunStart:
        recipe, job = self._job.recipe, self._job
        columns = ["train_loss", *(["valid_loss", *recipe.metrics] if recipe.valid is not None else [])]
        columns += [f"train_{name}" for name in recipe.metrics if recipe.metrics_on_train and not job.has_own_loop]
        columns += ["grad_norm"] if self.settings.clip_norm is not None else []
        parameters = {"gradients": self._engine.parallel.reason} if self._engine.parallel.reason else {}
        if recipe.scheduler is not None:  # a view then has a place for the learning rate from the start
            parameters["scheduler"] = recipe.scheduler.name
        return RunStart(
            self._position.epoch,
            job.epochs,
            self._train.steps,
            job.where,
            self.world.world_size,
            columns=tuple(columns),
            parameters=parameters,
        )


class LoopMetrics:
    """The losses and further numbers of the epoch under way, in a loop of the user's own."""

    def __init__(self, loop: Loop) -> None:
        self.batch: Batch | None = None
        """the one that the loop has in its hands; None in a loop that draws its batches elsewhere"""
        self._loop = loop

    @property
    def current_batch(self) -> Batch:
        """The batch that a loss is of: one sample on each rank where the loop draws its batches elsewhere."""
        return self.batch or Batch(None, 1, self._loop.world.world_size)

    def add_loss(self, loss: Tensor, samples: int | None = None) -> None:
        """Count a loss towards the epoch's mean.

        Args:
            loss: the mean over the samples of a batch.
            samples: how many; None for those of the current batch of `loader("train")`, or 1 in a loop without it.
        """
        loop, batch = self._loop, self.current_batch
        forward = loop._engine.forward_step
        count = forward.own_count(batch.samples, loop.world.device) if samples is None else None
        if samples is not None:
            batch = batch._replace(samples=samples)

        loop._record.add_loss(loss.detach(), batch, count, forward.reduction)
        if self.batch is None:  # the loop draws its batches elsewhere, so this is all that tells of a step
            loop.count_own_step()

    def add(self, **values: Any) -> None:
        """Count further numbers towards columns of the epoch: each is a mean over the samples of the batch.

        Args:
            values: by the name of their column.
        """
        self._loop._record.values.add(values, self.current_batch.samples)


def plain_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The values of a row as numbers.

    >>> plain_numbers({"valid_loss": torch.tensor(0.5)})
    {'valid_loss': 0.5}
    """
    try:
        return {str(name): float(value) for name, value in values.items()}
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RecipeError(
            f"end_epoch({values!r}): it takes names with one number each ({error}), such as "
            f"session.end_epoch({{'valid_loss': 0.5}}), or nothing to validate here."
        ) from error
