"""The training loop of one rank, from `RunStart` to `RunEnd`.

    def fit(loop):
        for _ in loop.iter_epochs():
            for batch in loop.batches("train"):
                loop.train_step(batch)
            loop.end_epoch()

`session.train()` is `session.traverse(fit)`: a custom loop has the same methods, the same view, stops and files, and
gives the same numbers. All events are passed to one function `emit`:

    RunStart
    for each epoch:
        for each batch:       commands? . forward . backward . (last micro-batch: clip, step, zero) . heartbeat?
        validation            . the sums of all ranks . scheduler
        snapshot              . checkpoint (rank 0) . EpochEnd
    RunEnd

What is not here: drawing, writing files, notebooks, and starting processes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from quik_nb.errors import DivergenceError, RecipeError, StopTraining, WorkerError, suggest
from quik_nb.events import Annotation, Emit, EpochEnd, Notice, Row, RunEnd, RunStart
from quik_nb.recipe.description import described
from quik_nb.recipe.monitor import known_columns, ranking
from quik_nb.recipe.samples import SPLITS
from quik_nb.recipe.settings import Settings
from quik_nb.training import rng
from quik_nb.training.boundary import StepBoundary
from quik_nb.training.data.batch import Batch
from quik_nb.training.data.batches import eval_batches, step_to_enter, train_batches
from quik_nb.training.engine import Engine
from quik_nb.training.epoch import EpochRecord, mean_loss
from quik_nb.training.evaluate import Evaluation, Validation
from quik_nb.training.forward import StepContext, StepOutput
from quik_nb.training.job import Checkpoint, Job
from quik_nb.training.metric_trial import try_metrics
from quik_nb.training.monitor import Monitor
from quik_nb.training.parallel import Agreement
from quik_nb.training.precision import Autocast
from quik_nb.training.progress import Progress, Snapshot, unsaved_buffers
from quik_nb.training.step_watch import StepWatch
from quik_nb.training.train_mode import begin_training_mode
from quik_nb.training.world import World

STOP_SECONDS = 5.0
"""How long ranks that raise `StopTraining` wait for each other, in addition to the time of three steps."""

T = TypeVar("T")


class Stopped(BaseException):  # not an Exception, so that `except Exception` in a user's loop does not catch it
    """The run was stopped at a step boundary."""


@dataclass
class Position:
    """Current epoch and step of a training."""

    epoch: int
    step: int
    """optimizer steps done in this epoch"""
    batches: int
    """micro-batches yielded before the one in hand in this epoch"""
    exhausted: bool = False
    """whether all batches of the epoch were yielded"""
    rng_states: list[rng.State] | None = None
    """of all ranks, to continue an unfinished epoch of an earlier call"""

    def next_epoch(self) -> None:
        """Move to the beginning of the next epoch."""
        self.epoch += 1
        self.step = 0
        self.batches = 0
        self.exhausted = False


class Saves:
    """Passes the state of each row to the checkpoint, with the annotations since the last row.

    Args:
        world: rank, world size and device.
        checkpoint: receives the state on rank 0; None to save nothing.
    """

    def __init__(self, world: World, checkpoint: Checkpoint | None) -> None:
        self.world = world
        self.checkpoint = checkpoint if world.is_logger else None
        self.annotations: list[Annotation] = []
        """since the last row"""

    def begin(self, snapshot: Snapshot) -> None:
        """Call before the first step."""
        if self.checkpoint is not None:
            self.checkpoint.begin(snapshot)

    def save(self, snapshot: Snapshot) -> None:
        """Call after a row, and before its event is sent."""
        if self.checkpoint is not None:
            self.checkpoint(snapshot, self.annotations)
        self.annotations = []


class Loop:
    """The training on one rank: the argument of a custom loop that is passed to `session.traverse()`.

    Attributes:
        metrics: `metrics.add_loss(loss)` adds a loss to the epoch's mean, `metrics.add(kl=kl)` adds to a column.

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
        step = step_to_enter(recipe, job.progress, world)
        self._position = Position(
            job.progress.epoch, step, step * self.settings.accumulate, rng_states=job.progress.rng_states
        )
        self._record = EpochRecord(recipe, world, boundary.clock, job.progress)
        self._monitor = Monitor(recipe.settings, ranking(recipe), job.progress)
        self._agreement = Agreement(engine.model, world, boundary.clock)
        self.watch: StepWatch | None = None
        """on the optimizers of a loop of the user's own"""

        engine.updater.restore(job.progress, job.epochs, self._train.steps)

    @property
    def model(self) -> nn.Module:
        """The model, an instance of your own class (not wrapped in DistributedDataParallel), on the device."""
        return self._engine.model

    @property
    def criterion(self) -> Any:
        """The criterion, as `set_criterion` defines it, on the device.

        Raises:
            RecipeError: no criterion was set.
        """
        criterion = self._engine.forward_step.criterion
        if criterion is None:
            raise RecipeError(
                "session.criterion was asked for, and none was set: use set_criterion(nn.CrossEntropyLoss), or compute "
                "the loss in the loop."
            )
        return criterion

    @property
    def world(self) -> World:
        """`rank`, `world_size`, `device` and `is_logger` of this rank."""
        return self._engine.world

    @property
    def settings(self) -> Settings:
        """The settings of the session."""
        return self._job.recipe.settings

    @property
    def reason(self) -> str:
        """Why the training ends before its last epoch, as text; empty otherwise."""
        return self._monitor.reason

    # ------------------------------------------------------------------ the methods of a loop

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The session's optimizer, or the first of several, for loops that step it themselves.

        Raises:
            RecipeError: no optimizer was set.
        """
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
        """Register an object whose state is saved with each row, and restored here in later calls of `traverse()`.

        An optimizer has the column `lr_NAME`, or `lr` if it is the only one, and `backward(loss, NAME)` steps it.

        Args:
            name: an identifier, the same in each call.
            thing: an optimizer, a scheduler, a module, or any object with `state_dict` and `load_state_dict`.

        Returns:
            `thing` itself.

        >>> def loop(session):
        ...     optimizer = session.register("main", torch.optim.Adam(session.model.parameters(), lr=1e-3))
        """
        self._engine.register(name, thing)
        return thing

    def iter_epochs(self) -> Iterator[int]:
        """The epochs to train, counted from 0; a continued training starts with the first unfinished one."""
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
        """This rank's batches of a split, on the device; those of "train" drive the progress bar and obey commands.

        Args:
            split: "train", "valid" or "test".

        Raises:
            RecipeError: there is no such split, or the batches of this epoch are exhausted already.
        """
        __tracebackhide__ = True
        for batch in self.batches(split):
            if split == "train":
                self.metrics.batch = batch
            if batch.samples or split == "train":
                yield batch.data

    def batches(self, split: str = "train") -> Iterator[Batch]:
        """As `loader`, but yields `Batch` objects, with numbers of samples and whether a batch is the last of a step.

        Args:
            split: "train", "valid" or "test".

        Raises:
            RecipeError: there is no such split, or the batches of this epoch are exhausted already.
        """
        __tracebackhide__ = True
        if split == "train":
            return self._train_batches()
        source = getattr(self._job.recipe, split, None) if split in SPLITS else None
        if source is None:
            raise RecipeError(f"loader({split!r}): there is no such split: use add_data({split}=...).")
        return eval_batches(source, self._job.recipe, self.world, self._notify).epoch(self.settings.seed, 0)

    def autocast(self) -> Autocast:
        """The autocast context for a forward pass, by the setting `precision`; it does nothing for fp32."""
        return self._engine.autocast

    def train_step(self, batch: Batch) -> StepOutput:
        """One batch of `batches("train")`: forward, backward, and after the last micro-batch of a step, the update."""
        __tracebackhide__ = True
        context = StepContext("train", self._position.epoch, self._position.batches, self.world)
        output = self._engine.train_step(batch, context)
        self._record.add(output, batch)
        return output

    def backward(self, loss: Tensor, optimizer: str | None = None) -> None:
        """Backward pass; after the last micro-batch of a step also clip, optimizer step, zero_grad, scheduler step.

        Args:
            loss: a scalar, the mean over the samples of the batch.
            optimizer: name of an optimizer to step by this loss alone, after all gradients were zeroed; None for the
                session's optimizers.

        Raises:
            RecipeError: the loss is not a scalar tensor, or the optimizer cannot be stepped this way.
        """
        self._engine.backward(loss, self.metrics.current_batch, optimizer)

    def validate(self) -> dict[str, float]:
        """`valid_loss` and the metrics of the validation split; `end_epoch` calls this if needed."""
        __tracebackhide__ = True
        if self._validation.batches is None:
            return {}
        self._check_losses()  # first, since metrics may fail on NaN with another error
        self._engine.parallel.sync_buffers()

        commands = self._boundary.commands
        evaluation = self._validation.start(self._engine.eval_model, self._engine.autocast, self._position.epoch)
        for done, steps in evaluation.over(self._validation.batches):
            evaluation.cut = bool(commands.pending and commands.stop_requested)
            if self._boundary.heartbeat_is_due():
                self._send_heartbeat("valid", done, steps)

        loss = evaluation.loss()
        if loss is None:
            raise Stopped  # all steps of the epoch are done, but there is no row yet
        return {"valid_loss": loss, **evaluation.columns(prefix="valid_")}

    def end_epoch(self, values: Mapping[str, Any] | None = None) -> None:
        """End the epoch: validate, step the scheduler, save, send the row to the views (all ranks participate).

        Args:
            values: `valid_loss` and further columns that the loop computed itself, averaged over ranks; None to
                validate here.

        Raises:
            RecipeError: a value is not a number.
            DivergenceError: the loss of this epoch is NaN or infinite.
        """
        __tracebackhide__ = True
        self._close_epoch(self._validation_columns(values))

        continues = self._position.epoch < self._job.epochs and not self.reason
        if continues and self._stop_agreed():
            raise Stopped

    def next_epoch(self) -> None:
        """Move to the next epoch without ending this one: no row, no validation."""
        self._position.next_epoch()
        self._record = EpochRecord(self._job.recipe, self.world, self._boundary.clock)

    def step_loss(self) -> float:
        """The loss of the latest optimizer step, over its micro-batches on this rank; synchronizes with the device."""
        self._record.losses.read()
        return self._record.losses.last_step

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the first parameter group from now on; the others are scaled alike."""
        self._engine.updater.set_lr(lr)

    # ------------------------------------------------------------------ the batches of training

    def _train_batches(self) -> Iterator[Batch]:
        __tracebackhide__ = True
        if self._position.exhausted:
            raise RecipeError(
                f"The loop draws the batches of epoch {self._position.epoch} a second time, and all have been trained "
                f"on: make all updates of a batch in one pass, and call session.end_epoch() after it."
            )
        batches = self._train.epoch(self.settings.seed, self._position.epoch, skip=self._position.step)
        self._restore_rng()

        at_boundary = True
        while True:
            # before the next batch is drawn, so that the saved random number state does not include its draws
            if at_boundary:
                self._follow_commands()

            before = self._boundary.clock()
            batch = next(batches, None)
            self._record.waited += self._boundary.clock() - before
            if batch is None:
                self._position.exhausted = True
                return

            self._engine.begin_batch(batch)
            yield batch

            self._position.batches += 1
            at_boundary = batch.last
            if at_boundary:
                self._record.samples += batch.total
                self._step_done()
            if self._boundary.heartbeat_is_due():
                self._send_heartbeat()

    def _restore_rng(self) -> None:
        """Restore this rank's generators in an unfinished epoch; reseed them if the number of ranks has changed."""
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
        """Count a step of a loop with batches of its own, and follow commands there."""
        self._engine.forward_step.begin_batch()
        self._step_done()
        if self._boundary.heartbeat_is_due():
            self._send_heartbeat()
        self._follow_commands()

    def _follow_commands(self) -> None:
        self._boundary.limit_run_ahead()
        # commands after the last step are followed at the end of the epoch
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
        """The fraction of this epoch that is trained; 0.5 if its length is unknown."""
        return self._position.step / self._train.steps if self._train.steps else 0.5

    def _check_losses(self) -> None:
        """Raise a DivergenceError as soon as a loss is NaN or infinite, before the end of the epoch."""
        __tracebackhide__ = True
        updater = self._engine.updater
        self._record.check(self._position.epoch, updater.lr, updater.scaler is not None)

    def _send_heartbeat(self, phase: str = "train", step: int | None = None, steps: int | None = None) -> None:
        """Send a heartbeat.

        Args:
            phase: "train" or "valid".
            step: batches done in validation.
            steps: total batches of validation; None if unknown.
        """
        __tracebackhide__ = True
        self._check_losses()
        updater = self._engine.updater
        event = self._record.heartbeat(self._position.epoch, self._position.step, self._train.steps)
        event = replace(event, lr=self._lrs().get("lr"), lrs=updater.take_lrs())
        if phase == "valid":
            event = replace(event, phase="valid", step=step or 0, steps=steps)
        self._emit(event)
        self._boundary.heartbeat_sent()

    # ------------------------------------------------------------------ the end of an epoch

    def _validation_columns(self, values: Mapping[str, Any] | None) -> dict[str, float]:
        """The columns of validation: those that the loop passed to `end_epoch`, otherwise those of `validate()`.

        Values of a loop are averaged over the ranks that passed them: schedulers and early stopping depend on them,
        and must decide the same on all ranks.
        """
        __tracebackhide__ = True
        if not self._job.has_own_loop:
            return self._validate_or_save()

        gathered = self.world.gather(None if values is None else plain_numbers(values))
        of_ranks = [each for each in gathered if each is not None]
        if not of_ranks:
            return self._validate_or_save()

        names = dict.fromkeys(name for each in of_ranks for name in each)
        columns = {name: [each[name] for each in of_ranks if name in each] for name in names}
        return {name: sum(column) / len(column) for name, column in columns.items()}

    def _validate_or_save(self) -> dict[str, float]:
        """Validate; if that fails, save the steps of the epoch first."""
        __tracebackhide__ = True
        try:
            return self.validate()
        except (DivergenceError, StopTraining):
            raise
        except Exception:
            # a metric that fails must not cost a trained epoch; on several ranks, saving could wait forever for ranks
            # that did not fail
            if self.world.world_size == 1:
                self.save_partial()
            raise

    def _close_epoch(self, values: dict[str, float]) -> None:
        __tracebackhide__ = True
        position, record, updater = self._position, self._record, self._engine.updater
        lrs = self._lrs()
        lr = lrs.pop("lr", math.nan)
        columns = {**values, **record.columns(), **self._values(), **updater.norms.columns(), **lrs}
        total, count = self._agreed_sums()
        self._check_losses()
        loss = mean_loss(total, count, position.epoch, self._job.has_own_loop)
        row = record.row(position.epoch, loss, columns, lr)

        updater.end_epoch(position.epoch, self._monitor.ranking.value(row))
        self._tell()
        is_best = self._monitor.update(row)
        event = EpochEnd(row, is_best, record.data_wait, record.losses.take_steps(), updater.take_lrs())
        self.next_epoch()

        self._saves.save(self.snapshot(row))
        self._emit(event)
        self._check_monitored(row)

    def _lrs(self) -> dict[str, float]:
        """The rates by column."""
        return self._engine.updater.lrs(() if self.watch is None else self.watch.stepped)

    def _check_monitored(self, row: Row) -> None:
        """Of a column that only shows now: a step or loop of the user's own may have given it, or not.

        Raises:
            RecipeError: the row has no such column.
        """
        name = self._monitor.ranking.name(row)
        if not name:
            return
        columns = {"train_loss", *(["valid_loss"] if row.valid_loss is not None else []), *row.metrics}
        if name not in columns:
            raise unknown_column(name, columns)

    def _tell(self) -> None:
        """Tell what the steps of this epoch showed."""
        found = list(self._engine.updater.notices())
        if self.watch is not None:
            is_whole = self._record.first_step == 0  # else all steps may have been made in an earlier call
            found += [notice for notice in self.watch.end_epoch() if is_whole]
        for cause, text in found:
            self._notify(cause, text)

    def _values(self) -> dict[str, float]:
        """Columns of further numbers from a custom step or loop (all ranks participate)."""
        may_have = self._job.recipe.step is not None or self._job.has_own_loop
        return self._record.values.compute(self.world) if may_have else {}

    def _agreed_sums(self) -> tuple[float, float]:
        """Loss and count over all ranks; the same all-reduce checks that all ranks have the same model."""
        is_last = self._position.epoch + 1 == self._job.epochs
        total, count, *proof = self._record.sums(*self._agreement.words(is_last))
        self._agreement.check(proof)
        return total, count

    def _stop_agreed(self) -> bool:
        """Whether a stop was requested, agreed by all ranks, at the end of an epoch."""
        requested = self._boundary.commands.stop_requested
        if self.world.world_size == 1:
            return requested
        flag = torch.tensor(float(self.world.is_logger and requested), device=self.world.device)
        return bool(self.world.sum(flag))

    # ------------------------------------------------------------------ state

    def save_partial(self) -> None:
        """Save the state within an epoch and send its row, which has a `fraction` (all ranks participate)."""
        if self._position.step:
            self._emit(EpochEnd(self._checkpoint_within()))

    def _checkpoint_within(self) -> Row:
        """Save the state within an epoch, and return its row (all ranks participate)."""
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
        """The current state, with the weights that validation uses (all ranks participate).

        Args:
            row: the last one; None before the first.
            within: sums, seconds and generator states of an unfinished epoch, by the field names of `Progress`.
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
        """Run the job's loop to its end."""
        __tracebackhide__ = True
        start = self._start()
        self._saves.begin(self.snapshot())
        self._emit(start)

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
        """Discard the step in which `StopTraining` was raised, which must be the same on all ranks.

        Raises:
            WorkerError: it was not raised on all ranks.
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

    def _columns(self) -> tuple[str, ...]:
        """Those that rows will have; a metric that fails, and a column that cannot come, end the run here."""
        __tracebackhide__ = True
        recipe = self._job.recipe
        if self._job.has_own_loop:
            return tuple(known_columns(recipe))

        columns = try_metrics(recipe, self.model, self._validation.step, self.world, Evaluation)
        monitor = recipe.settings.monitor
        may_come = {*known_columns(recipe), *columns, "grad_norm"}
        if recipe.check_metrics and self.world.is_logger and monitor is not None and monitor not in may_come:
            raise unknown_column(monitor, may_come)
        return columns

    def _start(self) -> RunStart:
        recipe, job = self._job.recipe, self._job
        columns = list(self._columns())
        columns += ["grad_norm"] if self.settings.clip_norm is not None else []
        parameters = described(recipe)
        if self._engine.parallel.reason:
            parameters["gradients"] = self._engine.parallel.reason
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
    """The losses and further columns of the current epoch, in a custom loop."""

    def __init__(self, loop: Loop) -> None:
        self.batch: Batch | None = None
        """the current batch of `loader("train")`; None in a loop with batches of its own"""
        self._loop = loop

    @property
    def current_batch(self) -> Batch:
        """The batch that a loss belongs to; in a loop with batches of its own, one sample per rank."""
        return self.batch or Batch(None, 1, self._loop.world.world_size)

    def add_loss(self, loss: Tensor, samples: int | None = None) -> None:
        """Add a loss to the epoch's mean.

        Args:
            loss: the mean over the samples of a batch.
            samples: their number; None for that of the current batch of `loader("train")`, or 1 in a loop without it.
        """
        loop, batch = self._loop, self.current_batch
        forward = loop._engine.forward_step
        count = forward.own_count(batch.samples, loop.world.device) if samples is None else None
        if samples is not None:
            batch = batch._replace(samples=samples)

        loop._record.add_loss(loss.detach(), batch, count, forward.reduction)
        if self.batch is None:  # a loop with batches of its own: this call is the only sign of a step
            loop.count_own_step()

    def add(self, **values: Any) -> None:
        """Add further numbers to columns of the epoch.

        Args:
            values: means over the samples of the batch, by the name of their column.
        """
        self._loop._record.values.add(values, self.current_batch.samples)


def unknown_column(name: str, columns: Iterable[str]) -> RecipeError:
    """The error of a column to monitor that is none."""
    return RecipeError(
        f"monitor={name!r} is no column of this training, so no epoch would ever be the best: {suggest(name, columns)}"
    )


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
