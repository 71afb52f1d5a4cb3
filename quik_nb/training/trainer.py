"""**The** loop: one rank of a training, as a generator of events.

    RunStart
    for each epoch:
        for each batch:        orders? · forward · backward · (last micro-batch: clip, step, zero) · a sign of life
        validation             · the sums of all ranks · scheduler
        keep the state         · EpochEnd
    RunEnd

Nothing here draws, knows a notebook or starts a process. The same pieces (`loader`, `backward`, `validate`,
`end_epoch`) serve `run()` and a loop of the user's own, so both give the same numbers.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from quik_nb.errors import DivergenceError, RecipeError
from quik_nb.events import EpochEnd, Event, Mark, Row, RunEnd, RunStart, StepEnd
from quik_nb.recipe import Recipe
from quik_nb.training import rng
from quik_nb.training.build import make_optimizer, make_scheduler, resolve_precision, set_lr, step_scheduler
from quik_nb.training.controls import Controls, SharedControls, wait_while_paused
from quik_nb.training.data import Batch, batches
from quik_nb.training.evaluate import Evaluation, autocast
from quik_nb.training.metrics import LossMeter, exact
from quik_nb.training.step import TINY, Step
from quik_nb.training.world import World

BEAT_SECONDS = 0.1
"""Time between two signs of life within an epoch; reading the smoothed loss waits for the device, so not each step."""


@dataclass(frozen=True)
class Progress:
    """How far a training has come, and all state that is not weights: what the next call of train() goes on from."""

    epoch: int = 0
    """whole epochs done"""
    step: int = 0
    """optimizer steps done in the epoch after those"""
    planned: int = 0
    """epochs that the schedule spans"""
    best: float = float("inf")
    """lowest score of an epoch so far"""
    loss_sum: float = 0.0
    """of the samples trained in the unfinished epoch"""
    loss_count: float = 0.0
    """what that is divided by: samples, or what the criterion counts instead"""
    seconds: float = 0.0
    """spent in the unfinished epoch"""
    optimizer: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    generators: list[rng.State] | None = None
    """generator states of all ranks, within an epoch only; each epoch starts from a seed of its own"""


@dataclass(frozen=True)
class Job:
    """All that one training needs, wherever it runs: picklable, the same on all ranks."""

    recipe: Recipe
    epochs: int
    """the epoch to stop before"""
    where: str
    """where it runs and why there, in words"""
    progress: Progress = field(default_factory=Progress)


Keep = Callable[["Trainer"], None]
"""Called by rank 0 when a state is worth keeping, before the event that tells of it."""


class Stopped(Exception):  # noqa: N818  a signal, not an error
    """The run was stopped at a step boundary."""


class Trainer:
    """One rank of a training.

    Args:
        job: what to train and how far.
        world: this rank among the others.
        controls: what may be done to the run on its way.
        keep: called on rank 0 at each epoch's end and at a stop, before the event is yielded.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        job: Job,
        world: World,
        controls: Controls | SharedControls | None = None,
        keep: Keep = lambda trainer: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        recipe, settings = job.recipe, job.recipe.settings
        assert recipe.model is not None  # Recipe.check has seen to both
        assert recipe.train is not None
        self.job, self.recipe, self.settings, self.world = job, recipe, settings, world
        self.controls, self.keep, self.clock = controls or Controls(), keep, clock
        self.model = recipe.model.to(world.device)
        self.model.zero_grad()  # of a backward pass that the user tried by hand
        self.batches = batches(recipe.train, settings.batch_size, world, shuffle=True, parts=settings.accumulate)
        self.net = self._wrap(self.model)
        self.optimizer = make_optimizer(recipe, self.model)
        self._make_schedule(job)
        self.dtype = resolve_precision(settings.precision, world.device)
        self.scaler = self._make_scaler()
        self.step = Step(recipe, world.device, recipe.train)
        self.valid_step = Step(recipe, world.device)
        self.in_parts = world.is_ddp or settings.accumulate > 1
        self.counted: float | Tensor = 0.0
        self.outbox: deque[Event] = deque()
        self.emit: Callable[[Event], None] = self.outbox.append
        self.epoch, self.step_in_epoch, self.steps_done = job.progress.epoch, job.progress.step, 0
        self.batch: Batch | None = None
        self.row: Row | None = None
        self._load(job.progress)

    # ------------------------------------------------------------------ set-up

    def _wrap(self, model: nn.Module) -> nn.Module:
        if not self.world.is_ddp:
            return model
        if self.settings.sync_batchnorm:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        ids = [self.world.device] if self.world.device.type == "cuda" else None
        unused = self.settings.find_unused_parameters
        return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=unused)

    def _make_schedule(self, job: Job) -> None:
        """A plan spans the session's epochs; a call that goes beyond it starts a new one over its own epochs."""
        progress, last = job.progress, job.epochs
        self.planned = span = progress.planned or max(last, self.settings.epochs)
        fresh = progress.planned == 0
        if last > self.planned:
            ends = self.recipe.scheduler is not None and bool(self.recipe.scheduler.totals(1, 1))
            self.planned, fresh = last, fresh or ends
            span = last - progress.epoch if ends else last
        if progress.optimizer is not None:
            self.optimizer.load_state_dict(progress.optimizer)
            self.optimizer._opt_called = True  # type: ignore[attr-defined]  # or torch warns that no step was made
            if fresh:
                self._forget_schedule()
        groups = [dict(group) for group in self.optimizer.param_groups]
        self.scheduler = make_scheduler(self.recipe, self.optimizer, span, self.batches.steps)
        if self.scheduler is not None and progress.scheduler is not None and not fresh:
            self.scheduler.load_state_dict(progress.scheduler)
            for group, before in zip(self.optimizer.param_groups, groups, strict=True):
                group.update(before)  # a scheduler sets rate and momentum to the start of its plan when it is made

    def _forget_schedule(self) -> None:
        """Take the rates back to where the optimizer's class would start them, for a new plan."""
        fresh = make_optimizer(self.recipe, self.model)
        for group, start in zip(self.optimizer.param_groups, fresh.param_groups, strict=True):
            kept = {"params": group["params"]}
            group.clear()
            group.update({**start, **kept})

    def _make_scaler(self) -> torch.amp.GradScaler | None:
        """Loss scaling keeps small fp16 gradients from vanishing; bf16 has the range of fp32 and needs none."""
        if self.dtype is not torch.float16 or self.world.device.type != "cuda":
            return None
        return torch.amp.GradScaler("cuda")

    def _load(self, progress: Progress) -> None:
        self.meter = LossMeter()
        if self.world.is_logger:  # the sums are over all ranks, so one rank carries them on
            self.meter.sum += progress.loss_sum
            self.meter.count += progress.loss_count
        self.best = progress.best
        self.generators = progress.generators
        self.seconds_before = progress.seconds
        if self.scaler is not None and progress.scaler is not None:
            self.scaler.load_state_dict(progress.scaler)

    # ------------------------------------------------------------------ the whole training

    def run(self) -> Iterator[Event]:
        """Train up to the job's epoch; yields events, on each rank its own."""
        __tracebackhide__ = True
        yield self.start()
        try:
            for _ in self.iter_epochs():
                for data in self.loader("train"):
                    with self.autocast():
                        result = self.step(self.net, data)
                    self.backward(result.loss, result.counted)
                    self.add_loss(result.loss, result.counted)
                    while self.outbox:
                        yield self.outbox.popleft()
                yield from self.finish_epoch()
        except Stopped:
            self.keep_partial()
            yield from self._drain()
            yield RunEnd("stopped")
            return
        yield RunEnd("finished")

    def start(self) -> RunStart:
        """The event that opens a run."""
        self._next_beat = self.clock() + BEAT_SECONDS
        return RunStart(self.epoch, self.job.epochs, self.batches.steps, self.job.where, self.world.world_size)

    def finish_epoch(self) -> Iterator[Event]:
        """Validate and close the epoch, handing on the events that come up meanwhile."""
        values: dict[str, float] = {}
        yield from self._validation(values)
        self._close_epoch(values)
        yield from self._drain()

    def _drain(self) -> Iterator[Event]:
        while self.outbox:
            yield self.outbox.popleft()

    # ------------------------------------------------------------------ the pieces

    def iter_epochs(self) -> Iterator[int]:
        """The epochs still to train, from where the run stands."""
        while self.epoch < self.job.epochs:
            self.net.train()
            rng.seed_all(rng.epoch_seed(self.settings.seed, self.epoch, self.world.rank))
            self.started = self.clock() - self.seconds_before
            self.seconds_before = 0.0
            yield self.epoch

    def loader(self, split: str = "train") -> Iterator[Any]:
        """The batches of the training split for this rank, on the device; obeys orders and gives signs of life."""
        walk = self.batches.epoch(self.settings.seed, self.epoch, skip=self.step_in_epoch)
        if self.generators is not None:
            rng.restore(self.generators[self.world.rank])
            self.generators = None
        fresh = True
        while True:
            if fresh and self.controls.pending and self.step_in_epoch != self.batches.steps:
                self._obey()  # before the next batch is drawn: what it takes of the random numbers must not be lost
            batch = next(walk, None)
            if batch is None:
                return
            if self.world.is_ddp:
                self.net.require_backward_grad_sync = batch.last  # type: ignore[assignment]  # as no_sync() does
            self.batch = batch
            yield batch.data
            fresh = batch.last
            if fresh:
                self.step_in_epoch += 1
                self.steps_done += 1
            if self.clock() >= self._next_beat:
                self._beat()

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass: mixed precision where the recipe asks for it, nothing otherwise."""
        return autocast(self.world.device, self.dtype)

    def backward(self, loss: Tensor, count: Tensor | None = None) -> None:
        """Gradients of the loss, weighted by this batch's share of the step; after the last micro-batch, the step.

        DDP averages gradients over ranks, so a rank's mean loss counts samples * ranks / samples of the whole step.

        Args:
            loss: of the current batch.
            count: what it is a mean over, as in `StepResult`; None for the samples.
        """
        batch = self.batch
        assert batch is not None
        weight = self._weight(batch) if count is None else self._count(batch, count)
        if isinstance(weight, Tensor) or weight != 1.0:
            loss = loss * weight
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        if batch.last:
            self._update()

    def _weight(self, batch: Batch) -> float:
        if self.step.sums:
            return float(self.world.world_size * (batch.samples > 0))
        return batch.samples * self.world.world_size / batch.total

    def _count(self, batch: Batch, count: Tensor) -> float | Tensor:
        """The weight of a loss whose share is not known before the whole step is computed: divided out afterwards."""
        if not self.in_parts:
            return 1.0
        count = count * (batch.samples > 0)
        self.counted = self.counted + count.to(exact(self.world.device))
        return count * self.world.world_size

    def _divide(self) -> None:
        """Divide the gradients by what the losses of all micro-batches and ranks count (all ranks participate)."""
        if isinstance(self.counted, Tensor):
            total = self.world.sum(self.counted)
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= total.clamp(min=TINY)
            self.counted = 0.0

    def _update(self) -> None:
        settings = self.settings
        self._divide()
        if settings.clip_norm is not None or settings.clip_value is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            if settings.clip_value is not None:
                nn.utils.clip_grad_value_(self.model.parameters(), settings.clip_value)
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()
        if self.scheduler is not None and self.recipe.scheduler is not None and self.recipe.scheduler.per_batch:
            self.scheduler.step()

    def add_loss(self, loss: Tensor, count: Tensor | None = None) -> None:
        """Count the loss of the current batch towards the epoch's mean; arguments as for `backward`."""
        batch = self.batch
        assert batch is not None
        if self.step.sums and batch.samples:
            loss = loss.detach() / batch.samples
        self.meter.add(loss, batch.samples if count is None else count * (batch.samples > 0))

    def _obey(self) -> None:
        before = self.clock()
        orders = wait_while_paused(self.controls, self.steps_done)
        if (paused := self.clock() - before) > BEAT_SECONDS:
            self.started += paused
            self._mark(f"paused {paused:.0f} s")
        if orders.lr is not None:
            set_lr(self.optimizer, self.scheduler, orders.lr)
            self._mark(f"lr {orders.lr:g}")
        if orders.stop:
            raise Stopped

    def _mark(self, label: str) -> None:
        self.emit(Mark(self.epoch + self.step_in_epoch / (self.batches.steps or 1), label))

    def _beat(self, phase: str = "train", step: int | None = None, steps: int | None = None) -> None:
        """A sign of life; a loss that is no number ends the training here rather than at the epoch's end."""
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

    def _check_loss(self) -> None:
        if self.meter.bad is None or self.scaler is not None:
            return
        first = self.job.progress.step if self.epoch == self.job.progress.epoch else 0
        step = first + self.meter.bad // self.settings.accumulate
        raise DivergenceError(
            f"The training loss became NaN or infinite in epoch {self.epoch}, step {step}, with learning rate "
            f"{self.optimizer.param_groups[0]['lr']:g}. The weights are those of the last row. "
            f"Type a smaller lr, clip_norm=1.0, or look for NaN in the data."
        )

    # ------------------------------------------------------------------ validation

    def _validation(self, values: dict[str, float]) -> Iterator[Event]:
        """Fill in `valid_loss` and metrics; nothing where there is no validation split, or a stop cuts it short."""
        if self.recipe.valid is None:
            return
        self.meter.read()
        self._check_loss()  # rather than metrics that choke on NaN
        evaluation = Evaluation(self.recipe, self.model, self.valid_step, self.world, self.autocast)
        for done, steps in evaluation.over(self.recipe.valid):
            if self.controls.pending and self.controls.hurry:
                evaluation.cut = True
                break
            if self.clock() >= self._next_beat:
                self._beat("valid", done, steps)
                yield from self._drain()
        loss = evaluation.loss()
        if loss is not None:
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
        self._close_epoch(self.validate() if values is None else values)

    def _close_epoch(self, values: dict[str, float]) -> None:
        cut = self.recipe.valid is not None and "valid_loss" not in values
        if cut:
            raise Stopped  # in the midst of validation: the steps are done, the row is not
        row = self._row(values)
        self._step_epoch_scheduler(row)
        better = (row.train_loss if row.valid_loss is None else row.valid_loss) < self.best
        if better:
            self.best = row.train_loss if row.valid_loss is None else row.valid_loss
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.meter = LossMeter()
        self.row = row
        if self.world.is_logger:
            self.keep(self)
        self.emit(EpochEnd(row, better))
        if self.epoch < self.job.epochs and self._stop_agreed():
            raise Stopped

    def _stop_agreed(self) -> bool:
        """Whether a stop was asked for that all ranks can obey here, at the epoch's end."""
        if not self.world.is_ddp:
            return self.controls.hurry
        asked = torch.tensor(float(self.world.is_logger and self.controls.hurry), device=self.world.device)
        return bool(self.world.sum(asked))

    def _step_epoch_scheduler(self, row: Row) -> None:
        spec = self.recipe.scheduler
        if self.scheduler is None or spec is None or spec.per_batch:
            return
        watched = row.train_loss if row.valid_loss is None else row.valid_loss
        step_scheduler(self.scheduler, watched if spec.watches_loss else None)

    def _row(self, values: dict[str, float], share: float = 1.0) -> Row:
        """The row of this epoch: the losses of all ranks summed, then divided once (all ranks participate)."""
        self.meter.read()
        self._check_loss()
        own = torch.tensor([self.meter.sum, self.meter.count], dtype=exact(self.world.device), device=self.world.device)
        loss, count = self.world.sum(own).tolist()
        if not count:
            raise RecipeError(
                f"Epoch {self.epoch} had no samples: the training data came out empty; "
                f"pass a stream that starts anew for each epoch (a Dataset, not an exhausted iterator)."
            )
        self.loss_sum, self.loss_count = loss, count
        metrics = {name: value for name, value in values.items() if name != "valid_loss"}
        lr = float(self.optimizer.param_groups[0]["lr"])
        return Row(self.epoch, loss / count, values.get("valid_loss"), self.clock() - self.started, lr, metrics, share)

    def keep_partial(self) -> None:
        """Keep the state in the midst of an epoch, with a row that says how much of it is trained (all ranks)."""
        if not self.step_in_epoch:
            return
        steps = self.batches.steps
        share = min(self.step_in_epoch / steps, 0.999) if steps else 0.5
        self.row = self._row({}, share)
        self.states = self.world.gather(rng.capture())
        if self.world.is_logger:
            self.keep(self)
        self.emit(EpochEnd(self.row))

    # ------------------------------------------------------------------ state

    def progress(self) -> Progress:
        """All state but the weights, as it is now; tensors are shared with the training."""
        state = Progress(
            epoch=self.epoch,
            step=self.step_in_epoch,
            planned=self.planned,
            best=self.best,
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict() if self.scheduler is not None else None,
            scaler=self.scaler.state_dict() if self.scaler is not None else None,
        )
        if not self.step_in_epoch:
            return state
        return replace(
            state,
            loss_sum=self.loss_sum,
            loss_count=self.loss_count,
            seconds=self.row.time if self.row is not None else 0.0,
            generators=self.states,
        )
