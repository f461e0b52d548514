"""What a folder of images is like: channels, depth, range, sizes; from a sample of it."""

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from simmim.config.resolved import PixelFormat
from simmim.data.decode import Opened, UnreadableError, bring, fits, read_pixels
from simmim.data.order import permute
from simmim.data.sources.listing import Listing
from simmim.errors import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

DECODED_PIXELS = 64_000_000
"""Pixels of the sample that are decoded; of the other images only the header is read."""
SIDE = 64
"""Values kept of a decoded image, as points of a grid: at most this many by as many."""
DEPTHS = (8, 10, 12, 14, 16)
"""Bit depths that cameras and scanners use within 16-bit files."""
FLOAT_PERCENTILES = (0.1, 99.9)
LEAST_STD = 1e-3


@dataclass(frozen=True)
class Survey:
    """What was found in a sample of the images.

    Attributes:
        images: Images in all.
        sampled: Images looked at.
        channels: Images of the sample by number of channels.
        depth: What the files hold, in words.
        sizes: Smallest, median and largest height and width in pixels.
        formats: Images of the sample by file format.
        pixels: How decoded values become the encoder's input.
        bad: Images of the sample that cannot be used: path and reason.
        notes: What is clipped, guessed or changed, how many and why; see ``SourceInfo``.
    """

    images: int
    sampled: int
    channels: dict[str, int]
    depth: str
    sizes: dict[str, tuple[int, int, int]]
    formats: dict[str, int]
    pixels: PixelFormat
    bad: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)

    def sizes_in_words(self) -> str:
        """Return the range and the median of heights and widths."""
        (low, middle, high), (narrow, median, wide) = self.sizes["height"], self.sizes["width"]
        if (low, narrow) == (high, wide):
            return f"all {low}×{narrow} pixels (height × width)"
        return (
            f"{low} to {high} × {narrow} to {wide} pixels (height × width), "
            f"median {middle}×{median}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers, ready for JSON."""
        plain = asdict(self)
        plain["sizes"] = {side: list(values) for side, values in self.sizes.items()}
        plain["bad"] = [{"path": path, "reason": reason} for path, reason in self.bad]
        return plain


@dataclass
class _Sample:
    """The readable images of the sample; ``grids`` has the points of those decoded, else None."""

    paths: list[str] = field(default_factory=list)
    headers: list[Opened] = field(default_factory=list)
    grids: list[np.ndarray | None] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)


def survey(paths: Listing, *, channels: int | None, sample: int = 512) -> Survey:
    """Look at a sample of the images; the same images give the same answer.

    Args:
        paths: The images.
        channels: Channels asked for; None: 1 if all are grey, 3 for colour or a mixture with grey
            (then grey is repeated), N if all have N.
        sample: Most images looked at.

    Raises:
        DataError: No image of the sample can be used, or the storage fails.
    """
    chosen = range(len(paths))
    if len(paths) > sample:
        chosen = sorted(permute(i, len(paths), 0, 0) for i in range(sample))
    seen = _look(paths.select(chosen))
    root = paths.where
    if not seen.headers:
        path, reason = seen.bad[0] if seen.bad else ("the folder", "no images")
        raise DataError(
            f"none of the {len(chosen)} images looked at in {root} can be read; {path}: {reason}."
        )

    want = channels or _channels(seen.headers)
    usable = [i for i, header in enumerate(seen.headers) if fits(header.channels, want)]
    floats = [i for i in usable if seen.headers[i].dtype == "float32"]
    as_float = 2 * len(floats) > len(usable)
    if not as_float:
        usable = [i for i in usable if i not in floats]
    for i in sorted(set(range(len(seen.headers))) - set(usable)):
        have = seen.headers[i]
        reason = (
            "a float image among integer ones"
            if fits(have.channels, want)
            else f"{have.channels} channels, where the data set has {want}"
        )
        seen.bad.append((seen.paths[i], reason))
    if not usable:
        found = ", ".join(sorted({str(header.channels) for header in seen.headers}))
        raise DataError(
            f"no image in {root} can be brought to {want} channels: those found have {found}. "
            f"Leave --channels out, or give a number that they have."
        )
    pixels, depth = _pixel_format(seen, usable, want, as_float=as_float)
    return Survey(
        images=len(paths),
        sampled=len(chosen),
        channels={str(c): k for c, k in sorted(Counter(h.channels for h in seen.headers).items())},
        depth=depth,
        sizes={
            "height": _spread([header.height for header in seen.headers]),
            "width": _spread([header.width for header in seen.headers]),
        },
        formats=dict(Counter(header.format for header in seen.headers).most_common()),
        pixels=pixels,
        bad=sorted(seen.bad),
        notes=_left_out(seen),
    )


def _look(images: Listing) -> _Sample:
    seen, left = _Sample(), DECODED_PIXELS
    for i, path in enumerate(images):
        try:
            header = images.open(i)
            grid, peak = None, 0
            # One image is always decoded, however large.
            if header.height * header.width <= left or not seen.headers:
                left -= header.height * header.width
                array = read_pixels(header)
                steps = (-(-array.shape[0] // SIDE), -(-array.shape[1] // SIDE))
                grid = array[:: steps[0], :: steps[1]].copy()
                peak = int(array.max()) if array.dtype == np.uint16 else 0
        except UnreadableError as error:
            seen.bad.append((path, error.reason))
            continue
        except OSError as error:
            where = f"{path} in {images.where}"
            raise DataError(f"reading {where} failed several times: {error}.") from error
        seen.paths.append(path)
        # What reads the pixels holds the content of the file.
        seen.headers.append(replace(header, read=_gone, window=None))
        seen.grids.append(grid)
        seen.peaks.append(peak)
    return seen


def _left_out(seen: _Sample) -> list[str]:
    """Tell of pages, planes and frames that are not used."""
    pairs = zip(seen.paths, seen.headers, strict=True)
    more = [(path, header.left_out) for path, header in pairs if header.left_out]
    if not more:
        return []
    path, what = more[0]
    share = f"{len(more):,} of {len(seen.headers):,} images looked at"
    return [f"{share} hold more than the picture that is used, such as {path}: {what}"]


def _gone(shrink: int) -> np.ndarray:
    raise AssertionError(shrink)


def _channels(headers: list[Opened]) -> int:
    counts = Counter(header.channels for header in headers)
    if set(counts) == {1}:
        return 1
    counts[3] += counts.pop(1, 0) if 3 in counts or len(counts) == 1 else 0
    return counts.most_common(1)[0][0]


def _pixel_format(
    seen: _Sample, usable: list[int], channels: int, *, as_float: bool
) -> tuple[PixelFormat, str]:
    """Return the format and the depth in words."""
    types = Counter(seen.headers[i].dtype for i in usable)
    grids = [grid for i in usable if (grid := seen.grids[i]) is not None]
    low, high, depth = 0.0, 255.0, "8-bit"
    words = depth
    if as_float:
        values = [grid.ravel() for grid in grids if grid.dtype == np.float32]
        low, high = (float(v) for v in np.percentile(np.concatenate(values), FLOAT_PERCENTILES))
        if high <= low:
            high = low + 1.0
        words = depth = "float"
    elif types["uint16"]:
        bits = next(b for b in DEPTHS if max(seen.peaks) < 2**b)
        high = float(2**bits - 1)
        # "8-bit" alone means that the files are, and that images are kept as bytes.
        depth = f"{bits}-bit" if bits > 8 else "8-bit values"
        words = depth if bits == 16 else f"{depth} in 16-bit files"
    if len(types) > 1:
        words += f", and {sum(types.values()) - types.most_common(1)[0][1]} files of another depth"

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if depth != "8-bit" or channels != 3:
        unit = PixelFormat(
            channels=channels, low=low, high=high, mean=(0.0,), std=(1.0,), depth=depth
        )
        mean, std = _moments([bring(grid, unit) for grid in grids], low, high)
    return PixelFormat(
        channels=channels, low=low, high=high, mean=mean, std=std, depth=depth
    ), words


def _moments(
    grids: list[np.ndarray], low: float, high: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel, every image counting alike."""
    scaled = [((grid.astype(np.float64) - low) / (high - low)) for grid in grids]
    mean = np.mean([grid.mean((0, 1)) for grid in scaled], 0)
    square = np.mean([((grid - mean) ** 2).mean((0, 1)) for grid in scaled], 0)
    std = np.maximum(np.sqrt(square), LEAST_STD)
    return tuple(round(float(m), 6) for m in mean), tuple(round(float(s), 6) for s in std)


def _spread(values: list[int]) -> tuple[int, int, int]:
    return min(values), round(float(np.median(values))), max(values)
