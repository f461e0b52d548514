"""Histograms of gradients, of patches and of the layout, pixel by pixel in float64."""

import numpy as np
import torch

from simmim.config.extra import LayoutExtra
from simmim.config.target import HogTarget
from simmim.extras.layout import Layout
from simmim.models.mim import build_model, parts_for
from simmim.targets.hog import Hog
from simmim.tensors.batch import Batch
from simmim.tensors.features import Features
from simmim.tensors.mask import Mask
from simmim.tensors.patches import normalise
from simmim.verify.check import Figure, Ground
from simmim.verify.subjects import GRID, PATCH, RGB, SIZE, VIT, normals, some_masked

_SMOOTH = np.array([1.0, 2.0, 1.0])
"""Sobel's kernel is this along one axis and a difference along the other."""


def histograms(image: np.ndarray, cells: tuple[int, int], bins: int) -> np.ndarray:
    """(C, H, W) → (rows, columns, C, bins): each pixel adds the size of its gradient to one bin.

    That of its orientation within half a turn; a histogram is divided by its l2 norm.
    """
    channels, height, width = image.shape
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    sums = np.zeros((*cells, channels, bins))
    for c, y, x in np.ndindex(*image.shape):
        around = padded[c, y : y + 3, x : x + 3]
        across = _SMOOTH @ around[:, 0] - _SMOOTH @ around[:, 2]
        down = _SMOOTH @ around[0] - _SMOOTH @ around[2]
        number = int(np.floor(bins * np.arctan2(across, down) / np.pi)) % bins
        sums[y * cells[0] // height, x * cells[1] // width, c, number] += np.hypot(across, down)
    return sums / np.sqrt((sums**2).sum(-1, keepdims=True)).clip(min=1e-12)


def hog(ground: Ground) -> Figure:
    """The target ``hog`` with cells of half a patch (MaskFeat, sec. 3.2). Absolute, 1e-4."""
    images = normals(ground, "hog", 2, 3, *SIZE)
    masked = some_masked(ground, 2, GRID[0] * GRID[1], 10)
    side, bins = PATCH // 2, 9
    target = Hog(HogTarget(cell=side, bins=bins), PATCH, 3)
    found = target.values(Batch(images, torch.arange(2)), images, Mask.given(masked, GRID))
    worst = 0.0
    for b, image in enumerate(images.double().numpy()):
        whole = histograms(image, (SIZE[0] // side, SIZE[1] // side), bins)
        for row, n in enumerate(np.flatnonzero(masked[b])):
            top, left = 2 * (n // GRID[1]), 2 * (n % GRID[1])
            expected = whole[top : top + 2, left : left + 2].ravel()
            worst = max(worst, float(np.abs(found[b, row].numpy() - expected).max()))
    return Figure(worst, 1e-4, "largest difference")


def layout(ground: Ground) -> Figure:
    """The losses of the extra ``layout``: means of colours, and histograms, of 4×4 cells.

    Predicted by one linear layer from the mean of the visible patches' features; squared errors,
    that of the histograms times 90. Relative, 1e-4.
    """
    model = build_model(VIT, RGB, SIZE)
    extra = Layout(LayoutExtra(), parts_for(model.encoder, RGB))
    images = 255 * torch.from_numpy(ground.numbers("layout").random((2, 3, *SIZE), np.float32))
    tokens = normals(ground, "tokens", 2, 7, 48)
    features = Features(prefix=tokens[:, :1], patches=tokens)
    mask = Mask.given(some_masked(ground, 2, GRID[0] * GRID[1], 10), GRID)
    with torch.no_grad():
        found = extra(Batch(images, torch.arange(2)), mask, features, None)  # type: ignore[arg-type]
        mean = tokens.double().mean(1)
        predicted = {
            name: (mean @ head.weight.double().T + head.bias.double()).numpy()
            for name, head in (("colours", extra.colours), ("histograms", extra.histograms))
        }
    seen = normalise(images, RGB).double().numpy()
    rows, columns = SIZE[0] // 4, SIZE[1] // 4
    colours = seen.reshape(2, 3, 4, rows, 4, columns).mean((3, 5)).reshape(2, -1)
    whole = np.stack([histograms(image, (4, 4), 9).transpose(2, 0, 1, 3) for image in seen])
    error = ((predicted["colours"] - colours) ** 2).mean()
    error += 90 * ((predicted["histograms"] - whole.reshape(2, -1)) ** 2).mean()
    return Figure(abs(found["loss"].item() / float(error) - 1), 1e-4, "relative difference")
