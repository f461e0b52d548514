"""Block masks: rectangles instead of single patches, which neighbours cannot fill in."""

import math

import torch
from torch import Tensor

from simmim.config.mask import BlockMask
from simmim.masking.samplers import Sampler
from simmim.tensors.batch import Batch
from simmim.tensors.parts import Encode

_TRIES = 32
"""Rectangles tried for an image; BEiT's rule takes 11 on average, and 25 once in a hundred."""
_GIVE_UP = 10
"""Tries in a row without success after which no more are made (BEiT, masking_generator.py)."""


class BlockSampler(Sampler):
    """Rectangles up to the count, and random units for what is missing (BEiT v2 sec. 3.3).

    A rectangle's area is uniform from ``least`` to what is left, its aspect log-uniform, its place
    uniform. It is taken where it masks something new and not too much.
    """

    def __init__(self, config: BlockMask, grid: tuple[int, int], patch: int, seed: int) -> None:
        super().__init__(config, grid, patch, seed)
        self.least = config.least or max(1, (min(self.units) // 3) ** 2)
        self.spread = math.log(1 / config.aspect)
        self.numbers += 4 * _TRIES

    def scores(self, noise: Tensor, batch: Batch, encode: Encode | None) -> Tensor:  # noqa: ARG002
        """1 in the rectangles and 0 elsewhere, and the noise."""
        h, w = self.units
        tries, rest = noise.split([4 * _TRIES, h * w], dim=1)
        rows = torch.arange(h, device=noise.device)[:, None]
        columns = torch.arange(w, device=noise.device)
        masked = torch.zeros(len(noise), h, w, dtype=torch.bool, device=noise.device)
        failed = torch.zeros(len(noise), 1, 1, dtype=torch.int64, device=noise.device)
        # In float64, so that a last bit that differs between devices moves no border; MPS has none.
        wide = tries if tries.device.type == "mps" else tries.double()
        for numbers in wide.view(-1, _TRIES, 4, 1, 1).unbind(1):
            size, shape, down, right = numbers.unbind(1)  # each (B, 1, 1)
            left = self.count - masked.sum((1, 2), keepdim=True)
            area = self.least + size * (left - self.least)
            aspect = (self.spread * (2 * shape - 1)).exp()
            height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
            top, start = (down * (h - height + 1)).floor(), (right * (w - width + 1)).floor()
            inside = (rows >= top) & (rows < top + height)
            inside = inside & (columns >= start) & (columns < start + width)
            new = (inside & ~masked).sum((1, 2), keepdim=True)
            fits = (
                (height < max(h, 2))
                & (width < max(w, 2))
                & (new > 0)
                & (new <= left)
                & (failed < _GIVE_UP)
            )
            masked |= inside & fits
            failed = torch.where(fits, 0, failed + 1)
        return masked.flatten(1) + rest
