"""The whole picture in little, from what is visible of it."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim.config.extra import LayoutExtra
from simmim.errors import ConfigError
from simmim.extras.extra import Extra
from simmim.tensors.batch import Batch
from simmim.tensors.features import Features
from simmim.tensors.gradients import gradients, histograms
from simmim.tensors.mask import Mask
from simmim.tensors.parts import Encode, Parts
from simmim.tensors.patches import normalise

_HISTOGRAMS = 90.0
"""What the squared error of histograms counts beside that of colours, which vary far more."""


class Layout(Extra):
    """Predict colours and histograms of gradients of a few large cells of the image.

    One linear layer has the mean of the features of the visible patches, which is what is deployed
    for whole images: so that mean comes to hold what the picture is like as a whole, which the
    patches' own targets never ask of it.

    Args:
        config: Cells and bins.
        parts: The encoder's width and image size, and how values are normalised.

    Raises:
        ConfigError: There are more cells than pixels.
    """

    cell: Tensor
    """The cell of a channel that each value of an image lies in."""
    count: Tensor
    """The values in each."""

    def __init__(self, config: LayoutExtra, parts: Parts) -> None:
        super().__init__()
        size, channels = parts.encoder.image_size, parts.pixels.channels
        if config.cells > min(size):
            raise ConfigError(
                f"layout: {config.cells} cells a side are more than the {min(size)} pixels of the "
                "image; give fewer by --layout.cells."
            )
        self.pixels, self.bins = parts.pixels, config.bins
        row, column = (torch.arange(side) * config.cells // side for side in size)
        cell = row[:, None] * config.cells + column
        channel = torch.arange(channels).view(-1, 1, 1) * config.cells**2
        self.register_buffer("cell", (channel + cell).flatten(), persistent=False)
        self.register_buffer("count", self.cell.bincount(), persistent=False)
        cells = channels * config.cells**2
        self.colours = nn.Linear(parts.encoder.width, cells)
        self.histograms = nn.Linear(parts.encoder.width, cells * config.bins)

    def forward(
        self,
        batch: Batch,
        mask: Mask,  # noqa: ARG002
        features: Features,
        encode: Encode,  # noqa: ARG002
    ) -> Mapping[str, Tensor]:
        """See ``Extra``."""
        images, mean = normalise(batch.images, self.pixels), features.patches.mean(1)
        x, y = (each.flatten(1) for each in gradients(images))
        wanted = histograms(x, y, self.cell * self.bins, self.histograms.out_features, self.bins)
        colours = images.new_zeros(len(images), self.colours.out_features)
        colours.index_add_(1, self.cell, images.flatten(1)).div_(self.count)
        losses = {
            "colours": F.mse_loss(self.colours(mean).float(), colours),
            "histograms": F.mse_loss(self.histograms(mean).float(), wanted),
        }
        return {"loss": losses["colours"] + _HISTOGRAMS * losses["histograms"], **losses}
