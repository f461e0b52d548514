"""Gradients of images, and histograms of their orientations."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's two differences of each channel, (B, C, H, W) float32: left − right, above − below.

    The image is reflected at its edge.
    """
    padded = F.pad(images.float(), (1, 1, 1, 1), mode="reflect")
    # Differences of sums: a convolution would round what is flat to a gradient of its own.
    down = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    across = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return down[..., :-2] - down[..., 2:], across[:, :, :-2] - across[:, :, 2:]


def histograms(x: Tensor, y: Tensor, first: Tensor, outputs: int, bins: int) -> Tensor:
    """Histograms of oriented gradients, each divided by its l2 norm.

    A gradient has an orientation within half a turn, one of ``bins``, to which it adds its
    magnitude.

    Args:
        x: (…, values), of left − right.
        y: The same, of above − below.
        first: (values,) int64, the first bin of the histogram that each value adds to.
        outputs: Bins of all histograms together.
        bins: Bins of each.

    Returns:
        (…, outputs).
    """
    chosen = (torch.atan2(x, y) * (bins / math.pi)).floor() % bins
    sums = x.new_zeros(*x.shape[:-1], outputs)
    sums.scatter_add_(-1, (first + chosen.long()).expand_as(x), torch.hypot(x, y))
    return F.normalize(sums.unflatten(-1, (-1, bins)), dim=-1).flatten(-2)
