"""Histograms of gradients against loops over pixels."""

import math

import numpy as np
import pytest
import torch

from simmim.config.target import HogTarget
from simmim.errors import ConfigError
from simmim.targets.hog import Hog
from simmim.tensors.batch import Batch
from simmim.tensors.mask import Mask

SMOOTH = np.array([1.0, 2.0, 1.0])
"""Sobel's kernel is this along one axis and a difference along the other."""


def histograms(image: np.ndarray, patch: int, cell: int, bins: int) -> np.ndarray:
    """(C, H, W) → (N, values): each pixel of each cell of each patch, one by one."""
    channels, height, width = image.shape
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    rows = []
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            found = np.zeros((patch // cell, patch // cell, channels, bins))
            for y, x, c in np.ndindex(patch, patch, channels):
                around = padded[c, top + y : top + y + 3, left + x : left + x + 3]
                gx = SMOOTH @ around[:, 0] - SMOOTH @ around[:, 2]
                gy = SMOOTH @ around[0] - SMOOTH @ around[2]
                number = math.floor(bins * math.atan2(gx, gy) / math.pi) % bins
                found[y // cell, x // cell, c, number] += math.sqrt(gx**2 + gy**2)
            norms = np.sqrt((found**2).sum(-1, keepdims=True))
            rows.append((found / np.maximum(norms, 1e-12)).ravel())
    return np.stack(rows)


@pytest.mark.parametrize(
    ("channels", "size", "patch", "cell", "bins"),
    [
        (3, (32, 48), 16, None, 9),
        (1, (16, 24), 8, 4, 8),
        (5, (24, 16), 8, 8, 4),
        (2, (21, 14), 7, None, 9),
    ],
)
def test_values_are_those_of_loops_over_pixels(channels, size, patch, cell, bins):
    grid = (size[0] // patch, size[1] // patch)
    torch.manual_seed(0)
    images = torch.randn(2, channels, *size)
    images[0, 0, : size[0] // 2] = 0.3  # what is flat has no gradient
    masked = torch.rand(2, grid[0] * grid[1]).argsort(1) < 3
    target = Hog(HogTarget(cell=cell, bins=bins), patch, channels)
    batch = Batch(images, torch.arange(2))
    found = target.values(batch, images, Mask.given(masked, grid))
    side = patch // 2 if patch % 2 == 0 else patch
    expected = [
        histograms(image, patch, cell or side, bins)[row]
        for image, row in zip(images.double().numpy(), masked.numpy(), strict=True)
    ]
    assert found.dtype == torch.float32
    assert found.shape == (2, 3, target.outputs)
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-5)
    prediction = torch.randn(found.shape)
    error = ((prediction.double().numpy() - np.stack(expected)) ** 2).mean()
    assert target.loss(prediction, found)["loss"].item() == pytest.approx(error, rel=1e-5)


def test_patches_of_16_pixels_have_108_values():
    assert Hog(HogTarget(), 16, 3).outputs == 2 * 2 * 9 * 3 == 108


def test_cells_that_do_not_cut_a_patch_evenly_are_refused_with_those_that_do():
    with pytest.raises(ConfigError, match=r"patch of 16 evenly; those of 1, 2, 4, 8, 16 do\."):
        Hog(HogTarget(cell=6), 16, 3)
