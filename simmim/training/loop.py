"""The one loop: pretraining and fine-tuning differ in their task alone."""

import time
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from simmim.data.loading.loader import TrainStream
from simmim.errors import SimmimError, Stopped, TrainingError
from simmim.runs.checkpoints import Checkpoint, Checkpoints
from simmim.runs.stop import StopSignal
from simmim.training.batches import Batches
from simmim.training.course import Course
from simmim.training.health import Health
from simmim.training.optim import build_optimizer
from simmim.training.parallel import wrap
from simmim.training.plan import Plan
from simmim.training.readings import Readings, Watcher
from simmim.training.saves import Saves, restore, sentence
from simmim.training.step import Stepper, StepValues, looking
from simmim.training.task import Task
from simmim.training.world import World

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
    ahead: int | None = None,
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
        ahead: Steps that are begun before the values of one are read, so that a GPU has work while
            they are; None: one on a GPU. Where there is a look or a save, all are read.
        clock: Gives seconds.

    Raises:
        Stopped: A signal asked for it; a checkpoint was saved first.
        DivergedError: Many steps in a row, or the last weights, are far off their course.
        TrainingError: Images cannot be had any more, another process was lost, or the last save
            failed.
    """
    warn = partial(_warn, watchers)
    stepper = Stepper(
        task,
        build_optimizer(task.module, task.roles(), plan.optim, world),
        batch_size=plan.batch_size,
        precision=plan.precision,
        clip=plan.optim.clip,
        seed=plan.seed,
        world=world,
    )
    start, first_loss = 0, None
    if resume is not None:
        restore(stepper, resume)
        start, first_loss = resume.step, resume.state.get("first_loss")
    health = Health(task, plan.precision, world, first_loss)
    with world.watched():
        world.meet()  # the first process had more to prepare
        task.module.train()
        task.call = wrap(task.module, world)
        saves = Saves(
            stepper, health, checkpoints, begun=resume, warn=warn, on_save=on_save, clock=clock
        )
        course = Course(plan, start, world, on_plan, clock)
        batches = Batches(stream.start(start), plan.batch_size, clock)
        readings = Readings(health, saves, watchers, ahead)
        done = start
        while done < course.plan.steps:
            rate = course.rate(done)
            values = _step(stepper, batches, rate, health, partial(readings.rescue, done))
            done += 1
            task.after_step(done, course.plan.steps)
            measures = course.count(done)
            plan = course.plan
            last = done == plan.steps
            look = plan.due(done, plan.look_every) or (measures and plan.look_every > 0)
            row = None
            if look or last or batches.since() >= plan.log_every:
                row = {"step": done, "epoch": done / plan.epoch, "lr": rate}
                row |= batches.measure(done - start) | {"bad": stream.bad}
            readings.put(done, values, row)
            if look:
                readings.read()
                began = clock()
                readings.add(_look(looks, task.module, done, warn))
                course.look_took(clock() - began)
                batches.restart()
                world.meet()  # the first process was busy, which is no reason to give it up
            readings.tell()
            asked = stop is not None and world.any(stop.number is not None)
            save = last or asked or measures or saves.due(done, plan)
            if save:
                readings.read()
                readings.tell()
                began = clock()
                saves.save(done, readings.loss, last=last, asked=asked)
                world.meet()
                course.save_took(clock() - began)
            if stop is not None and asked and not last:
                raise Stopped(stop.number or 15, saves.how_stopped(done))


def _step(
    stepper: Stepper, batches: Batches, rate: float, health: Health, rescue: Callable[[], None]
) -> StepValues:
    """Begin a step in all processes or in none; ``rescue`` saves what was trained before."""
    world, lost = stepper.world, None
    try:
        batches.peek()
    except TrainingError as error:
        lost = error
    if world.any(lost is not None):
        rescue()
        world.fail(next(each for each in world.gather(lost) if each is not None))
    try:
        health.before_step(batches.peek())
        return stepper.begin(batches, rate)
    except TrainingError:
        if world.ranks == 1:  # the others would wait for this one in mid-step
            rescue()
        raise


def _look(
    looks: Sequence[Look], module: nn.Module, step: int, warn: Callable[[str], None]
) -> dict[str, float]:
    values: dict[str, float] = {}
    with looking(module):
        for look in looks:
            try:
                values |= look(step)
            except (OSError, SimmimError) as error:  # no place, or features of no use
                warn(f"a look at step {step} failed: {sentence(error)} Training goes on.")
    return values


def _warn(watchers: Sequence[Watcher], text: str) -> None:
    for watcher in watchers:
        watcher.note(f"warning: {text}")
