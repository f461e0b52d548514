"""What a folder of images is like: channels, depth, range, sizes; from a sample of it."""

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from simmim.config.resolved import PixelFormat
from simmim.data.audit.in_use import for_encoder
from simmim.data.audit.scaling import Points, Scaling, measure, percent, scaled_in_words
from simmim.data.formats.decode import ImageFile, UnreadableError, fill, fits, read_measured
from simmim.data.loading.order import permute
from simmim.data.names import plain
from simmim.data.sources.listing import Listing
from simmim.errors import DataError

DECODED_PIXELS = 64_000_000
"""Pixels of the sample that are decoded; of the other images only the header is read."""
SIDE = 64
"""Values kept of a decoded image, as points of a grid: of ``SAMPLE`` images at most this many by as
many, of fewer so many that there are as many in all."""
SAMPLE = 512
"""Most images looked at."""


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

    def as_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers, ready for JSON."""
        facts = asdict(self)
        facts["sizes"] = {side: list(values) for side, values in self.sizes.items()}
        facts["bad"] = [{"path": plain(path), "reason": reason} for path, reason in self.bad]
        facts["notes"] = list(map(plain, self.notes))
        return facts


@dataclass
class _Sample:
    """The readable images of the sample.

    Attributes:
        paths: Their names.
        headers: What they are.
        grids: Points of those that were decoded, else None.
        missing: Share of the values of each that are not measured.
        bad: Unreadable images of the sample: path and reason.
    """

    paths: list[str] = field(default_factory=list)
    headers: list[ImageFile] = field(default_factory=list)
    grids: list[np.ndarray | None] = field(default_factory=list)
    missing: list[float] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)


def survey(
    paths: Listing,
    *,
    channels: int | None,
    sample: int = SAMPLE,
    trained: PixelFormat | None = None,
) -> Survey:
    """Look at a sample of the images; the same images give the same answer.

    Args:
        paths: The images.
        channels: Channels asked for; None: 1 if all are grey, 3 for colour or a mixture with grey
            (then grey is repeated), N if all have N.
        sample: Most images looked at.
        trained: That of an encoder which the images are for. Where they can be brought to its
            channels, ``pixels`` becomes how they are scaled for it: see ``audit.in_use``.

    Raises:
        DataError: No image of the sample can be used, or the storage fails.
    """
    chosen = range(len(paths))
    if len(paths) > sample:
        chosen = sorted(permute(i, len(paths), 0, 0) for i in range(sample))
    seen = _sampled(paths.select(chosen))
    root = paths.where
    if not seen.headers:
        path, reason = seen.bad[0] if seen.bad else ("the folder", "no images")
        raise DataError(
            f"none of the {len(chosen)} images looked at in {root} can be read; {path}: {reason}."
        )

    want = channels or _channels(seen.headers)
    if trained is not None and fits(want, trained.channels):
        want = trained.channels
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
    scaling, others = _scaling(seen, usable, want, trained)
    return Survey(
        images=len(paths),
        sampled=len(chosen),
        channels={str(c): k for c, k in sorted(Counter(h.channels for h in seen.headers).items())},
        depth=scaling.words + _others(others),
        sizes={
            "height": _spread([header.height for header in seen.headers]),
            "width": _spread([header.width for header in seen.headers]),
        },
        formats=dict(Counter(header.format for header in seen.headers).most_common()),
        pixels=scaling.pixels,
        bad=sorted(seen.bad),
        notes=[*_left_out(seen), *_missing(seen), *scaling.notes],
    )


def _sampled(images: Listing) -> _Sample:
    seen, left = _Sample(), DECODED_PIXELS
    side = round(SIDE * (SAMPLE / len(images)) ** 0.5)
    kinds: set[tuple[int, str]] = set()
    for i, path in enumerate(images):
        try:
            header = images.open(i)
            grid, missing = None, 0.0
            kind = (header.channels, header.dtype)
            # One image of each kind is always decoded, however large.
            if header.height * header.width <= left or kind not in kinds:
                left -= header.height * header.width
                array = read_measured(header)
                if header.dtype == "float32":
                    missing = float(np.isnan(array).mean())
                array = fill(array)
                steps = (-(-array.shape[0] // side), -(-array.shape[1] // side))
                grid = array[:: steps[0], :: steps[1]].copy()
        except UnreadableError as error:
            seen.bad.append((path, error.reason))
            continue
        except OSError as error:
            where = f"{path} in {images.where}"
            raise DataError(f"reading {where} failed several times: {error}.") from error
        kinds.add(kind)
        seen.paths.append(path)
        # What reads the pixels holds the content of the file.
        seen.headers.append(replace(header, read=_gone, window=None))
        seen.grids.append(grid)
        seen.missing.append(missing)
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


def _channels(headers: list[ImageFile]) -> int:
    counts = Counter(header.channels for header in headers)
    if set(counts) == {1}:
        return 1
    counts[3] += counts.pop(1, 0) if 3 in counts or len(counts) == 1 else 0
    return counts.most_common(1)[0][0]


def _scaling(
    seen: _Sample, usable: list[int], channels: int, trained: PixelFormat | None
) -> tuple[Scaling, int]:
    """Measure the usable images; and count those that are not of the set's type."""
    types = Counter(seen.headers[i].dtype for i in usable)
    dtype = next(kind for kind in ("float32", "uint16", "uint8") if types[kind])
    decoded = [i for i in usable if seen.grids[i] is not None]
    grids = [grid for i in decoded if (grid := seen.grids[i]) is not None]
    points = Points([seen.paths[i] for i in decoded], grids, dtype)
    scaling = measure(points, channels)
    if trained is not None and trained.channels == channels:
        scaling = for_encoder(trained, scaling, points)
    else:
        scaling = replace(scaling, words=scaled_in_words(scaling.words, scaling.pixels))
    return scaling, sum(types.values()) - types[dtype]


def _others(count: int) -> str:
    if not count:
        return ""
    return f", and {count:,} file{'s' * (count > 1)} of another depth"


def _missing(seen: _Sample) -> list[str]:
    some = [i for i, share in enumerate(seen.missing) if share]
    if not some:
        return []
    share = sum(seen.missing) / sum(grid is not None for grid in seen.grids)
    return [
        f"{len(some):,} of {len(seen.paths):,} images looked at hold values that are not measured "
        f"(not finite, beyond 1e30, or what the file says to mean no data): {percent(share)} of "
        f"all; they take their channel's mean, such as in {seen.paths[some[0]]}"
    ]


def _spread(values: list[int]) -> tuple[int, int, int]:
    return min(values), round(float(np.median(values))), max(values)
