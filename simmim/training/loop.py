"""The one loop: pretraining and fine-tuning differ in their task alone."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn

from simmim.config.optim import OptimConfig
from simmim.data.loader import Batch, TrainStream
from simmim.errors import CheckpointError, ResourceError, TrainingError
from simmim.training.checkpoint import Checkpoint, Checkpoints, restore_optimizer
from simmim.training.optim import Schedule, build_optimizer
from simmim.training.step import Stepper, Task
from simmim.training.stop import Stopped, StopSignal
from simmim.training.world import World

_PATIENCE = 50  # steps in a row without a finite gradient


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The numbers of a run that the loop needs; all but the last three change the result."""

    steps: int
    """Steps in all."""
    batch_size: int
    """Images per step over all processes."""
    epoch: float
    """Steps per epoch."""
    optim: OptimConfig
    precision: Literal["fp32", "bf16", "fp16"]
    seed: int
    log_every: float = 0.0
    """Least seconds between two rows."""
    save_minutes: float = 10.0
    """Longest time between two checkpoints; a tenth of the run is the other limit."""
    look_every: float = 0.1
    """Share of the run between two looks; 0 turns them off."""


class Watcher(Protocol):
    """What is told of a run while it goes on: the terminal, the log."""

    def update(self, row: dict[str, float]) -> None:
        """A row of metrics; ``step`` counts finished steps, from 1."""
        ...

    def note(self, text: str) -> None:
        """A line that a person should read."""
        ...


Look = Callable[[int], dict[str, float]]
"""Looks at the module after a step (pictures, probes) and returns values for the row."""


@contextmanager
def looking(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the module trains on as it did before."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def train(
    task: Task,
    plan: Plan,
    stream: TrainStream,
    world: World,
    *,
    watchers: Sequence[Watcher] = (),
    looks: Sequence[Look] = (),
    checkpoints: Checkpoints | None = None,
    resume: Checkpoint | None = None,
    on_save: Callable[[int], None] | None = None,
    stop: StopSignal | None = None,
) -> None:
    """Train ``task`` from step 0, or from a checkpoint, to ``plan.steps``.

    Args:
        task: Its module is on ``world.device`` and holds its first weights.
        plan: How long and how.
        stream: Micro-batches of this process from any step on.
        world: The processes.
        watchers: Told of each row.
        looks: Called every ``plan.look_every`` of the run and after the last step.
        checkpoints: Where to save; None does not.
        resume: A checkpoint of this run, whose weights are loaded here.
        on_save: Called after each checkpoint with its step.
        stop: Asked after each step.

    Raises:
        Stopped: A signal asked for it; a checkpoint was saved first.
        TrainingError: Gradients are not finite for many steps, or the last save failed.
    """
    loop = _Loop(
        task,
        plan,
        stream,
        world,
        watchers=watchers,
        looks=looks,
        checkpoints=checkpoints,
        on_save=on_save,
    )
    loop.run(resume, stop)


class _Loop:
    def __init__(
        self,
        task: Task,
        plan: Plan,
        stream: TrainStream,
        world: World,
        *,
        watchers: Sequence[Watcher],
        looks: Sequence[Look],
        checkpoints: Checkpoints | None,
        on_save: Callable[[int], None] | None,
    ) -> None:
        self.task, self.plan, self.stream, self.world = task, plan, stream, world
        self.watchers, self.looks = watchers, looks
        self.checkpoints, self.on_save = checkpoints, on_save
        self.optimizer = build_optimizer(task.module, task.roles(), plan.optim)
        self.stepper = Stepper(
            task,
            self.optimizer,
            batch_size=plan.batch_size,
            precision=plan.precision,
            clip=plan.optim.clip,
            seed=plan.seed,
            world=world,
        )
        self.saved_at = 0
        self.saved_time = time.monotonic()

    def run(self, resume: Checkpoint | None, stop: StopSignal | None) -> None:
        """From the checkpoint, or from step 0, to the end."""
        plan, task = self.plan, self.task
        start = self._restore(resume) if resume else 0
        self.saved_at = start
        task.module.train()
        task.call = self.world.wrap(task.module)
        schedule = Schedule.plan(plan.optim, plan.batch_size, plan.steps, plan.epoch)
        clock = _Clock(self.stream.start(start), plan.batch_size)
        unhealthy = 0
        for step in range(start, plan.steps):
            rate = schedule.rate(step)
            values = self.stepper.step(clock, rate)
            done = step + 1
            task.after_step(done)
            unhealthy = unhealthy + 1 if values["skipped"] else 0
            if unhealthy >= _PATIENCE:
                raise TrainingError(
                    f"no finite gradient in the {_PATIENCE} steps up to {done}; the last "
                    "checkpoint is good. Lower --optim.lr, or use --precision fp32."
                )
            last = done == plan.steps
            look = self._due(done, plan.look_every)
            if look or last or clock.since() >= plan.log_every:
                row = {"step": done, "epoch": done / plan.epoch, "lr": rate, **values}
                row |= clock.measure(done - start) | {"bad": self.stream.bad}
                if look:
                    row |= self._look(done)
                    clock.restart()
                for watcher in self.watchers:
                    watcher.update(row)
            asked = stop is not None and self.world.any(stop.number is not None)
            if self._save_due(done) or last or asked:
                self._save(done, final=last or asked)
            if asked and not last:
                assert stop is not None
                raise Stopped(stop.number or 15, done)

    def _restore(self, resume: Checkpoint) -> int:
        try:
            self.task.module.load_state_dict(resume.model())
        except RuntimeError as error:
            raise CheckpointError(f"{resume.folder} is of another model: {error}") from error
        restore_optimizer(self.optimizer, resume.optimizer())
        if "scaler" in resume.state:
            self.stepper.scaler.load_state_dict(resume.state["scaler"])
        return resume.step

    def _due(self, done: int, share: float) -> bool:
        # Steps at which done/steps crosses a multiple of the share, and the last.
        if not share:
            return False
        steps = self.plan.steps
        crossed = int(done / steps / share + 1e-9) > int((done - 1) / steps / share + 1e-9)
        return crossed or done == steps

    def _look(self, done: int) -> dict[str, float]:
        values: dict[str, float] = {}
        if self.world.leads:
            with looking(self.task.module):
                for look in self.looks:
                    try:
                        values |= look(done)
                    except OSError as error:  # a picture that cannot be written
                        self._warn(f"no picture of step {done}: {error}. Training goes on.")
        return values

    def _save_due(self, done: int) -> bool:
        if self._due(done, 0.1):
            return True
        late = time.monotonic() - self.saved_time >= self.plan.save_minutes * 60
        return self.world.any(late) if self.world.ranks > 1 else late

    def _save(self, done: int, *, final: bool) -> None:
        self.saved_time = time.monotonic()
        if self.checkpoints is None or done == self.saved_at or not self.world.leads:
            return
        extra = {"bits": what_bits_depend_on(self.world)}
        if self.stepper.scaler.is_enabled():
            extra["scaler"] = self.stepper.scaler.state_dict()
        try:
            self.checkpoints.save(done, self.task.module, self.optimizer, extra)
            self.saved_at = done
            if self.on_save is not None:
                self.on_save(done)
        except (ResourceError, CheckpointError, OSError) as error:
            if final:
                raise TrainingError(f"{error} Then go on with --resume.") from error
            self._warn(f"{error} Training goes on; the next save is tried in time.")

    def _warn(self, text: str) -> None:
        for watcher in self.watchers:
            watcher.note(f"warning: {text}")


class _Clock:
    """Hands batches on and measures speed and waiting."""

    def __init__(self, batches: Iterator[Batch], batch_size: int) -> None:
        self.batches = batches
        self.batch_size = batch_size
        self.began = self.mark = time.monotonic()
        self.waited = 0.0
        self.done = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        before = time.monotonic()
        batch = next(self.batches)
        self.waited += time.monotonic() - before
        return batch

    def since(self) -> float:
        """Seconds since the last row."""
        return time.monotonic() - self.mark

    def measure(self, done: int) -> dict[str, float]:
        """Images/s and share of waiting since the last row; ``done`` steps of this attempt."""
        now = time.monotonic()
        seconds = max(now - self.mark, 1e-9)
        row = {
            "images_per_s": (done - self.done) * self.batch_size / seconds,
            "data_wait": self.waited / seconds,
            "time": now - self.began,
        }
        self.mark, self.waited, self.done = now, 0.0, done
        return row

    def restart(self) -> None:
        """Leave the time since the last row out: it went into a look, not into training."""
        self.mark = time.monotonic()


def what_bits_depend_on(world: World) -> dict[str, str | int]:
    """A resumed run ends with the same bits where all of these are the same."""
    capability = torch.backends.cpu.get_cpu_capability()
    if world.device.type == "cuda":
        capability = torch.cuda.get_device_name(world.device)
    return {
        "torch": torch.__version__,
        "device": f"{world.device.type} {capability}",
        "threads": torch.get_num_threads(),
        "processes": world.ranks,
        "optimizer": "AdamW fused",
    }
