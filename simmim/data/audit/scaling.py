"""How the values of a data set become an encoder's input, measured on points of its images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from simmim.config.resolved import PixelFormat
from simmim.data.audit.ranges import FILLED, bits_in_use, foreign_images, measured_range
from simmim.data.formats.decode import bring

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

NAMED = 4
"""Channels that are named one by one in a sentence."""
CONSTANT = 1e-9
"""Deviation below which a channel is constant, as a share of its range."""


@dataclass(frozen=True)
class Points:
    """Points of decoded images.

    Attributes:
        names: Of the images.
        grids: (h, w, C) of each, in its own channels and type.
        dtype: Type of the set: of the images that its range is measured on.
    """

    names: list[str]
    grids: list[np.ndarray]
    dtype: str

    def values(self, channels: int) -> tuple[list[str], np.ndarray]:
        """The images of the set's type, and their values (images, n, C): as many of each."""
        depth = {"uint8": "8-bit", "uint16": "16-bit", "float32": "float"}[self.dtype]
        unit = _format(channels, (-np.inf,) * channels, (np.inf,) * channels, depth)
        rows = [i for i, grid in enumerate(self.grids) if grid.dtype.name == self.dtype]
        flat = [bring(self.grids[i], unit).reshape(-1, channels) for i in rows]
        most = max(map(len, flat))
        every = [values[np.linspace(0, len(values) - 1, most).astype(int)] for values in flat]
        return [self.names[i] for i in rows], np.stack(every)


@dataclass(frozen=True)
class Scaling:
    """What was measured.

    Attributes:
        pixels: How values become the encoder's input.
        words: What the files hold.
        low: The least value in use of each channel, whatever few are foreign.
        high: The largest.
        notes: What is clipped, and which channels say nothing.
    """

    pixels: PixelFormat
    words: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    notes: list[str] = field(default_factory=list)


def measure(points: Points, channels: int) -> Scaling:
    """Choose a range and measure mean and deviation; see docs/data.md for the rules."""
    names, values = points.values(channels)
    plain = points.dtype == "uint8"
    if plain and channels == 3:
        pixels = replace(
            _format(3, (0.0,) * 3, (255.0,) * 3, "8-bit"), mean=IMAGENET_MEAN, std=IMAGENET_STD
        )
        return Scaling(pixels, "8-bit", pixels.low, pixels.high)
    kept = np.stack([~foreign_images(values[..., c]) for c in range(channels)], 1)
    ends = [measured_range(values[kept[:, c], :, c], fillers=not plain) for c in range(channels)]
    low, high = (tuple(each) for each in zip(*ends, strict=True))
    pixels, words = _ranged(points.dtype, low, high)
    notes = [*_foreign(names, kept), *clipped(names, values, pixels)]
    mean, std = _moments([bring(grid, pixels) for grid in points.grids], pixels)
    constant = [c for c in range(channels) if std[c] < CONSTANT]
    if constant:
        which = _named(f"{c + 1} ({number(low[c])})" for c in constant)
        notes.append(
            f"of one value in all that was looked at, so that it becomes 0: channel {which}"
        )
    std = tuple(1.0 if s < CONSTANT else s for s in std)
    return Scaling(replace(pixels, mean=mean, std=std), words, low, high, notes)


def _ranged(dtype: str, low: tuple[float, ...], high: tuple[float, ...]) -> tuple[PixelFormat, str]:
    """The format without its moments: the whole bit depth, or a range for each channel."""
    channels = len(low)
    varies = [(a, b) for a, b in zip(low, high, strict=True) if b > a]
    if dtype == "float32":
        depth = words = "float"
    else:
        bits = 8 if dtype == "uint8" else bits_in_use(max(high))
        # "8-bit" alone means that the files are, and that images are kept as bytes.
        depth = "8-bit values" if bits == 8 and dtype == "uint16" else f"{bits}-bit"
        words = f"{depth} in 16-bit files" if dtype == "uint16" and bits < 16 else depth
        largest = 2.0**bits - 1
        if all(b - a >= FILLED * largest for a, b in varies):
            return _format(channels, (0.0,) * channels, (largest,) * channels, depth), words
    high = tuple(b if b > a else a + 1 for a, b in zip(low, high, strict=True))
    return _format(channels, low, high, depth), words


def _format(channels: int, low: Sequence[float], high: Sequence[float], depth: str) -> PixelFormat:
    low, high = (tuple(float(v) for v in ends) for ends in (low, high))
    zero, one = (0.0,) * channels, (1.0,) * channels
    return PixelFormat(
        channels=channels,
        low=low,
        high=high,
        mean=zero,
        std=one,
        depth=depth,
    )


def _moments(
    grids: list[np.ndarray], pixels: PixelFormat
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel, every image counting alike."""
    low, high = np.array(pixels.low), np.array(pixels.high)
    scaled = [(grid.astype(np.float64) - low) / (high - low) for grid in grids]
    mean = np.mean([grid.mean((0, 1)) for grid in scaled], 0)
    square = np.mean([((grid - mean) ** 2).mean((0, 1)) for grid in scaled], 0)
    both = ((float(f"{v:.9g}") for v in each) for each in (mean, np.sqrt(square)))
    mean, std = (tuple(each) for each in both)
    return mean, std


def clipped(names: list[str], values: np.ndarray, pixels: PixelFormat) -> list[str]:
    """Say which share of values (images, n, C) is clipped, in which channels, and where most."""
    least, most = (np.array(ends, np.float32) for ends in pixels.limits)
    outside = [values < least, values > most]
    if not any(side.any() for side in outside):
        return []
    told = []
    for c in range(values.shape[2]):
        shares = [float(side[..., c].mean()) for side in outside]
        ends = values[..., c].min(), values[..., c].max()
        sides = [
            f"{percent(share)} {where} {number(end[c])} ({to} {number(far)})"
            for share, where, to, end, far in zip(
                shares, ("below", "above"), ("down to", "up to"), (least, most), ends, strict=True
            )
            if share
        ]
        if sides:
            name = f"channel {c + 1}: " if values.shape[2] > 1 else ""
            told.append(name + " and ".join(sides))
    worst = names[int((outside[0] | outside[1]).mean((1, 2)).argmax())]
    return [f"values far outside the range are clipped: {_named(told, '; ')}, such as in {worst}"]


def _foreign(names: list[str], kept: np.ndarray) -> list[str]:
    rows = np.flatnonzero(~kept.all(1))
    if not len(rows):
        return []
    return [
        f"{len(rows):,} of {len(names):,} images looked at have values far from those of all "
        f"others, which alone make the range, such as {names[rows[0]]}"
    ]


def range_in_words(pixels: PixelFormat) -> str:
    """From where to where values are scaled, by channel where it differs."""
    ranges = [f"{number(a)} to {number(b)}" for a, b in zip(pixels.low, pixels.high, strict=True)]
    if len(set(ranges)) == 1:
        return ranges[0]
    return f"{_named(ranges)} by channel"


def is_measured(pixels: PixelFormat) -> bool:
    """Tell whether the range is that of the values, and not of a bit depth."""
    return pixels.depth == "float" or any(pixels.low) or min(pixels.high) < pixels.largest


def scaled_in_words(words: str, pixels: PixelFormat) -> str:
    """What files hold, and from where to where it is scaled if not by its bit depth."""
    return f"{words}, scaled from {range_in_words(pixels)}" if is_measured(pixels) else words


def _named(each: Iterable[str], between: str = ", ") -> str:
    listed = list(each)
    more = len(listed) - NAMED
    rest = [f"{more:,} more"] if more > 0 else []
    return between.join([*listed[:NAMED], *rest])


def number(value: float) -> str:
    """A value of an image as text."""
    whole = float(value).is_integer() and abs(value) < 1e7
    return f"{value:,.0f}" if whole else f"{value:.4g}"


def percent(share: float) -> str:
    """A share as text; what is not nothing is not shown as such."""
    if share < 1e-4:
        return "under 0.01 %"
    return f"{100 * share:.0f} %" if share > 0.1 else f"{100 * share:.2g} %"
