"""The one loop: pretraining and fine-tuning differ in their task alone."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from simmim.data.loading.loader import TrainStream
from simmim.errors import CheckpointError, SimmimError, Stopped, TrainingError
from simmim.runs.checkpoints import (
    Checkpoint,
    Checkpoints,
    optimizer_tensors,
    restore_optimizer,
)
from simmim.runs.stop import StopSignal
from simmim.training.batches import Batches
from simmim.training.budget import Budget
from simmim.training.health import Health
from simmim.training.optim import build_optimizer
from simmim.training.parallel import whole, wrap
from simmim.training.plan import Plan
from simmim.training.step import Stepper, looking
from simmim.training.task import Task
from simmim.training.world import World, what_bits_depend_on

_SAVE_EVERY = 0.1
"""Share of the run between two checkpoints, where that is not longer than ``save_minutes``."""


class Watcher(Protocol):
    """What is told of a run while it goes on: the terminal, the log."""

    def update(self, row: dict[str, float]) -> None:
        """A row of metrics; ``step`` counts finished steps, from 1."""
        ...

    def note(self, text: str) -> None:
        """A line that a person should read."""
        ...


Look = Callable[[int], dict[str, float]]
"""Looks at the module after a step (pictures, probes), in all processes, and returns values for the
row."""


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
    on_plan: Callable[[Plan], None] | None = None,
    stop: StopSignal | None = None,
    clock: Callable[[], float] = time.monotonic,
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
        on_save: Called in all processes after each checkpoint, with its step.
        on_plan: Called with the new plan where the steps for a budget were counted anew.
        stop: Asked after each step.
        clock: Gives seconds.

    Raises:
        Stopped: A signal asked for it; a checkpoint was saved first.
        DivergedError: Many steps in a row, or the last weights, are far off their course.
        TrainingError: Images cannot be had any more, another process was lost, or the last save
            failed.
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
        on_plan=on_plan,
        resume=resume,
        clock=clock,
    )
    with world.watched():
        loop.begin()
        while loop.done < loop.plan.steps:
            loop.advance(stop)


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
        on_plan: Callable[[Plan], None] | None,
        resume: Checkpoint | None,
        clock: Callable[[], float],
    ) -> None:
        self.task, self.plan, self.stream, self.world = task, plan, stream, world
        self.watchers, self.looks = watchers, looks
        self.checkpoints, self.on_save, self.on_plan = checkpoints, on_save, on_plan
        self.clock = clock
        self.optimizer = build_optimizer(task.module, task.roles(), plan.optim, self.world)
        self.stepper = Stepper(
            task,
            self.optimizer,
            batch_size=plan.batch_size,
            precision=plan.precision,
            clip=plan.optim.clip,
            seed=plan.seed,
            world=world,
        )
        self.saved: Path | None = None
        self.saved_step = self.start = self.done = 0
        first_loss = None
        if resume is not None:
            self._restore(resume)
            self.saved = resume.folder
            self.saved_step = self.start = self.done = resume.step
            first_loss = resume.state.get("first_loss")
        self.health = Health(task, plan.precision, world, first_loss)
        self.schedules = plan.schedules()
        self.look_seconds = 0.0
        self.skipped = 0.0
        """Steps skipped since the last row."""
        self.owed = False
        """Whether a checkpoint was due and not made, since the weights were off their course."""

    def begin(self) -> None:
        """Be ready for the first step, in all processes."""
        plan, task = self.plan, self.task
        self.world.meet()  # the first process had more to prepare
        task.module.train()
        task.call = wrap(task.module, self.world)
        self.saved_time = self.clock()
        began = plan.earlier[-1].until if plan.earlier else 0
        self.budget = None
        if plan.budget:
            self.budget = Budget(plan.budget, plan.spent, self.start - began, self.clock)
        self.batches = Batches(self.stream.start(self.start), plan.batch_size, self.clock)

    def advance(self, stop: StopSignal | None) -> None:
        """Make one step, and all that is due after it."""
        rate = next(each.rate(self.done) for until, each in self.schedules if self.done < until)
        self._check_images(self.done)
        try:
            self.health.before_step(self.batches.peek())
            values = self.stepper.step(self.batches, rate)
        except TrainingError:
            if self.world.ranks == 1:  # the others would wait for this one in mid-step
                self._rescue(self.done)
            raise
        self.done = done = self.done + 1
        self.task.after_step(done, self.plan.steps)
        self.skipped += values["skipped"]
        if not self.health.after_step(values):
            self.world.fail(self.health.error(done, values["loss"], self._kept))
        measures = self.budget is not None and self._count_if_due(done)
        last = done == self.plan.steps
        look = self._due(done, self.plan.look_every) or (measures and self.plan.look_every > 0)
        if look or last or self.batches.since() >= self.plan.log_every:
            self._tell(done, {"lr": rate, **values}, look=look)
        if look:
            self.world.meet()  # the first process was busy, which is no reason to give it up
        asked = stop is not None and self.world.any(stop.number is not None)
        save = last or asked or measures or self._save_due(done)
        began = self.clock()
        if save:
            self._save(done, values["loss"], last=last, asked=asked)
            self.world.meet()
        if asked and not last:
            assert stop is not None
            raise Stopped(stop.number or 15, self._how_stopped(done))
        if self.budget is not None:
            self.budget.saves += [self.clock() - began] if save else []
            self.budget.looks += [self.look_seconds] if look else []

    def _restore(self, resume: Checkpoint) -> None:
        try:
            self.task.module.load_state_dict(resume.model())
        except RuntimeError as error:
            raise CheckpointError(f"{resume.folder} is of another model: {error}") from error
        restore_optimizer(self.optimizer, resume.optimizer())
        if "scaler" in resume.state:
            self.stepper.scaler.load_state_dict(resume.state["scaler"])

    def _due(self, done: int, share: float) -> bool:
        # Steps at which done/steps crosses a multiple of the share, and the last.
        if not share:
            return False
        steps = self.plan.steps
        crossed = int(done / steps / share + 1e-9) > int((done - 1) / steps / share + 1e-9)
        return crossed or done == steps

    def _tell(self, done: int, values: dict[str, float], *, look: bool) -> None:
        row = {"step": done, "epoch": done / self.plan.epoch, **values, "skipped": self.skipped}
        self.skipped = 0.0
        row |= self.batches.measure(done - self.start) | {"bad": self.stream.bad}
        if look:
            row |= self._look(done)
            self.batches.restart()
        for watcher in self.watchers:
            watcher.update(row)

    def _look(self, done: int) -> dict[str, float]:
        values: dict[str, float] = {}
        began = self.clock()
        with looking(self.task.module):
            for look in self.looks:
                try:
                    values |= look(done)
                except (OSError, SimmimError) as error:  # no place, or features of no use
                    self._warn(
                        f"a look at step {done} failed: {_sentence(error)} Training goes on."
                    )
        self.look_seconds = self.clock() - began
        return values

    def _count_if_due(self, done: int) -> bool:
        """Count the steps for the budget anew where it is time; the first process decides.

        Returns:
            Whether a look and a save are to be made before, so that it is known what they take.
        """
        budget, ends = self.budget, done == self.plan.steps
        assert budget is not None
        due = self.world.any(budget.step() and self.world.leads)
        measured = bool(budget.saves and (budget.looks or not self.plan.look_every))
        if ends or (due and measured):
            self._count_anew(done, budget)
        return due and not measured

    def _count_anew(self, done: int, budget: Budget) -> None:
        """Plan as many steps as fit into what is left of the budget, by what was measured."""
        plan = self.plan
        looks = 1 / plan.look_every if plan.look_every else 0.0
        saves = max(1 / _SAVE_EVERY, plan.budget / 60 / plan.save_minutes)
        why = (
            f"counted anew at step {done:,}: {budget.per_step:.2g} s a step, "
            f"{budget.per_look:.2g} s a look, {budget.per_save:.2g} s a save"
        )
        steps = done + budget.steps_left(plan.steps - done, looks=looks, saves=saves)
        spent = 0.0 if budget.settled else budget.spent
        steps, spent, why = self.world.share((steps, spent, why))
        if not spent:
            self.budget = None
        if steps != plan.steps:
            self.plan = plan.again(done, steps, why, spent=spent)
            self.schedules = self.plan.schedules()
            if self.on_plan is not None:
                self.on_plan(self.plan)

    def _save_due(self, done: int) -> bool:
        if self.owed or self._due(done, _SAVE_EVERY):
            return True
        late = self.clock() - self.saved_time >= self.plan.save_minutes * 60
        return self.world.any(late) if self.world.ranks > 1 else late

    def _save(self, done: int, loss: float, *, last: bool, asked: bool) -> None:
        """Save the weights, but never those that are off their course."""
        self.saved_time = self.clock()
        if self.checkpoints is None and not last:
            return
        final = last or asked
        good = self.health.made > 0 and (final or not self.health.bad) and self.health.good()
        if good:
            self.owed = False
            self._write(done, final=final)
            return
        if last:
            self.world.fail(self.health.error(done, loss, self._kept))
        if not self.owed:
            self._warn(f"no checkpoint of step {done:,}: training is off its course. {self._kept}")
        self.owed = True

    def _write(self, done: int, *, final: bool) -> None:
        if self.checkpoints is None:
            return
        extra = {"bits": what_bits_depend_on(self.world), "first_loss": self.health.first}
        if self.stepper.scaler.is_enabled():
            extra["scaler"] = self.stepper.scaler.state_dict()
        weights = whole(self.task.module.state_dict(), self.world)
        moments = whole(optimizer_tensors(self.optimizer), self.world)
        save = partial(self.checkpoints.save, done, weights, moments, extra)
        try:
            self.saved, self.saved_step = self.world.write(save), done
            if self.on_save is not None:
                self.on_save(done)
        except SimmimError as error:
            if final:
                self.world.fail(TrainingError(f"{_sentence(error)} Then go on with --resume."))
            self._warn(f"{_sentence(error)} Training goes on; the next save is tried in time.")

    def _check_images(self, step: int) -> None:
        """Begin a step in all processes or in none; what was trained before is saved first."""
        lost = None
        try:
            self.batches.peek()
        except TrainingError as error:
            lost = error
        if self.world.any(lost is not None):
            self._rescue(step)
            self.world.fail(next(each for each in self.world.gather(lost) if each is not None))

    def _rescue(self, done: int) -> None:
        """Save what was trained before the images went."""
        health = self.health
        if health.made and not health.bad and health.good():
            self._write(done, final=False)

    @property
    def _kept(self) -> str:
        """What there is to go on from, in a sentence."""
        if self.checkpoints is None:
            return "Nothing is kept."
        if self.saved is None:
            return "No checkpoint was saved before: it starts again from step 0."
        return f"The last good checkpoint is that of step {self.saved_step:,}, {self.saved}."

    def _how_stopped(self, done: int) -> str:
        if self.saved_step == done:
            return f"after step {done}; a checkpoint was saved."
        return f"after step {done}, which was not saved: training is off its course. {self._kept}"

    def _warn(self, text: str) -> None:
        for watcher in self.watchers:
            watcher.note(f"warning: {text}")


def _sentence(error: Exception) -> str:
    text = str(error)
    return text if text.endswith((".", "?")) else f"{text}."
