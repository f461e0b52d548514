"""How long a run is, and what rate it follows: planned at first, and perhaps anew."""

from dataclasses import dataclass, replace
from typing import Literal

from simmim.config.optim import OptimConfig
from simmim.config.resolved import Earlier
from simmim.training.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The numbers of a run that the loop needs; all but the last four change the result."""

    steps: int
    """Steps in all."""
    batch_size: int
    """Images per step over all processes."""
    epoch: float
    """Steps per epoch."""
    optim: OptimConfig
    precision: Literal["fp32", "bf16", "fp16"]
    seed: int
    earlier: tuple[Earlier, ...] = ()
    """What was followed before this plan."""
    budget: float = 0.0
    """Seconds for the run, for which the steps are counted anew in it; 0: the steps stand."""
    spent: float = 0.0
    """Seconds of the budget that were spent at the end of ``earlier``."""
    log_every: float = 0.0
    """Least seconds between two rows."""
    save_minutes: float = 10.0
    """Longest time between two checkpoints."""
    save_every: float = 0.1
    """Share of the run between two checkpoints, where that is not longer than ``save_minutes``."""
    look_every: float = 0.1
    """Share of the run between two looks; 0 turns them off."""

    def schedules(self) -> list[tuple[float, Schedule]]:
        """The schedules to follow, each with the number of steps up to which it is followed."""
        plans = [(e.until, e.steps, replace(self.optim, lr=e.lr)) for e in self.earlier]
        return [
            (until, Schedule.plan(optim, self.batch_size, steps, self.epoch))
            for until, steps, optim in [*plans, (float("inf"), self.steps, self.optim)]
        ]

    def saves(self, seconds: float) -> float:
        """How many checkpoints a run of so many seconds writes."""
        return max(1 / self.save_every, seconds / 60 / self.save_minutes)

    def looks(self) -> float:
        """How many looks there are."""
        return 1 / self.look_every if self.look_every else 0.0

    def due(self, done: int, share: float) -> bool:
        """Whether ``done`` steps cross a multiple of a share of the run, or are all."""
        if not share:
            return False
        before, now = (int(step / self.steps / share + 1e-9) for step in (done - 1, done))
        return now > before or done == self.steps

    def again(self, done: int, steps: int, why: str, *, spent: float = 0.0) -> "Plan":
        """Another number of steps, to be followed from ``done`` on.

        Args:
            done: Steps made.
            steps: Steps in all.
            why: Why there are others now.
            spent: Seconds of the budget that are spent; 0: the steps stand from now on.
        """
        assert self.optim.lr is not None
        own = {} if spent else {"budget": 0.0}
        before = Earlier(until=done, steps=self.steps, lr=self.optim.lr, why=why)
        return replace(self, steps=steps, earlier=(*self.earlier, before), spent=spent, **own)
