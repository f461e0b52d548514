"""A time budget: the steps for it are counted anew as it is known what they and the rest take."""

import math
from array import array
from collections.abc import Callable

MARKS = (0.03, 0.3, 0.7)
"""Shares of a budget after which the steps for it are counted anew."""
LEAST_STEPS = 8
"""Steps that must have been made by the first mark; by the second, any number will do."""
TOLERANCE = 0.03
"""Share of the budget by which a run may end early or late without being planned anew."""


class Budget:
    """The time of a run from the step at which its budget began, looks and saves included.

    Args:
        seconds: The budget.
        spent: Seconds of it that were spent when the plan was made that is followed now.
        before: Steps of that plan that were made by an earlier process.
        clock: Gives seconds.
    """

    def __init__(
        self, seconds: float, spent: float, before: int, clock: Callable[[], float]
    ) -> None:
        self.seconds = seconds
        self.looks: list[float] = []
        self.saves: list[float] = []
        self._spent, self._before = spent, before
        self._clock = clock
        self._began = clock()
        self._times = array("d", [0.0])  # of a long run there are millions
        self._marks = [mark * seconds for mark in MARKS if mark * seconds > spent]

    @property
    def settled(self) -> bool:
        """Whether the steps are not counted any more."""
        return not self._marks

    @property
    def spent(self) -> float:
        """Seconds of the budget that are spent."""
        return self._spent + self._before * self.per_step + self._clock() - self._began

    def step(self) -> bool:
        """Count a step that was made; whether it is time to count those that there is time for."""
        elsewhere = sum(self.looks) + sum(self.saves)
        self._times.append(self._clock() - self._began - elsewhere)
        some = len(self._times) > LEAST_STEPS or self.spent >= MARKS[1] * self.seconds
        return bool(self._marks) and some and self.spent >= self._marks[0]

    @property
    def per_step(self) -> float:
        """Seconds of a step over the later half of those made: the first fill caches and queues."""
        half = len(self._times) // 2
        return (self._times[-1] - self._times[half]) / max(1, len(self._times) - 1 - half)

    @property
    def per_look(self) -> float:
        """Seconds of a look; the first one of a process, which imports much, only if no other."""
        return _mean(self.looks[1:] or self.looks)

    @property
    def per_save(self) -> float:
        """Seconds of a checkpoint."""
        return _mean(self.saves)

    def steps_left(self, planned: int, looks: float, saves: float) -> int:
        """Steps that there is still time for; those that are planned, where they fit.

        Args:
            planned: Steps left in the plan.
            looks: How many there are in a whole budget.
            saves: How many there are in a whole budget.
        """
        spent, pace = self.spent, max(self.per_step, 1e-9)
        self._marks = [mark for mark in self._marks if mark > spent]
        left = self.seconds - spent
        share = max(left, 0.0) / self.seconds
        rest = share * (looks * self.per_look + saves * self.per_save)
        if abs(left - rest - planned * pace) <= max(TOLERANCE * self.seconds, pace):
            return planned
        # A run does not end before it was counted for the last time.
        until_mark = math.ceil((self._marks[0] - spent) / pace) + 1 if self._marks else 1
        return max(until_mark, int((left - rest) / pace))


def _mean(seconds: list[float]) -> float:
    return sum(seconds) / len(seconds) if seconds else 0.0
