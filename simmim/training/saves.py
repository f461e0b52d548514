"""The checkpoints of a loop: when one is due, and that none is written of weights gone astray."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from simmim.errors import CheckpointError, SimmimError, TrainingError
from simmim.runs.checkpoints import Checkpoint, Checkpoints, optimizer_tensors, restore_optimizer
from simmim.training.health import Health
from simmim.training.parallel import whole
from simmim.training.plan import Plan
from simmim.training.step import Stepper
from simmim.training.world import what_bits_depend_on


class Saves:
    """The checkpoints that a loop makes.

    Args:
        stepper: Has what is saved.
        health: Tells whether it is on its course.
        checkpoints: Where to save; None does not.
        begun: The checkpoint that was gone on from.
        warn: Told where a save failed that is tried again.
        on_save: Called in all processes after each checkpoint, with its step.
        clock: Gives seconds.
    """

    def __init__(
        self,
        stepper: Stepper,
        health: Health,
        checkpoints: Checkpoints | None,
        *,
        begun: Checkpoint | None,
        warn: Callable[[str], None],
        on_save: Callable[[int], None] | None,
        clock: Callable[[], float],
    ) -> None:
        self._stepper, self._health, self._world = stepper, health, stepper.world
        self._checkpoints = checkpoints
        self._warn, self._on_save, self._clock = warn, on_save, clock
        self._last: Path | None = begun.folder if begun else None
        self._step = begun.step if begun else 0
        self._time = clock()
        self._owed = False
        """Whether a checkpoint was due and not made, since the weights were off their course."""

    @property
    def kept(self) -> str:
        """What there is to go on from, in a sentence."""
        if self._checkpoints is None:
            return "Nothing is kept."
        if self._last is None:
            return "No checkpoint was saved before: it starts again from step 0."
        return f"The last good checkpoint is that of step {self._step:,}, {self._last}."

    def how_stopped(self, done: int) -> str:
        """What became of a run that was stopped after ``done`` steps, after "stopped by X"."""
        if self._step == done:
            return f"after step {done}; a checkpoint was saved."
        return f"after step {done}, which was not saved: training is off its course. {self.kept}"

    def due(self, done: int, plan: Plan) -> bool:
        """Whether it is time for a checkpoint, in all processes alike."""
        if self._owed or plan.due(done, plan.save_every):
            return True
        late = self._clock() - self._time >= plan.save_minutes * 60
        return self._world.any(late) if self._world.ranks > 1 else late

    def save(self, done: int, loss: float, *, last: bool, asked: bool) -> None:
        """Save the weights, but never those that are off their course.

        Args:
            done: Steps made.
            loss: Of the last one, for the message.
            last: Whether it was the run's last.
            asked: Whether a signal stops the run here.

        Raises:
            DivergedError: The last weights are off their course.
            TrainingError: The last save failed.
        """
        self._time = self._clock()
        if self._checkpoints is None and not last:
            return
        final = last or asked
        if self._health.made > 0 and (final or not self._health.bad) and self._health.good():
            self._owed = False
            self._write(done, final=final)
            return
        if last:
            self._world.fail(self._health.error(done, loss, self.kept))
        if not self._owed:
            self._warn(f"no checkpoint of step {done:,}: training is off its course. {self.kept}")
        self._owed = True

    def rescue(self, done: int) -> None:
        """Save what was trained before the images went."""
        if self._health.made and not self._health.bad and self._health.good():
            self._write(done, final=False)

    def _write(self, done: int, *, final: bool) -> None:
        if self._checkpoints is None:
            return
        stepper, world = self._stepper, self._world
        extra = {"bits": what_bits_depend_on(world), "first_loss": self._health.first}
        if stepper.scaler.is_enabled():
            extra["scaler"] = stepper.scaler.state_dict()
        weights = whole(stepper.task.module.state_dict(), world)
        moments = whole(optimizer_tensors(stepper.optimizer), world)
        save = partial(self._checkpoints.save, done, weights, moments, extra)
        try:
            self._last, self._step = world.write(save), done
            if self._on_save is not None:
                self._on_save(done)
        except SimmimError as error:
            if final:
                world.fail(TrainingError(f"{sentence(error)} Then go on with --resume."))
            self._warn(f"{sentence(error)} Training goes on; the next save is tried in time.")


def restore(stepper: Stepper, checkpoint: Checkpoint) -> None:
    """Bring weights, moments and the scale of the loss to where a checkpoint has them.

    Raises:
        CheckpointError: It is of another model.
    """
    try:
        stepper.task.module.load_state_dict(checkpoint.model())
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.folder} is of another model: {error}") from error
    restore_optimizer(stepper.optimizer, checkpoint.optimizer())
    if "scaler" in checkpoint.state:
        stepper.scaler.load_state_dict(checkpoint.state["scaler"])


def sentence(error: Exception) -> str:
    """What an error says, with a full stop."""
    text = str(error)
    return text if text.endswith((".", "?")) else f"{text}."
