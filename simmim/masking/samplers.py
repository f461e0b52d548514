"""Samplers score patches; the mask takes the best."""

from typing import Protocol

from torch import Tensor

from simmim.config.mask import MaskConfig
from simmim.tensors.batch import Batch
from simmim.tensors.counter import Purpose, uniform
from simmim.tensors.mask import Mask


class Sampler(Protocol):
    """What the training step needs of a sampler."""

    def scores(self, noise: Tensor, batch: Batch) -> Tensor:
        """Score the mask units of each image; the highest are masked.

        Args:
            noise: float32 (B, units), uniform in [0, 1): all the randomness there is.
            batch: The images that are about to be masked.

        Returns:
            (B, units).
        """
        ...


class RandomSampler:
    """Every subset of the units is equally likely (SimMIM sec. 3.2, MAE sec. 3)."""

    def scores(self, noise: Tensor, batch: Batch) -> Tensor:  # noqa: ARG002
        """The noise itself."""
        return noise


class Masker:
    """Draws the masks of a run: a sampler, the unit grid, and the number to mask.

    Args:
        config: Ratio, unit and rounding.
        grid: Patches per column and per row on which the model counts.
        patch: Side in pixels of a patch of that grid.
        seed: Seed of the run.
        sampler: Scores the units; default: all subsets are equally likely.
    """

    def __init__(
        self,
        config: MaskConfig,
        grid: tuple[int, int],
        patch: int,
        seed: int,
        sampler: Sampler | None = None,
    ) -> None:
        self.factor = (config.unit or patch) // patch
        self.units = (grid[0] // self.factor, grid[1] // self.factor)
        self.count = config.count(self.units[0] * self.units[1])
        self.seed = seed
        self.sampler = sampler or RandomSampler()

    def draw(self, batch: Batch, purpose: Purpose = Purpose.MASK) -> Mask:
        """The masks of a batch, a function of (seed, purpose, t) and what the sampler knows."""
        noise = uniform(self.seed, purpose, batch.t, self.units[0] * self.units[1])
        scores = self.sampler.scores(noise, batch)
        return Mask.top(scores, self.count, self.units).refine(self.factor)
