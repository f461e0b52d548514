"""What the values of new images mean to an encoder that was trained on others.

Mean and deviation stay those of training, since the weights expect them. The range follows the bit
depth: each data set is scaled by its own, so that the same photos in 8 and in 12 bits are the same.
"""

from dataclasses import replace

import numpy as np

from simmim.config.resolved import PixelFormat
from simmim.data.audit.scaling import (
    Points,
    Scaling,
    clipped,
    is_measured,
    percent,
    range_in_words,
    scaled_in_words,
)

SHALLOW = 64
"""Value below which integers do not tell their bit depth: a quarter of the smallest."""
OUTSIDE = 0.01
"""Share of the values beyond the range of training from which they are of another kind."""
NARROW = 1 / 20
"""Share of the range of training that values span at least, where they are of the same kind."""
TELLING = 4.0
"""Standard errors from training's mean at which dark images are of another depth rather."""


def for_encoder(trained: PixelFormat, here: Scaling, points: Points) -> Scaling:
    """Choose how new images are scaled for an encoder with as many channels.

    ``here`` is what was measured on ``points`` of the new images.
    """
    names, values = points.values(trained.channels)
    pixels, how = _choose(trained, here, values)
    low, high = np.array(here.low), np.array(here.high)
    if points.dtype == "uint8" and pixels.depth not in ("8-bit", "float"):
        low, high, values = (each * (pixels.largest / 255) for each in (low, high, values))
    words = scaled_in_words(here.words, pixels)
    if trained.depth != here.pixels.depth:
        words = f"{here.pixels.depth} here, {trained.depth} in training: {how}"
    notes = clipped(names, values, pixels)
    doubt = _doubt(trained, here, pixels, high - low, values)
    return replace(here, pixels=pixels, words=words, notes=[*doubt, *notes])


def _choose(trained: PixelFormat, here: Scaling, values: np.ndarray) -> tuple[PixelFormat, str]:
    """The format, and what to say of it where the depths differ."""
    own = here.pixels
    if trained.depth == own.depth:
        return trained, ""
    measured = replace(own, mean=trained.mean, std=trained.std)
    if "float" in (trained.depth, own.depth):
        return measured, f"each is scaled by its own range, here {range_in_words(own)}"
    by_depth = "each is scaled by its own depth"
    if own.depth == "8-bit":
        return trained, by_depth  # as all 8-bit files among deeper ones
    if trained.depth == "8-bit" and max(here.high) < SHALLOW:
        return (
            measured,
            f"too dark for a depth, so scaled by their own range, {range_in_words(own)}",
        )
    if trained.depth != "8-bit" and not _tells(trained, own, values):
        return trained, "they may only be darker or brighter, so scaled as in training"
    factor = own.largest / trained.largest
    low, high = (tuple(v * factor for v in ends) for ends in (trained.low, trained.high))
    return replace(trained, low=low, high=high, depth=own.depth), by_depth


def _tells(trained: PixelFormat, own: PixelFormat, values: np.ndarray) -> bool:
    """Tell another bit depth within 16-bit files from images that are only brighter or darker."""
    if is_measured(trained):
        return False  # values with a unit, such as counts
    error = np.array(trained.std) / np.sqrt(len(values))
    as_trained, by_own = (
        float((np.abs(_mean(values, largest) - trained.mean) / error).mean())
        for largest in (trained.largest, own.largest)
    )
    if own.largest > trained.largest:
        return bool((values > trained.largest).mean() > OUTSIDE) and by_own < as_trained
    if (values == own.largest).sum() > (values > own.largest).sum():
        return True  # saturated there
    return as_trained > TELLING and by_own < as_trained


def _mean(values: np.ndarray, largest: float) -> np.ndarray:
    """Mean of each channel, as a share of the largest value, to which they are clipped."""
    return np.minimum(values, largest).mean((0, 1), dtype=np.float64) / largest


def _doubt(
    trained: PixelFormat,
    here: Scaling,
    pixels: PixelFormat,
    spans: np.ndarray,
    values: np.ndarray,
) -> list[str]:
    """Say where values can hardly mean what they meant in training."""
    own = here.pixels
    if "float" in (trained.depth, own.depth) and trained.depth != own.depth:
        return [
            f"warning: values are {own.depth} here and {trained.depth} in training, and nothing "
            "tells how the one becomes the other, so features may say little"
        ]
    least, most = (np.array(ends, np.float32) for ends in pixels.limits)
    outside = float(((values < least) | (values > most)).mean((0, 1)).max())
    widths = np.array(pixels.high) - np.array(pixels.low)
    narrow = bool(((spans > 0) & (spans < NARROW * widths)).any())
    if outside <= OUTSIDE and not narrow:
        return []
    found = range_in_words(replace(own, low=here.low, high=here.high))
    how = f"{percent(outside)} of the values lie far outside"
    if outside <= OUTSIDE:
        how = "the values span little of"
    return [
        f"warning: {how} the range of training, {range_in_words(pixels)}: most go from {found} "
        "here, so features may say little"
    ]
