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


@dataclass(frozen=True)
class _Seen:
    """A readable image of the sample.

    Attributes:
        path: Its name.
        header: What it is.
        grid: Points of it, where it was decoded.
        missing: Share of its values that are not measured.
    """

    path: str
    header: ImageFile
    grid: np.ndarray | None
    missing: float


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
    seen, bad = _sampled(paths.select(chosen))
    root, headers = paths.where, [each.header for each in seen]
    if not seen:
        path, reason = bad[0] if bad else ("the folder", "no images")
        raise DataError(
            f"none of the {len(chosen)} images looked at in {root} can be read; {path}: {reason}."
        )

    want = channels or _channels(headers)
    if trained is not None and fits(want, trained.channels):
        want = trained.channels
    usable = [each for each in seen if fits(each.header.channels, want)]
    integers = [each for each in usable if each.header.dtype != "float32"]
    usable = usable if 2 * len(integers) < len(usable) else integers
    for each in seen:
        have = each.header.channels
        if not fits(have, want):
            bad.append((each.path, f"{have} channels, where the data set has {want}"))
        elif usable is integers and each.header.dtype == "float32":
            bad.append((each.path, "a float image among integer ones"))
    if not usable:
        found = ", ".join(sorted({str(header.channels) for header in headers}))
        raise DataError(
            f"no image in {root} can be brought to {want} channels: those found have {found}. "
            f"Leave --channels out, or give a number that they have."
        )
    scaling, others = _scaling(usable, want, trained)
    return Survey(
        images=len(paths),
        sampled=len(chosen),
        channels={str(c): k for c, k in sorted(Counter(h.channels for h in headers).items())},
        depth=scaling.words + _others(others),
        sizes={
            "height": _spread([header.height for header in headers]),
            "width": _spread([header.width for header in headers]),
        },
        formats=dict(Counter(header.format for header in headers).most_common()),
        pixels=scaling.pixels,
        bad=sorted(bad),
        notes=[*_left_out(seen), *_missing(seen), *scaling.notes],
    )


def _sampled(images: Listing) -> tuple[list[_Seen], list[tuple[str, str]]]:
    """Look at all of the images; return the readable ones, and path and reason of the others."""
    seen: list[_Seen] = []
    bad: list[tuple[str, str]] = []
    left = DECODED_PIXELS
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
            bad.append((path, error.reason))
            continue
        except OSError as error:
            where = f"{path} in {images.where}"
            raise DataError(f"reading {where} failed several times: {error}.") from error
        kinds.add(kind)
        # What reads the pixels holds the content of the file.
        seen.append(_Seen(path, replace(header, read=_gone, window=None), grid, missing))
    return seen, bad


def _left_out(seen: list[_Seen]) -> list[str]:
    """Tell of pages, planes and frames that are not used."""
    more = [each for each in seen if each.header.left_out]
    if not more:
        return []
    return [
        f"{len(more):,} of {len(seen):,} images looked at hold more than the picture that is used, "
        f"such as {more[0].path}: {more[0].header.left_out}"
    ]


def _gone(shrink: int) -> np.ndarray:
    raise AssertionError(shrink)


def _channels(headers: list[ImageFile]) -> int:
    counts = Counter(header.channels for header in headers)
    if set(counts) == {1}:
        return 1
    counts[3] += counts.pop(1, 0) if 3 in counts or len(counts) == 1 else 0
    return counts.most_common(1)[0][0]


def _scaling(
    usable: list[_Seen], channels: int, trained: PixelFormat | None
) -> tuple[Scaling, int]:
    """Measure the usable images; and count those that are not of the set's type."""
    types = Counter(each.header.dtype for each in usable)
    dtype = next(kind for kind in ("float32", "uint16", "uint8") if types[kind])
    decoded = [(each.path, each.grid) for each in usable if each.grid is not None]
    points = Points([path for path, _ in decoded], [grid for _, grid in decoded], dtype)
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


def _missing(seen: list[_Seen]) -> list[str]:
    some = [each for each in seen if each.missing]
    if not some:
        return []
    share = sum(each.missing for each in some) / sum(each.grid is not None for each in seen)
    return [
        f"{len(some):,} of {len(seen):,} images looked at hold values that are not measured "
        f"(not finite, beyond 1e30, or what the file says to mean no data): {percent(share)} of "
        f"all; they take their channel's mean, such as in {some[0].path}"
    ]


def _spread(values: list[int]) -> tuple[int, int, int]:
    return min(values), round(float(np.median(values))), max(values)
