"""Histograms of oriented gradients of the masked patches."""

import torch
import torch.nn.functional as F
from torch import Tensor

from simmim.config.target import HogTarget
from simmim.errors import ConfigError
from simmim.targets.target import Target
from simmim.tensors.batch import Batch
from simmim.tensors.gradients import gradients, histograms
from simmim.tensors.mask import Mask, pick
from simmim.tensors.patches import patchify

_LARGEST_CELL = 8  # MaskFeat's, whose patches are of 16 pixels


class Hog(Target):
    """Histograms of oriented gradients, as MaskFeat predicts them (sec. 3.2).

    Each channel's gradient (Sobel's kernel, the image reflected at its edge) has an orientation
    within half a turn, one of ``bins``, to which it adds its magnitude; a cell's histogram is
    divided by its l2 norm. An image is as normalised for the encoder.

    ``skimage.feature.hog`` takes differences of the two neighbours for a gradient, 0 at the edge,
    of the channel alone in which it is largest; means over a cell; angles from the other axis; and
    norms over blocks of 3×3 cells, clipped and taken twice (L2-Hys).

    Args:
        config: Cells and bins.
        patch: Side of a predicted patch in pixels.
        channels: Image channels.

    Raises:
        ConfigError: The cell does not divide the patch.
    """

    first: Tensor
    """The first bin of the histogram that each value of a patch adds to."""

    def __init__(self, config: HogTarget, patch: int, channels: int) -> None:
        super().__init__()
        cells = [side for side in range(1, patch + 1) if patch % side == 0]
        cell = config.cell or max(side for side in cells if side <= _LARGEST_CELL)
        if cell not in cells:
            raise ConfigError(
                f"hog: cells of {cell} pixels do not cut a patch of {patch} evenly; "
                f"those of {', '.join(map(str, cells))} do."
            )
        self.patch, self.bins = patch, config.bins
        self.outputs = (patch // cell) ** 2 * channels * config.bins
        histograms = torch.arange(0, self.outputs, self.bins).view(patch // cell, -1, channels)
        pixels = histograms.repeat_interleave(cell, 0).repeat_interleave(cell, 1)
        self.register_buffer("first", pixels.flatten(), persistent=False)

    def values(self, batch: Batch, images: Tensor, mask: Mask) -> Tensor:  # noqa: ARG002
        """(B, C, H, W) → (B, M, outputs), in (row, column, channel, bin) of the cells."""
        x, y = (self._masked(each, mask) for each in gradients(images))
        return histograms(x, y, self.first, self.outputs, self.bins)

    def _masked(self, gradients: Tensor, mask: Mask) -> Tensor:
        return pick(patchify(gradients, self.patch), mask.masked_index)

    def loss(self, prediction: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Squared error, a mean."""
        return {"loss": F.mse_loss(prediction, values)}
