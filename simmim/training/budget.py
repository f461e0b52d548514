"""A time budget, planned anew once, when it is known what steps, looks and saves take."""

from collections.abc import Callable
from dataclasses import dataclass

SHARE = 0.03
"""Share of a budget after which it is planned anew."""
LEAST_STEPS = 8
"""Steps that must have been made by then."""


@dataclass(frozen=True)
class Pace:
    """Seconds that things take.

    Attributes:
        step: A step, once training is under way.
        look: A look at the held-out images.
        save: A checkpoint.
    """

    step: float
    look: float
    save: float


class Budget:
    """The time of a run from the step at which its budget began, looks and saves included.

    Args:
        seconds: The budget.
        before: Steps of it that were made by an earlier process.
        clock: Gives seconds.
    """

    def __init__(self, seconds: float, before: int, clock: Callable[[], float]) -> None:
        self.seconds = seconds
        self._before = before
        self._clock = clock
        self._began = clock()
        self._elsewhere = 0.0
        self._times = [0.0]

    def step(self) -> bool:
        """Count a step that was made; whether it is time to plan anew."""
        spent = self._clock() - self._began
        self._times.append(spent - self._elsewhere)
        return len(self._times) > LEAST_STEPS and spent >= SHARE * self.seconds

    def leave_out(self, seconds: float) -> None:
        """Keep the time of a look or a save out of that of the steps."""
        self._elsewhere += seconds

    @property
    def per_step(self) -> float:
        """Seconds of a step over the later half of those made: the first fill caches and queues."""
        half = len(self._times) // 2
        return (self._times[-1] - self._times[half]) / (len(self._times) - 1 - half)

    def steps_left(self, pace: Pace, looks: float, saves: float) -> int:
        """Steps that there is still time for, one at least.

        Args:
            pace: What things take.
            looks: How many there are in a whole budget.
            saves: How many there are in a whole budget.
        """
        spent = self._clock() - self._began + self._before * pace.step
        left = self.seconds - spent
        share = max(left, 0.0) / self.seconds
        return max(1, int((left - share * (looks * pace.look + saves * pace.save)) / pace.step))
