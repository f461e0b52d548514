"""Whether a training is still on its course, judged on a few images that stay the same.

The loss of a step says little: batches differ, small ones most. So the first images of the run are
kept, and their loss under the same masks is looked at before weights are saved, and after a step
that was skipped or whose own loss is far off. A model is **off its course** where that loss is not
finite, or more than ten times the lowest that it has had and more than it was at first.
"""

import torch

from simmim.errors import TrainingError
from simmim.tensors.batch import Batch
from simmim.training.parallel import full
from simmim.training.step import autocast, looking
from simmim.training.task import Task
from simmim.training.world import World

FAR = 10.0
"""So many times its lowest, a loss is far off."""
PATIENCE = 50
"""Steps in a row that may be skipped or off their course before the run ends."""
_IMAGES = 32
_LARGE_INPUT = 1e4
_GROWN = 10.0


class DivergedError(TrainingError):
    """A training that went off its course; ``cause`` is "rate", "images", or "" if not known."""

    def __init__(self, text: str, cause: str) -> None:
        super().__init__(text)
        self.cause = cause


class Health:
    """Judges a training step by step; the same on all processes.

    Args:
        task: What is trained.
        precision: Of the forward pass, see ``autocast``.
        world: Each process looks at a share of the images.
        first: The loss that the run began with, where it goes on; None: it begins.
    """

    def __init__(self, task: Task, precision: str, world: World, first: float | None) -> None:
        self.task = task
        self.precision = precision
        self.world = world
        self.first = first
        self.lowest = float("inf")
        self.bad = 0
        """Steps in a row, up to now, that were skipped or off their course."""
        self.made = 0
        """Steps of this attempt that were made."""
        self.skipped = 0
        """Steps of this attempt that were skipped."""
        self._images: Batch | None = None
        self._last: Batch | None = None
        self._known = False
        self._weights = self._largest_weight()

    @property
    def limit(self) -> float:
        """The loss from which on a training is off its course."""
        return max(FAR * self.lowest, self.first or 0.0) if self._known else float("inf")

    def before_step(self, batch: Batch) -> None:
        """Keep the first images whose loss is finite, and their loss before the step changes it."""
        self._last = batch
        if self._known:
            return
        self._images = batch.head(-(-_IMAGES // self.world.ranks))
        loss = self._loss()
        if loss < float("inf"):
            self._known, self.lowest = True, loss
            self.first = loss if self.first is None else self.first

    def after_step(self, values: dict[str, float]) -> bool:
        """Judge a step by the loss that it began with and by whether it was skipped.

        Returns:
            Whether there is hope: not too many steps in a row were skipped or off their course.
        """
        skipped = bool(values["skipped"])
        self.skipped += skipped
        self.made += not skipped
        off = skipped or (not values["loss"] <= self.limit and not self.good())
        self.bad = self.bad + 1 if off else 0
        return self.bad < PATIENCE

    def good(self) -> bool:
        """Whether the weights, as they are now, are on their course."""
        if not self._known:
            return not self.skipped
        loss = self._loss()
        good = loss <= self.limit
        self.lowest = min(self.lowest, loss) if good else self.lowest
        return good

    def error(self, step: int, loss: float, kept: str) -> DivergedError:
        """What went wrong, in words without advice.

        Args:
            step: The last step.
            loss: Its loss.
            kept: A sentence on what there is to go on from.
        """
        if self.made == 0:
            what = f"all {self.skipped:,} steps were skipped, since no gradient was finite"
        elif self.bad:
            first = step - self.bad + 1
            steps = f"steps {first:,} to {step:,}" if self.bad > 1 else f"step {step:,}"
            what = f"{steps} were skipped or far off their course"
        else:
            what = f"the weights of step {step:,} are far off their course"
        cause, why = self.world.share(self._cause())
        before = f" and was {short(self.lowest)}" if self._known else ""
        return DivergedError(f"{what}; the loss is {short(loss)}{before}. {why} {kept}", cause)

    def _loss(self) -> float:
        """The mean loss of the kept images of all processes now; infinite where not finite."""
        task, batch, device = self.task, self._images, self.world.device
        assert batch is not None
        with looking(task.module), autocast(device, self.precision):  # type: ignore[arg-type]
            loss = float(task.loss(batch.to(device))["loss"])
        rows = len(batch.t)
        sums = torch.tensor([loss * rows, rows], dtype=torch.float64)
        total, count = self.world.total(sums).tolist()
        return min(float("inf"), total / count)  # in this order NaN, too, becomes infinite

    def _cause(self) -> tuple[str, str]:
        """A word and a sentence on what is out of proportion."""
        assert self._last is not None
        inputs = self.task.inputs(self._last.to(self.world.device)).abs().max().item()
        if not inputs <= _LARGE_INPUT:
            return "images", (
                f"Values of the images lie {short(inputs)} standard deviations from their mean, "
                "which no model can learn from."
            )
        weights = self._largest_weight()
        if not weights <= _GROWN * self._weights:
            grown = f"Weights have grown from {short(self._weights)} to {short(weights)}"
            return "rate", f"{grown}: the rate is too high."
        return "", "Images and weights are within their usual range."

    def _largest_weight(self) -> float:
        weights = (full(p.detach(), self.world) for p in self.task.module.parameters())
        return max(float(each.abs().max()) for each in weights)


def short(value: float) -> str:
    """A number in three digits: 1.32, 2.42e22, nan."""
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
