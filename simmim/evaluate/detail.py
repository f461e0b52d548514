"""Explained detail: how much of what is masked a model predicts, beyond filling in.

D = 1 - Σ(p̂ - p)² / Σ(b - p)² over the masked values of fixed images under fixed masks, in
normalised pixels whatever the training loss. 0 means no better than the baseline b, 1 is perfect.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from simmim.models.mim import MaskedImageModel
from simmim.targets.pixels import Pixels
from simmim.tensors.batch import Batch
from simmim.tensors.mask import Mask, pick
from simmim.tensors.patches import patchify, unpatchify

_LEAST_WEIGHT = 1e-6


@dataclass(frozen=True)
class Detail:
    """Explained detail of a batch.

    Attributes:
        explained: Against the mean of each image's visible pixels, per channel.
        explained_blur: Against interpolation from the visible pixels.
        within_patch: Whether prediction and baselines were given each patch's true mean and
            deviation, as a per-patch normalised target needs.
        loss: The recipe's loss on the batch.
    """

    explained: float
    explained_blur: float
    within_patch: bool
    loss: float


def masked_map(mask: Mask, patch: int) -> Tensor:
    """The mask in pixels: bool (B, 1, H, W)."""
    h, w = mask.grid
    grid = mask.masked.view(-1, 1, h, w)
    return grid.repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def mean_fill(images: Tensor, masked: Tensor) -> Tensor:
    """Every pixel replaced by the mean of the image's visible ones, per channel."""
    visible = (~masked).float()
    mean = (images * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True)
    return mean.expand_as(images)


def interpolate(images: Tensor, masked: Tensor, patch: int) -> Tensor:
    """blur(visible · x) / blur(visible), a Gaussian of σ = P/2 pixels with zero padding.

    Where hardly any visible pixel is near, the mean of the visible ones.
    """
    visible = (~masked).float()
    # Beyond 6σ a weight is under 2e-8 of the largest, far below the fallback's threshold.
    radius = 3 * patch
    x = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / (patch / 2)) ** 2)
    kernel = kernel / kernel.sum()
    weight = _blur(visible, kernel)
    blurred = _blur(images * visible, kernel) / weight.clamp_min(_LEAST_WEIGHT)
    return torch.where(weight < _LEAST_WEIGHT, mean_fill(images, masked), blurred)


def _blur(x: Tensor, kernel: Tensor) -> Tensor:
    b, c, height, width = x.shape
    radius = len(kernel) // 2
    x = x.reshape(b * c, 1, height, width)
    x = F.conv2d(x, kernel.view(1, 1, -1, 1), padding=(radius, 0))
    x = F.conv2d(x, kernel.view(1, 1, 1, -1), padding=(0, radius))
    return x.view(b, c, height, width)


class HoldoutSums:
    """Adds up a model's and the baselines' errors over batches of held-out images.

    Args:
        model: It predicts pixels, alone or beside others.
        target: Its pixels.
        columns: Where they are in its prediction.
    """

    def __init__(self, model: MaskedImageModel, target: Pixels, columns: slice) -> None:
        self.model = model
        self.target = target
        self.columns = columns
        self.sums = torch.zeros(5, dtype=torch.float64)
        """Squared errors of the prediction and both baselines, losses, images: add others' here."""

    def add(self, batch: Batch, images: Tensor, mask: Mask) -> Tensor:
        """Take in a batch and its images, normalised; returns the prediction in normalised pixels.

        Returns:
            (B, M, K), de-normalised within each patch where the target is normalised there.
        """
        target, patch = self.target, self.target.patch
        raw = self.model.predict(images, mask.masked).float()
        truth = target.pixels(images, mask)
        prediction = target.to_pixels(raw[..., self.columns], truth)
        masked = masked_map(mask, patch)
        candidates = [prediction]
        for baseline in (mean_fill(images, masked), interpolate(images, masked, patch)):
            patches = pick(patchify(baseline, patch), mask.masked_index)
            if target.config.norm_pix:
                # Given the truth's mean and deviation, as the prediction is.
                mean, deviation = target.statistics(patches)
                patches = target.to_pixels((patches - mean) / deviation, truth)
            candidates.append(patches)
        squares = [(c - truth).double().square().sum().item() for c in candidates]
        loss = self.model.compare(raw, batch, images, mask)["loss"].item() * len(images)
        self.sums += torch.tensor([*squares, loss, len(images)], dtype=torch.float64)
        return prediction

    def detail(self) -> Detail:
        """The explained detail of all that was added."""
        error, mean, blur, loss, rows = self.sums.tolist()
        return Detail(
            explained=1 - error / max(mean, 1e-12),
            explained_blur=1 - error / max(blur, 1e-12),
            within_patch=self.target.config.norm_pix,
            loss=loss / max(1, rows),
        )


def paste(images: Tensor, prediction: Tensor, mask: Mask, patch: int) -> Tensor:
    """Images with the masked patches replaced by a prediction (B, M, K)."""
    patches = patchify(images, patch)
    index = mask.masked_index[..., None].expand_as(prediction)
    filled = patches.scatter(1, index, prediction.to(patches.dtype))
    return unpatchify(filled, patch, mask.grid, images.shape[1])
