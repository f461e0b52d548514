"""Which images are the same, and which nearly so: hashes, and finding those that lie close.

An image is *exactly* the same as another where all decoded pixels are, whatever the files' formats
and headers. It is *nearly* the same where two perceptual hashes of 64 bits differ in a few bits
each, one of the low frequencies of a cosine transform, one of the signs of neighbouring
differences, and the colours of the four quarters are alike. The hashes ignore size, brightness and
contrast, and survive strong compression; crops and turned or mirrored images are not found. The
bounds were chosen on photos: see docs/scan.md.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from simmim.data.audit.ranges import range_in_use

WAVES_BITS = 6
"""Most bits in which the cosine hashes of near duplicates differ, of 64."""
STEPS_BITS = 8
"""Most bits in which their difference hashes differ, of 64."""
TINTS, TINTS_SHARE = 5, 5
"""Most by which a quarter's red or blue less green differs, in 1/127 of the range, and beyond that
one part in so many of the larger one, since contrast stretches it."""
BLANK = 1 / 255
"""Standard deviation below which an image, made small, is blank; as a share of its range in use."""

_SIDE = 32
_WAVES = 8
_ENOUGH = 1024
_POINTS = 1 << 16
"""Values of an image that tell its range."""
_BLOCK = 1 << 20
"""Pairs compared at a time."""


class Hashes(NamedTuple):
    """What is kept of one image, or arrays of it for many.

    Attributes:
        exact: 64 bits of the pixels, their type and their shape.
        waves: Perceptual hash by cosine transform.
        steps: Perceptual hash by the differences of neighbours.
        tints: Eight signed bytes: red and blue less green, in each quarter; 0 where not of colour.
        blank: Without content: such images have no perceptual hashes.
    """

    exact: int | np.ndarray
    waves: int | np.ndarray
    steps: int | np.ndarray
    tints: int | np.ndarray
    blank: bool | np.ndarray


class Pairs(NamedTuple):
    """Pairs of images: each row is the same as, or near to, one that comes before it.

    Attributes:
        later: int64, the one to leave out; each image at most once, ascending.
        kept: int64, the one that it is like; never itself among ``later``.
        exact: Whether they are the same to the last pixel.
    """

    later: np.ndarray
    kept: np.ndarray
    exact: np.ndarray


def hash_image(array: np.ndarray) -> Hashes:
    """Hash decoded pixels (h, w, C), uint8, uint16 or float32."""
    low, high = _range(array)
    planes = _small(array, low, high)
    small = planes.mean(0)
    scale = max(high - low, 255e-6 * max(abs(low), abs(high)), 1e-30)  # float32 is rounded
    if not small.std() > BLANK * scale:
        return Hashes(exact_hash(array), 0, 0, 0, blank=True)
    angles = np.outer(np.arange(_WAVES), 2 * np.arange(_SIDE) + 1) * (math.pi / (2 * _SIDE))
    basis = np.cos(angles)
    waves = (basis @ small @ basis.T).ravel()
    # The first is the mean brightness, far larger than all others.
    waves = waves > np.median(waves[1:])
    steps = small.reshape(_WAVES, _SIDE // _WAVES, _SIDE).mean(1)
    columns = np.linspace(0, _SIDE, _WAVES + 2).astype(int)[:-1]
    steps = np.diff(np.add.reduceat(steps, columns, 1) / np.diff([*columns, _SIDE]), axis=1) > 0
    tints = _tints(planes / scale) if len(planes) == 3 else 0
    return Hashes(exact_hash(array), _bits(waves), _bits(steps.ravel()), tints, blank=False)


def exact_hash(array: np.ndarray) -> int:
    """Return 64 bits that follow from shape, type and every value of ``array``."""
    digest = hashlib.sha256(f"{array.shape} {array.dtype.str}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return int.from_bytes(digest.digest()[:8], "little")


def find_exact(exact: np.ndarray, valid: np.ndarray) -> Pairs:
    """Pair every image with the first that has the same pixels.

    Arrays are of (n,); an image that is not ``valid`` takes no part.
    """
    rows = np.flatnonzero(valid)
    _, first, inverse = np.unique(exact[rows], return_index=True, return_inverse=True)
    kept = rows[first[inverse]]
    again = kept != rows
    return Pairs(rows[again], kept[again], np.ones(int(again.sum()), bool))


def find_near(hashes: Hashes, valid: np.ndarray) -> Pairs:
    """Pair images with an earlier one that is the same or nearly so.

    Arrays are of (n,); an image that is not ``valid`` takes no part.

    In their order, each image is kept unless one that is kept already is the same or near to it:
    of several, that with the fewest differing bits, then the first.
    """
    exact = find_exact(np.asarray(hashes.exact), valid)
    rest = valid & ~np.asarray(hashes.blank)
    rest[exact.later] = False
    rows = np.flatnonzero(rest)
    # Images with the same hashes are common (bursts, frames), so they are joined first.
    same = np.stack([np.asarray(bits)[rows] for bits in hashes[1:4]], 1)
    unique, first, inverse = np.unique(same, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    keeper = _keepers(*unique[order].T)
    leader = first[order][keeper[place[inverse.ravel()]]] if len(rows) else np.zeros(0, np.int64)
    again = leader != np.arange(len(rows))
    later, kept = rows[again], rows[leader[again]]
    if len(exact.later):  # what an exact duplicate is like is left out in its turn, perhaps
        moved = dict(zip(later.tolist(), kept.tolist(), strict=True))
        final = np.array([moved.get(row, row) for row in exact.kept.tolist()], np.int64)
        exact = exact._replace(kept=final, exact=final == exact.kept)
    joined = np.concatenate([exact.later, later])
    order = np.argsort(joined)
    return Pairs(
        joined[order],
        np.concatenate([exact.kept, kept])[order],
        np.concatenate([exact.exact, np.zeros(len(later), bool)])[order],
    )


def close_pairs(
    waves: np.ndarray, steps: np.ndarray, tints: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield all pairs within the bounds, some more than once: two rows, the differing bits.

    64 bits that differ in at most k places are cut into b > k blocks: b - k of these are the same
    in both. So the rows are sorted by every choice of b - k blocks, and only those that agree there
    are compared; more blocks where there are more rows.
    """
    waves, tints = np.ascontiguousarray(waves), np.ascontiguousarray(tints)
    n = len(waves)
    spare = 1 if n < 1 << 14 else 2 if n < 1 << 20 else 3
    blocks = WAVES_BITS + spare
    edges = [round(64 * i / blocks) for i in range(blocks + 1)]
    for chosen in itertools.combinations(range(blocks), spare):
        mask = sum((1 << edges[i + 1]) - (1 << edges[i]) for i in chosen)
        keys = waves & np.uint64(mask)
        order = np.argsort(keys, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(keys[order])) + 1, n)
        # Row i of the sorted ones is compared with those after it, up to the end of its run.
        counts = np.repeat(ends, np.diff(np.concatenate([[0], ends]))) - np.arange(n) - 1
        for start, stop in _portions(counts):
            left = np.repeat(np.arange(start, stop), counts[start:stop])
            offset = np.arange(len(left)) - np.repeat(
                np.cumsum(counts[start:stop]) - counts[start:stop], counts[start:stop]
            )
            a, b = order[left], order[left + 1 + offset]
            far = np.bitwise_count(waves[a] ^ waves[b])
            near = np.flatnonzero(far <= WAVES_BITS)
            a, b, far = a[near], b[near], far[near]
            other = np.bitwise_count(steps[a] ^ steps[b])
            near = (other <= STEPS_BITS) & _like_tints(tints[a], tints[b])
            yield a[near], b[near], far[near] + other[near]


def _keepers(waves: np.ndarray, steps: np.ndarray, tints: np.ndarray) -> np.ndarray:
    """Return for each row the kept row that it is like, itself where it is kept."""
    found = [np.zeros((0, 3), np.int64)]
    for a, b, bits in close_pairs(waves, steps, tints):
        if len(a):
            found.append(np.stack([np.maximum(a, b), bits, np.minimum(a, b)], 1).astype(np.int64))
    pairs = np.unique(np.concatenate(found), axis=0)
    keeper = np.arange(len(waves))
    for later, _, earlier in pairs.tolist():
        if keeper[later] == later and keeper[earlier] == earlier:
            keeper[later] = earlier
    return keeper


def _portions(counts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut rows with so many comparisons each into ranges of about ``_BLOCK`` comparisons."""
    total = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = int(total[start - 1]) if start else 0
        stop = max(int(np.searchsorted(total, done + _BLOCK, "right")), start + 1)
        yield start, stop
        start = stop


def _range(array: np.ndarray) -> tuple[float, float]:
    values = array.reshape(-1, array.shape[2])
    return range_in_use(values[:: max(1, values.size // _POINTS)], array.dtype.name)


def _small(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """Make it 32×32, by areas, of values between ``low`` and ``high``: (C, 32, 32) float64."""
    step = max(1, min(array.shape[:2]) // _ENOUGH)  # of a huge image, points: for the memory
    array = array[::step, ::step]
    array = np.array(array, np.float32 if array.dtype == np.uint16 else array.dtype, order="C")
    if array.dtype == np.float32:
        array.clip(low, high, out=array)
    image = torch.from_numpy(array).permute(2, 0, 1)[None]
    if image.dtype == torch.uint8:
        # torch's kernels for bytes are several times faster; what they round is averaged after.
        image = F.interpolate(image, size=(4 * _SIDE,) * 2, mode="bilinear", antialias=True)
        image = F.avg_pool2d(image.float(), 4)
    else:
        image = F.interpolate(image, size=(_SIDE,) * 2, mode="bilinear", antialias=True)
    return image[0].double().numpy()


def _tints(planes: np.ndarray) -> int:
    """Colours of the quarters of (3, 32, 32) values of the range 0 … 1."""
    half = _SIDE // 2
    quarters = planes.reshape(3, 2, half, 2, half).mean((2, 4)).reshape(3, 4)
    colours = np.concatenate([quarters[0] - quarters[1], quarters[2] - quarters[1]])
    return int.from_bytes(np.rint(colours.clip(-1, 1) * 127).astype(np.int8).tobytes(), "little")


def _like_tints(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    a, b = (tints.view(np.int8).reshape(-1, 8).astype(np.int16) for tints in (one, other))
    allowed = TINTS + np.maximum(abs(a), abs(b)) // TINTS_SHARE
    return np.all(abs(a - b) <= allowed, axis=1)


def _bits(values: np.ndarray) -> int:
    return int.from_bytes(np.packbits(values).tobytes(), "big")
