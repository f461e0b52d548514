"""The range that values have in use, whatever few of them are foreign.

A saturated pixel, a filler for no data, or a file in other units must not decide how all others are
seen. So a range leaves out the farthest values at either end, and what lies outside is clipped.
"""

import numpy as np

DEPTHS = (8, 10, 12, 14, 16)
"""Bit depths that cameras and scanners use within 16-bit files."""
LEFT_OUT = 1e-3
"""Share of the values that a range leaves out at either end."""
FEW = 64
"""Values below which none is left out."""
FILLED = 1 / 8
"""Share of a bit depth that values span at least, where they are scaled by the whole of it."""
APART = 3
"""A filler for no data lies so many times the range of all others away from them."""
FOREIGN = 10
"""Values of one image are foreign where they lie so many times the range of all others away."""


def bits_in_use(high: float) -> int:
    """Return the smallest of ``DEPTHS`` that holds a value of a 16-bit file."""
    return next(bits for bits in DEPTHS if high < 2**bits)


def measured_range(
    values: np.ndarray, *, fillers: bool = True, sparse: bool = True
) -> tuple[float, float]:
    """Return the 0.1 and the 99.9 percentile; of fewer than 1000 values all but the farthest.

    Args:
        values: Any number of them, none of them NaN.
        fillers: Whether one value at an end that many pixels have, far from all others and not 0,
            is taken for a filler such as -9999, and counts for nothing.
        sparse: Whether the few others are looked at where nearly all values are one.
    """
    ordered = np.sort(values, axis=None)
    if fillers:
        ordered = _without_fillers(ordered)
    low, high = _ends(ordered)
    rest = ordered[ordered != low] if sparse and low == high else ordered[:0]
    if len(rest):
        few = _ends(rest)
        low, high = min(low, few[0]), max(high, few[1])
    return low, high


def range_in_use(values: np.ndarray, dtype: str) -> tuple[float, float]:
    """Return from where to where the values of one image are to be judged.

    Args:
        values: Any number of them, as they are kept in ``dtype``.
        dtype: uint8, uint16 or float32. Of integers the whole bit depth is in use, unless they
            span little of it.
    """
    if dtype == "uint8":
        return 0.0, 255.0
    return whole_depth(*measured_range(values), dtype)


def whole_depth(low: float, high: float, dtype: str) -> tuple[float, float]:
    """Widen a measured range of 16-bit integers to their depth, where they fill enough of it."""
    if dtype != "uint16":
        return low, high
    largest = 2.0 ** bits_in_use(high) - 1
    return (0.0, largest) if high - low >= FILLED * largest or high == low else (low, high)


def foreign_images(values: np.ndarray) -> np.ndarray:
    """Tell which images hold values far from all others; one in twenty at most, at least one.

    Args:
        values: Of one channel, (images, values), the same number of each image.

    Returns:
        bool (images,); none of fewer than five.
    """
    images, count = values.shape
    if images < 5:
        return np.zeros(images, bool)
    ordered = np.sort(values, axis=1).astype(np.float64)
    left_out = _left_out(count)
    low, high = ordered[:, left_out], ordered[:, -1 - left_out]
    reach = np.maximum(np.median(low) - low, high - np.median(high))
    most = np.argsort(reach, kind="stable")[: images - max(1, images // 20)]
    lowest, highest = low[most].min(), high[most].max()
    away = np.maximum(lowest - low, high - highest)
    return (away > FOREIGN * (highest - lowest)) & (highest > lowest)


def _left_out(count: int) -> int:
    return max(1, int(LEFT_OUT * count)) if count >= FEW else 0


def _ends(ordered: np.ndarray) -> tuple[float, float]:
    left_out = _left_out(len(ordered))
    return float(ordered[left_out]), float(ordered[-1 - left_out])


def _without_fillers(ordered: np.ndarray) -> np.ndarray:
    """Drop what fills in for no data: a value at an end, often there and far from the rest."""
    first, last = ordered[0], ordered[-1]
    above = ordered[np.searchsorted(ordered, first, "right") :]
    below = ordered[: np.searchsorted(ordered, last)]
    for value, rest in ((float(first), above), (float(last), below)):
        often = len(ordered) - len(rest) > _left_out(len(ordered))
        if value == 0 or not often or 100 * len(rest) < len(ordered):
            continue
        low, high = _ends(rest)
        if high > low and max(low - value, value - high) > APART * (high - low):
            return _without_fillers(rest)
    return ordered
