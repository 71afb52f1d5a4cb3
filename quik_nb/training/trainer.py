"""**The** loop: one rank of a training, as a generator of events.

    RunStart
    for each epoch:
        for each batch:        due? · forward · backward · (last micro-batch: clip, step, zero) · a sign of life
        validation             · the sums of all ranks · scheduler
        keep the state         · EpochEnd
    RunEnd

Nothing here draws, knows a notebook or starts a process. The same pieces (`loader`, `backward`, `validate`,
`end_epoch`) serve `run()` and a loop of the user's own, so both give the same numbers.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from quik_nb.errors import DivergenceError, RecipeError
from quik_nb.events import Annotation, EpochEnd, Event, Output, Row, RunEnd, RunStart, StepEnd
from quik_nb.history import score
from quik_nb.recipe.data import SPLITS, Source, Tensors
from quik_nb.recipe.recipe import Recipe
from quik_nb.training import rng
from quik_nb.training.commands import AHEAD, LocalCommands, SharedCommands, wait_while_paused
from quik_nb.training.compiling import Compiled
from quik_nb.training.data.batch import Batch
from quik_nb.training.data.batches import batches, eval_batches
from quik_nb.training.evaluate import Evaluation, autocast
from quik_nb.training.forward import Step, zero_if_empty
from quik_nb.training.metrics import LossMeter, MetricSet, detached, exact
from quik_nb.training.optimizers import resolve_precision
from quik_nb.training.progress import Progress, Snapshot
from quik_nb.training.updater import Updater, freeze
from quik_nb.training.world import World

GIVEN_UP = 20
"""Losses in a row that are no numbers, after which scaled training has diverged."""

BEAT_SECONDS = 0.1
"""Time between two signs of life within an epoch; reading the smoothed loss waits for the device, so not each step."""


@dataclass(frozen=True)
class Job:
    """All that one training needs, wherever it runs: picklable, the same on all ranks."""

    recipe: Recipe
    epochs: int
    """the epoch to stop before"""
    where: str
    """where it runs and why there, in words"""
    progress: Progress = field(default_factory=Progress)
    loop: Callable[[Any], Any] | None = None
    """a loop of the user's own, called with the pieces of this training; None for the kit's"""


Keep = Callable[["Trainer"], None]
"""Called by rank 0 when a state is worth keeping, before the event that tells of it."""


class Stopped(BaseException):  # a signal, which an `except Exception` in a user's loop must let pass
    """The run was stopped at a step boundary."""


class Trainer:
    """One rank of a training.

    Args:
        job: what to train and how far.
        world: this rank among the others.
        commands: what may be done to the run on its way.
        keep: called on rank 0 at each epoch's end and at a stop, before the event is yielded.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        job: Job,
        world: World,
        commands: LocalCommands | SharedCommands | None = None,
        keep: Keep = lambda trainer: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        recipe, settings = job.recipe, job.recipe.settings
        assert recipe.model is not None  # Recipe.check has seen to both
        assert recipe.train is not None
        self.job, self.recipe, self.settings, self.world = job, recipe, settings, world
        self.commands, self.keep, self.clock = commands or LocalCommands(), keep, clock
        self.outbox: deque[Event] = deque()
        self.emit: Callable[[Event], None] = self.outbox.append
        self.model = recipe.model.to(world.device)
        self.model.zero_grad()  # of a backward pass that the user tried by hand
        self.step = Step(recipe, world.device, recipe.train, loop=job.loop is not None)
        self.valid_step = Step(recipe, world.device)
        self.frozen = freeze(self.model, settings.freeze)
        try:
            self._prepare(recipe.train, recipe.valid)
        except BaseException:
            self.release()
            raise

    def _prepare(self, train: Source, valid: Source | None) -> None:
        job, recipe, settings, world = self.job, self.recipe, self.settings, self.world
        self.batches = batches(train, settings.batch_size, world, shuffle=True, parts=settings.accumulate)
        self.valid_batches = None if valid is None else eval_batches(valid, settings, world)
        self.dtype = resolve_precision(settings.precision, world.device)
        scaled = self.dtype is torch.float16 and world.device.type == "cuda"
        self.updater = Updater(recipe, self.model, world, scaled, self.step.sums)
        self.updater.plan(job.progress, job.epochs, self.batches.steps)
        self.net = self._wrap(self.model)
        if loose := trained_by_nobody(self.step.criterion):
            self._note(
                f"The criterion has parameters of its own ({', '.join(loose)}), which the optimizer does not train: "
                f"make it a part of the model, or switch them off with requires_grad_(False)."
            )
        self.call = Compiled(self.net, self._note) if settings.compile else self.net
        self.epoch, self.step_in_epoch, self.steps_done = job.progress.epoch, job.progress.step, 0
        self._drawn = False
        """whether the loader has come to the epoch's end"""
        self.batch: Batch | None = None
        self.row: Row | None = None
        self.annotations: list[Annotation] = []
        """of what was done to the run, until they are written"""
        self._passed: deque[torch.cuda.Event] = deque()
        """of the latest steps: how far the GPU has come"""
        self._load(job.progress)

    def _wrap(self, model: nn.Module) -> nn.Module:
        if not self.world.is_ddp:
            return model
        if self.settings.sync_batchnorm:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        ids = [self.world.device] if self.world.device.type == "cuda" else None
        unused = self.settings.find_unused_parameters
        return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=unused)

    def _note(self, text: str) -> None:
        if self.world.is_logger:
            self.emit(Output(0, f"{text}\n", "stderr"))

    def _load(self, progress: Progress) -> None:
        self.reason = ""
        """why it ends before the last epoch, in words"""
        self._begin_epoch()
        if self.world.is_logger:  # the sums are over all ranks, so one rank carries them on
            self.meter.sum += progress.loss_sum
            self.meter.count += progress.loss_count
        patience = self.settings.patience
        ended = (
            patience is not None and progress.epochs_without_improvement >= patience
        )  # by patience, and now asked to go on
        self.best, self.best_for_patience = progress.best, progress.best_for_patience
        self.epochs_without_improvement = 0 if ended else progress.epochs_without_improvement
        self.rng_states = progress.rng_states
        self.seconds_before = progress.seconds
        self._next_beat = self.clock() + BEAT_SECONDS
        self._next_keep = self.clock() + self._keep_seconds

    @property
    def _keep_seconds(self) -> float:
        minutes = self.settings.checkpoint_minutes
        return math.inf if minutes is None else minutes * 60

    def _begin_epoch(self) -> None:
        self.started = self.clock()
        self.meter = LossMeter()
        own = self.job.loop is not None  # whose outputs are not seen here
        whole = self.step_in_epoch == 0  # the outputs before a stop are gone, and those of the rest tell too little
        metrics = self.recipe.metrics if self.recipe.metrics_on_train and whole and not own else {}
        self.train_metrics = MetricSet(metrics, self.world)

    def release(self) -> None:
        """Give back to the model what was taken from it: the gradients of frozen parameters."""
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        self.step.close()
        self.valid_step.close()

    # ------------------------------------------------------------------ the whole training

    def run(self) -> Iterator[Event]:
        """Train up to the job's epoch; yields events, on each rank its own."""
        __tracebackhide__ = True
        yield self.start()
        try:
            for _ in self.iter_epochs():
                for data in self.loader("train"):
                    self.train_step(data)
                    while self.outbox:
                        yield self.outbox.popleft()
                yield from self.finish_epoch()
        except Stopped:
            self.keep_partial()
            yield from self._drain()
            yield RunEnd("stopped")
            return
        yield RunEnd("finished", self.reason)

    def train_step(self, data: Any) -> None:
        """One batch: forward, backward, and after the last micro-batch of a step, the update."""
        __tracebackhide__ = True
        with self.autocast():
            result = self.step(self.call, data)
        self.backward(result.loss, result.counted)
        self.add_loss(result.loss, result.counted)
        if self.train_metrics.names and result.outputs is not None and self.batch is not None and self.batch.samples:
            self.train_metrics.update(detached(result.outputs), result.target)

    def start(self) -> RunStart:
        """The event that opens a run."""
        return RunStart(self.epoch, self.job.epochs, self.batches.steps, self.job.where, self.world.world_size)

    def finish_epoch(self) -> Iterator[Event]:
        """Validate and close the epoch, handing on the events that come up meanwhile."""
        __tracebackhide__ = True
        values: dict[str, float] = {}
        try:
            yield from self._validation(values)
        except DivergenceError:
            raise
        except Exception:  # such as of a metric: the epoch is trained, and is not to be lost for it
            if not self.world.is_ddp:  # where another rank may not have failed, and would be waited for
                self.keep_partial()
                yield from self._drain()
            raise
        self._close_epoch(values)
        yield from self._drain()

    def _drain(self) -> Iterator[Event]:
        while self.outbox:
            yield self.outbox.popleft()

    # ------------------------------------------------------------------ the pieces

    def iter_epochs(self) -> Iterator[int]:
        """The epochs still to train, from where the run stands."""
        while self.epoch < self.job.epochs and not self.reason:
            self.net.train()
            rng.seed_all(rng.epoch_seed(self.settings.seed, self.epoch, self.world.rank))
            self.started = self.clock() - self.seconds_before
            self.seconds_before = 0.0
            now = self.epoch
            yield now
            if self.epoch == now:
                raise RecipeError(
                    f"The loop went through epoch {now} and did not close it, so it would never end: "
                    f"call session.end_epoch() after the batches of each epoch."
                )

    def loader(self, split: str = "train") -> Iterator[Any]:
        """This rank's batches of a split, on the device; while training, due are obeyed and signs of life given."""
        __tracebackhide__ = True
        if split != "train":
            yield from self._other(split)
            return
        if self._drawn:
            raise RecipeError(
                f"The loop draws the batches of epoch {self.epoch} a second time, and all have been trained on: make "
                f"all updates of a batch in one pass, and call session.end_epoch() after it."
            )
        walk = self.batches.epoch(self.settings.seed, self.epoch, skip=self.step_in_epoch)
        if self.rng_states is not None:
            self._take_up_generators(self.rng_states)
            self.rng_states = None
        fresh = True
        while True:
            if fresh:
                self._keep_pace()
            if fresh and self.commands.pending and self.step_in_epoch != self.batches.steps:
                self._obey()  # before the next batch is drawn: what it takes of the random numbers must not be lost
            batch = next(walk, None)
            if batch is None:
                self._drawn = True
                return
            if self.world.is_ddp:
                self.net.require_backward_grad_sync = batch.last  # type: ignore[assignment]  # as no_sync() does
            self.batch = batch
            self.step.calls.clear()
            yield batch.data
            fresh = batch.last
            if fresh:
                self._step_done()
            if self.clock() >= self._next_beat:
                self._beat()

    def _take_up_generators(self, states: list[rng.State]) -> None:
        """Go on with this rank's random numbers; with new ones, equally sure, where there were other ranks before."""
        if len(states) == self.world.world_size:
            rng.restore(states[self.world.rank], self.world.device)
        else:
            rng.seed_all(rng.epoch_seed(self.settings.seed, self.epoch, self.world.rank, self.step_in_epoch))

    def _step_done(self) -> None:
        self.step_in_epoch += 1
        self.steps_done += 1
        if self.world.is_ddp and self.world.device.type == "cuda":
            self._passed.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
            self._passed[-1].record()

    def _keep_pace(self) -> None:
        """Wait until the GPU has done all but the latest steps: what ranks obey is agreed by how far they may be apart.

        A collective of the CPU makes this process wait; one of a GPU makes only the GPU wait.
        """
        while len(self._passed) >= AHEAD:
            self._passed.popleft().synchronize()

    def _other(self, split: str) -> Iterator[Any]:
        source = getattr(self.recipe, split, None) if split in SPLITS else None
        if source is None:
            raise RecipeError(f"loader({split!r}): there is no such split; add_data({split}=...) sets one.")
        for batch in eval_batches(source, self.settings, self.world).epoch(self.settings.seed, 0):
            if batch.samples:
                yield batch.data

    def count_step(self) -> None:
        """Count a step of a loop that draws its batches elsewhere, and obey due there."""
        self.step.calls.clear()
        self._step_done()
        self._keep_pace()
        if self.clock() >= self._next_beat:
            self._beat()
        if self.commands.pending:
            self._obey()

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass: mixed precision where the recipe asks for it, nothing otherwise."""
        return autocast(self.world.device, self.dtype)

    def backward(self, loss: Tensor, count: Tensor | None = None) -> None:
        """Gradients of the loss of the current batch, and after the last micro-batch of a step, the update.

        Args:
            loss: a mean over the samples, as the criterion gives it.
            count: what it is a mean over, as in `StepOutput`; None for the samples.
        """
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise RecipeError(f"backward takes a loss that is one number in a tensor, and got {got}: pass loss.mean().")
        batch = self.batch or Batch(None, 1, self.world.world_size)
        if count is None and (count := self.step.counted(batch.samples)) is not None:
            loss = zero_if_empty(loss, count)
        self.updater.backward(loss, batch, count)

    def add_loss(self, loss: Tensor, count: Tensor | None = None, samples: int | None = None) -> None:
        """Count a loss towards the epoch's mean.

        Args:
            loss: the mean over the samples of a batch.
            count: what it is a mean over, as for `backward`.
            samples: how many; None for those of the current batch, or 1 where there is none.
        """
        if samples is None:
            samples = 1 if self.batch is None else self.batch.samples
            count = self.step.counted(samples) if count is None else count
        if self.step.sums and samples:
            loss = loss.detach() / samples
        self.meter.add(loss, samples if count is None else count * (samples > 0))

    def _obey(self) -> None:
        before = self.clock()
        due = wait_while_paused(self.commands, self.steps_done)
        if (paused := self.clock() - before) > BEAT_SECONDS:
            self.started += paused
            self._mark(f"paused {paused:.0f} s")
        if due.lr is not None:
            self.updater.set_lr(due.lr)
            self._mark(f"lr {due.lr:g}")
        if due.stop:
            raise Stopped
        if due.checkpoint and self.step_in_epoch:
            self._keep_within()

    def _mark(self, label: str) -> None:
        share = self.step_in_epoch / self.batches.steps if self.batches.steps else 0.5
        self.annotations.append(Annotation(self.epoch + share, label))
        self.emit(self.annotations[-1])

    def _beat(self, phase: str = "train", step: int | None = None, steps: int | None = None) -> None:
        """A sign of life; a loss that is no number ends the training here rather than at the epoch's end."""
        __tracebackhide__ = True
        self.meter.read()
        self._check_loss()
        now = self.clock()
        rate = self.step_in_epoch / max(now - self.started, 1e-9)
        if phase == "train":
            event = StepEnd(self.epoch, self.step_in_epoch, self.batches.steps, self.meter.smoothed, rate)
        else:
            event = StepEnd(self.epoch, step or 0, steps, self.meter.smoothed, rate, "valid")
        self.emit(event)
        self._next_beat = now + BEAT_SECONDS
        if now >= self._next_keep and self.world.is_logger:
            self._next_keep = now + self._keep_seconds
            self.commands.request_checkpoint()

    def _check_loss(self) -> None:
        if self.meter.bad is None or (self.updater.scaler is not None and self.meter.bad_in_a_row < GIVEN_UP):
            return  # with scaled losses single ones may overflow; such steps are left out and the scale falls
        first = self.job.progress.step if self.epoch == self.job.progress.epoch else 0
        step = first + self.meter.bad // self.settings.accumulate
        held = "those of the last row" if self.epoch else "as they were before"
        spoilt = not_finite(self.recipe.train)
        advice = f"In {spoilt} of train are NaN or infinite values: fill them or leave their rows out."
        raise DivergenceError(
            f"The training loss became NaN or infinite in epoch {self.epoch}, step {step}, with learning rate "
            f"{self.updater.lr:g}.\nThe weights are {held}. "
            f"{advice if spoilt else 'Type a smaller lr, or clip_norm=1.0.'}"
        )

    # ------------------------------------------------------------------ validation

    def _validation(self, values: dict[str, float]) -> Iterator[Event]:
        """Fill in `valid_loss` and metrics; nothing where there is no validation split."""
        __tracebackhide__ = True
        if self.valid_batches is None:
            return
        self.meter.read()
        self._check_loss()  # rather than metrics that choke on NaN
        evaluation = Evaluation(self.recipe, self.updater.judged, self.valid_step, self.world, self.autocast)
        for done, steps in evaluation.over(self.valid_batches):
            evaluation.cut = bool(self.commands.pending and self.commands.stop_requested)
            if self.clock() >= self._next_beat:
                self._beat("valid", done, steps)
                yield from self._drain()
        loss = evaluation.loss()
        if loss is None:
            raise Stopped  # the steps of the epoch are done, its row is not
        values["valid_loss"] = loss
        values.update(evaluation.metrics.compute())

    def validate(self) -> dict[str, float]:
        """`valid_loss` and metrics of the validation split now (all ranks participate)."""
        values: dict[str, float] = {}
        for event in self._validation(values):
            self.emit(event)
        return values

    # ------------------------------------------------------------------ the end of an epoch

    def end_epoch(self, values: dict[str, float] | None = None) -> None:
        """Close the epoch: validate, step the scheduler, keep the state, tell the view (all ranks participate)."""
        agreed = self._agreed(values)
        self._close_epoch(self.validate() if agreed is None else agreed)

    def _agreed(self, values: Mapping[str, Any] | None) -> dict[str, float] | None:
        """What a loop measured itself, as the mean over the ranks that tell it: a rate or an end hangs on it on all."""
        told = self.world.gather(None if values is None else plain_numbers(values))
        given = [each for each in told if each is not None]
        names = dict.fromkeys(name for each in given for name in each)
        measured = {name: [each[name] for each in given if name in each] for name in names}
        return {name: sum(each) / len(each) for name, each in measured.items()} if given else None

    def _close_epoch(self, values: dict[str, float]) -> None:
        __tracebackhide__ = True
        row = self._row({**values, **self._train_values()})
        loss = score(row)
        self.updater.end_epoch(loss)
        better = loss < self.best
        self.best = min(self.best, loss)
        if loss < self.best_for_patience - self.settings.min_delta:
            self.best_for_patience, self.epochs_without_improvement = loss, 0
        else:
            self.epochs_without_improvement += 1
        self.next_epoch()
        self.row = row
        if self.world.is_logger:
            self.keep(self)
        self._begin_epoch()
        self.emit(EpochEnd(row, better))
        patience = self.settings.patience
        if patience is not None and self.epochs_without_improvement >= patience:
            count = self.epochs_without_improvement
            self.reason = f"no better loss for {count} epoch{'s' if count > 1 else ''}"
        elif self.epoch < self.job.epochs and self._stop_agreed():
            raise Stopped

    def next_epoch(self) -> None:
        """Stand at the beginning of the epoch after this one."""
        self.epoch, self.step_in_epoch, self._drawn = self.epoch + 1, 0, False

    def _train_values(self) -> dict[str, float]:
        """The columns that come from training itself."""
        metrics = self.train_metrics.compute() if self.train_metrics.names else {}
        return {**{f"train_{name}": value for name, value in metrics.items()}, **self.updater.measured()}

    def _stop_agreed(self) -> bool:
        """Whether a stop was asked for that all ranks can obey here, at the epoch's end."""
        if not self.world.is_ddp:
            return self.commands.stop_requested
        asked = torch.tensor(float(self.world.is_logger and self.commands.stop_requested), device=self.world.device)
        return bool(self.world.sum(asked))

    def _row(self, values: dict[str, float], share: float = 1.0) -> Row:
        """The row of this epoch: the losses of all ranks summed, then divided once (all ranks participate)."""
        __tracebackhide__ = True
        self.meter.read()
        self._check_loss()
        own = torch.tensor([self.meter.sum, self.meter.count], dtype=exact(self.world.device), device=self.world.device)
        loss, count = self.world.sum(own).tolist()
        if not count and self.job.loop is not None:
            raise RecipeError(
                f"Epoch {self.epoch} has no loss to show: call session.metrics.add_loss(loss) for each batch of the "
                f"loop, and session.end_epoch() once, after the last one."
            )
        if not count:
            raise RecipeError(
                f"Epoch {self.epoch} had no samples: the training data came out empty; "
                f"pass a stream that starts anew for each epoch (a Dataset, not an exhausted iterator)."
            )
        self.loss_sum, self.loss_count = loss, count
        metrics = {name: value for name, value in values.items() if name != "valid_loss"}
        seconds = self.clock() - self.started
        return Row(self.epoch, loss / count, values.get("valid_loss"), seconds, self.updater.lr, metrics, share)

    def keep_partial(self) -> None:
        """Keep the state in the midst of an epoch, with a row that says how much of it is trained (all ranks)."""
        if self.step_in_epoch:
            self._keep_within()
            assert self.row is not None  # just made
            self.emit(EpochEnd(self.row))

    def _keep_within(self) -> None:
        steps = self.batches.steps
        share = min(self.step_in_epoch / steps, 0.99) if steps else 0.5  # at 1.0 the epoch would be whole
        self.row = self._row({}, share)
        self.states = self.world.gather(rng.capture(self.world.device))
        if self.world.is_logger:
            self.keep(self)

    # ------------------------------------------------------------------ state

    def snapshot(self) -> Snapshot:
        """The state as it is now, with the weights that validation saw; tensors are shared with the training."""
        return Snapshot(self.updater.judged.state_dict(), self._progress(), self.row)

    def _progress(self) -> Progress:
        state = Progress(
            epoch=self.epoch,
            step=self.step_in_epoch,
            best=self.best,
            best_for_patience=self.best_for_patience,
            epochs_without_improvement=self.epochs_without_improvement,
            **self.updater.state(),
        )
        if not self.step_in_epoch:
            return state
        return replace(
            state,
            loss_sum=self.loss_sum,
            loss_count=self.loss_count,
            seconds=self.row.time if self.row is not None else 0.0,
            rng_states=self.states,
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


def not_finite(source: Source | None) -> str:
    """Which of the tensors in memory hold NaN or infinite values, in words; nothing where none does."""
    tensors = source.tensors if isinstance(source, Tensors) else ()
    names = (isinstance(source, Tensors) and source.names) or [f"tensor {i}" for i in range(len(tensors))]
    spoilt = [name for name, t in zip(names, tensors, strict=True) if not torch.isfinite(t).all()]
    return " and ".join(spoilt)


def trained_by_nobody(criterion: object) -> list[str]:
    """The names of a criterion's own parameters."""
    named = criterion.named_parameters() if isinstance(criterion, nn.Module) else ()
    return [name for name, parameter in named if parameter.requires_grad]
