"""Samplers score patches; the mask takes the best."""

from torch import Tensor

from simmim.config.mask import MaskShare
from simmim.tensors.batch import Batch
from simmim.tensors.counter import Purpose, uniform
from simmim.tensors.mask import Mask
from simmim.tensors.parts import Encode, Part


class Sampler(Part):
    """Scores the units of each image, of which the highest are masked.

    Args:
        config: Ratio, unit and rounding.
        grid: Patches per column and per row on which the model counts.
        patch: Side in pixels of a patch of that grid.
        seed: Seed of the run.

    Attributes:
        units: Units per column and per row.
        count: Units to mask in each image.
        numbers: Random numbers that it gets for each image: one for each unit, or as it sets.
    """

    def __init__(self, config: MaskShare, grid: tuple[int, int], patch: int, seed: int) -> None:
        super().__init__()
        self.factor = (config.unit or patch) // patch
        self.units = (grid[0] // self.factor, grid[1] // self.factor)
        self.numbers = self.units[0] * self.units[1]
        self.count = config.count(self.numbers)
        self.seed = seed

    def scores(self, noise: Tensor, batch: Batch, encode: Encode | None) -> Tensor:
        """Score the mask units of each image; the highest are masked.

        Args:
            noise: float32 (B, numbers), uniform in [0, 1): all the randomness there is.
            batch: The images that are about to be masked.
            encode: The encoder, without gradients; None: there is none.

        Returns:
            (B, units).
        """
        raise NotImplementedError

    def draw(
        self, batch: Batch, purpose: Purpose = Purpose.MASK, encode: Encode | None = None
    ) -> Mask:
        """The masks of a batch, a function of (seed, purpose, t) and what the sampler knows."""
        noise = uniform(self.seed, purpose, batch.t, self.numbers)
        scores = self.scores(noise, batch, encode)
        return Mask.top(scores, self.count, self.units).refine(self.factor)


class RandomSampler(Sampler):
    """Every subset of the units is equally likely (SimMIM sec. 3.2, MAE sec. 3)."""

    def scores(self, noise: Tensor, batch: Batch, encode: Encode | None) -> Tensor:  # noqa: ARG002
        """The noise itself."""
        return noise
