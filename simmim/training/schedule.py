"""The learning rate as a pure function of the step."""

import math
from dataclasses import dataclass

from simmim.config.optim import OptimConfig


@dataclass(frozen=True)
class Schedule:
    """The learning rate of a run.

    Args:
        config: Shape of the schedule.
        peak: The highest rate, for the run's global batch.
        steps: Steps of the run.
        warmup: Steps of linear warm-up.
    """

    config: OptimConfig
    peak: float
    steps: int
    warmup: int

    @classmethod
    def plan(cls, config: OptimConfig, batch_size: int, steps: int, epoch: float) -> "Schedule":
        """The schedule of ``steps`` steps, where an epoch has ``epoch`` of them."""
        warmup = config.warmup_share * steps
        if config.warmup_epochs is not None:
            warmup = min(config.warmup_epochs * epoch, warmup)
        return cls(config, config.peak(batch_size), steps, round(warmup))

    def rate(self, step: int) -> float:
        """The rate of step ``step``, counted from 0."""
        initial, final = self.config.initial, self.config.final
        if step < self.warmup:
            return self.peak * (initial + (1 - initial) * (step + 1) / self.warmup)
        if self.config.schedule == "multistep":
            return self.peak * (0.1 if step >= self.steps * 7 / 8 else 1.0)
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        left = 1 - progress
        if self.config.schedule == "cosine":
            left = 0.5 * (1 + math.cos(math.pi * progress))
        return self.peak * (final + (1 - final) * left)
