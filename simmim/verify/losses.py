"""Losses and targets against the papers' formulas, pixel by pixel in float64."""

from dataclasses import replace

import numpy as np
import torch

from simmim.config.resolved import PixelFormat
from simmim.config.target import PixelTarget
from simmim.data.formats.decode import bring
from simmim.evaluate.detail import HoldoutSums
from simmim.targets.pixels import Pixels
from simmim.tensors.batch import Batch
from simmim.tensors.mask import Mask
from simmim.tensors.patches import normalise
from simmim.verify.check import Figure, Ground
from simmim.verify.subjects import GRID, PATCH, RGB, SIZE, VIT, build, normals, some_masked

_COUNT = 10


def cut(image: np.ndarray, n: int, patch: int, columns: int) -> np.ndarray:
    """Patch ``n`` of an image (C, H, W), its values in (row, column, channel) order, in float64."""
    top, left = n // columns * patch, n % columns * patch
    return np.array(
        [
            image[c, top + y, left + x]
            for y in range(patch)
            for x in range(patch)
            for c in range(len(image))
        ],
        dtype=np.float64,
    )


def standardise(patch: np.ndarray) -> np.ndarray:
    """(x - mean)/√(var + 1e-6), the variance over K - 1 (MAE sec. 3; models_mae.py)."""
    mean = patch.sum() / len(patch)
    variance = ((patch - mean) ** 2).sum() / (len(patch) - 1)
    return (patch - mean) / np.sqrt(variance + 1e-6)


def summed_error(
    images: np.ndarray, predicted: np.ndarray, masked: np.ndarray, target: PixelTarget
) -> float:
    """Σ over images, masked patches and values of the squared or absolute error."""
    total = 0.0
    for image, rows, hidden in zip(images, predicted, masked, strict=True):
        for row, n in enumerate(np.flatnonzero(hidden)):
            truth = cut(image, int(n), PATCH, GRID[1])
            if target.norm_pix:
                truth = standardise(truth)
            error = rows[row].astype(np.float64) - truth
            total += float(np.abs(error).sum() if target.loss == "l1" else (error * error).sum())
    return total


def pixel_loss(ground: Ground, target: PixelTarget) -> Figure:
    """``model.loss``, and ``loss`` and ``loss_sum`` of a training step, from whole images.

    SimMIM sec. 3.4 and MAE sec. 3: the mean over the masked values alone of |p̂ - p| or (p̂ - p)²,
    where p may be normalised within its patch; p̂ is what ``model.predict`` gives. Relative, 1e-5.
    Some patches have hardly any contrast, so that the 1e-6 beside the variance counts.
    """
    model = build(replace(VIT, target=target))
    masked = some_masked(ground, 3, GRID[0] * GRID[1], _COUNT)
    values = 3 * PATCH**2 * _COUNT
    faint = normals(ground, "loss", 3, 3, *SIZE)
    faint[0] = 0.3 + 1e-3 * faint[0]
    decoded = torch.from_numpy(ground.numbers("decoded").integers(0, 256, (3, 3, *SIZE), np.uint8))
    differences = []
    with torch.no_grad():
        predicted = model.predict(faint, masked).numpy()
        expected = summed_error(faint.numpy(), predicted, masked.numpy(), target)
        found = model.loss(faint, masked).item()
        differences.append(found / (expected / (3 * values)) - 1)

        mean, std = (np.array(v)[:, None, None] for v in (RGB.mean, RGB.std))
        images = (decoded.numpy() / 255.0 - mean) / std
        predicted = model.predict(torch.from_numpy(images).float(), masked).numpy()
        expected = summed_error(images, predicted, masked.numpy(), target)
        step = model(Batch(decoded, torch.arange(3)), Mask.given(masked, GRID))
    differences += [
        step["loss"].item() / (expected / (3 * values)) - 1,
        step["loss_sum"].item() / (expected / 3) - 1,
    ]
    return Figure(float(np.abs(differences).max()), 1e-5, "largest relative difference")


def target_values(ground: Ground) -> Figure:
    """The raw target: the masked patches in ascending order, pixels in row, column, channel order.

    Against a loop over rows, columns and channels, on an image of five channels that is not
    square. Exact.
    """
    images = normals(ground, "values", 2, 5, *SIZE)
    masked = some_masked(ground, 2, GRID[0] * GRID[1], _COUNT)
    batch, mask = Batch(images, torch.arange(2)), Mask.given(masked, GRID)
    found = Pixels(PixelTarget(), PATCH, 5).values(batch, images, mask).numpy()
    expected = [
        [cut(image, int(n), PATCH, GRID[1]) for n in np.flatnonzero(hidden)]
        for image, hidden in zip(images.numpy(), masked.numpy(), strict=True)
    ]
    return Figure(float(np.abs(found - np.array(expected)).max()), 0.0, "largest difference")


def target_normalised(ground: Ground) -> Figure:
    """The normalised target: mean 0 and variance 1 in each patch (MAE sec. 3), and back again.

    Against (x - mean)/√(var + 1e-6) with the unbiased variance, and against the pixels that
    ``to_pixels`` must give back. Absolute, 1e-5.
    """
    images = normals(ground, "normalised", 2, 3, *SIZE)
    masked = some_masked(ground, 2, GRID[0] * GRID[1], _COUNT)
    mask = Mask.given(masked, GRID)
    target = Pixels(PixelTarget(norm_pix=True), PATCH, 3)
    values = target.values(Batch(images, torch.arange(2)), images, mask)
    pixels = target.to_pixels(values, target.pixels(images, mask)).numpy()
    differences = []
    for b, hidden in enumerate(masked.numpy()):
        for row, n in enumerate(np.flatnonzero(hidden)):
            truth = cut(images[b].numpy(), int(n), PATCH, GRID[1])
            differences.append(np.abs(values[b, row].numpy() - standardise(truth)).max())
            differences.append(np.abs(pixels[b, row] - truth).max())
    return Figure(float(max(differences)), 1e-5, "largest difference")


def normalisation(ground: Ground) -> Figure:
    """From decoded values to the encoder's input: ((value - low)/(high - low) - mean)/std.

    In float64, for 8-bit, 12-bit and floating-point values, channels of other units among them;
    what lies further out than half of the range is clipped before. Absolute, 1e-5.
    """
    numbers = ground.numbers("pixels")
    formats = [
        ("8-bit", np.uint8, np.zeros(4), np.full(4, 255.0)),
        ("12-bit", np.uint16, np.zeros(4), np.full(4, 4095.0)),
        ("float", np.float32, np.array([-3.5, 0.002, 1203, 0]), np.array([12.25, 0.03, 2085.5, 1])),
    ]
    worst = 0.0
    for depth, kind, low, high in formats:
        mean, std = numbers.random(4), 0.1 + numbers.random(4)
        ends = {name: tuple(v) for name, v in (("low", low), ("high", high))}
        pixels = PixelFormat(channels=4, mean=tuple(mean), std=tuple(std), depth=depth, **ends)
        values = low + (high - low) * (3 * numbers.random((6, 5, 4)) - 1)
        if depth != "float":
            values = values.clip(0, np.iinfo(kind).max).round()
        values = values.astype(kind)
        found = normalise(torch.from_numpy(bring(values, pixels)).permute(2, 0, 1)[None], pixels)
        beyond = (high - low) / 2 if depth == "float" else 0
        clipped = np.minimum(np.maximum(values.astype(np.float64), low - beyond), high + beyond)
        expected = ((clipped - low) / (high - low) - mean) / std
        away = np.abs(found[0].permute(1, 2, 0).numpy() - expected)
        worst = max(worst, float(away.max()))
    return Figure(worst, 1e-5, "largest difference")


def explained_detail(ground: Ground) -> Figure:
    """Explained detail, 1 - Σ(p̂ - p)²/Σ(b - p)² over masked values, for both baselines b.

    The mean of the visible pixels per channel; and blur(visible · x)/blur(visible) with a Gaussian
    of half a patch and zeros outside, summed pixel by pixel; where the visible pixels' share of the
    Gaussian is below 1e-6, again the mean. The ratio of the sums, relative, 1e-4.
    """
    model = build(VIT)
    images = normals(ground, "detail", 2, 3, *SIZE).cumsum(2).cumsum(3) / 20
    masked = some_masked(ground, 2, GRID[0] * GRID[1], _COUNT)
    pixels = model.target.within(Pixels)
    assert pixels is not None
    sums = HoldoutSums(model, *pixels)
    with torch.no_grad():
        sums.add(Batch(images, torch.arange(2)), images, Mask.given(masked, GRID))
        predicted = model.predict(images, masked).numpy()
    x = images.numpy().astype(np.float64)
    across, down = (np.arange(side)[:, None] - np.arange(side) for side in (SIZE[1], SIZE[0]))
    blur_x, blur_y = (np.exp(-0.5 * (d / (PATCH / 2)) ** 2) for d in (across, down))
    error, mean_error, blur_error = 0.0, 0.0, 0.0
    for b, hidden in enumerate(masked.numpy()):
        visible = np.kron(~hidden.reshape(GRID), np.ones((PATCH, PATCH)))
        mean = np.stack([np.full(SIZE, channel[visible > 0].mean()) for channel in x[b]])
        weight = blur_y @ visible @ blur_x
        near = weight / (2 * np.pi * (PATCH / 2) ** 2) >= 1e-6
        blurred = np.stack([blur_y @ (visible * channel) @ blur_x / weight for channel in x[b]])
        filled = np.where(near, blurred, mean)
        for row, n in enumerate(np.flatnonzero(hidden)):
            truth, flat, smooth = (cut(i, int(n), PATCH, GRID[1]) for i in (x[b], mean, filled))
            error += float(((predicted[b, row] - truth) ** 2).sum())
            mean_error += float(((flat - truth) ** 2).sum())
            blur_error += float(((smooth - truth) ** 2).sum())
    detail = sums.detail()
    differences = [
        (detail.explained - 1) / (error / mean_error) + 1,
        (detail.explained_blur - 1) / (error / blur_error) + 1,
    ]
    return Figure(float(np.abs(differences).max()), 1e-4, "largest relative difference")
