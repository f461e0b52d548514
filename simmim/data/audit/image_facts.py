"""Look at every image of a data set once: what it is, whether it is whole, what it is like."""

import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from simmim.data.audit.duplicates import Hashes, hash_image
from simmim.data.formats.decode import fill, inspect, read_measured
from simmim.data.formats.endings import EXTENSIONS
from simmim.data.formats.image_file import ImageFile, UnreadableError
from simmim.data.formats.pillow import FORMATS
from simmim.data.processes import Place, ProcessLoss, do_all
from simmim.data.sources.listing import Listing
from simmim.errors import DataError

AT_ONCE = 64
"""Images that a process looks at before it tells what it saw."""
EXAMPLES = 500
"""Most images that are named for one thing on a page."""
LISTED = 100_000
"""Most of those that are unreadable, or like another, in the list for programs."""
POINTS = 64
"""Values of each image that are kept, for the range of all that are not of 8 bits."""
VALUES = 1 << 18
TINY, LONG = 32, 4
"""Sides in pixels, and the longer side over the shorter one, from which an image is odd."""
NAMES = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png", "apng"),
    "TIFF": ("tif", "tiff"),
    "BMP": ("bmp", "dib"),
    "DIB": ("bmp", "dib"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "JPEG2000": ("jp2", "j2k", "jpx"),
    "AVIF": ("avif", "heic", "heif", "hif"),
    "HEIF": ("heic", "heif", "hif", "avif"),
    "DICOM": ("dcm", "dicom", "ima"),
}
"""Endings that files of a format have; others have their own name."""

ARRAYS = (*Hashes._fields, "readable", "height", "width")
"""What has one value per image in ``ImageFacts``."""

Tell = Callable[[int, int], None]
"""Called with how many images were looked at, and how many there are."""


@dataclass
class ImageFacts:
    """What was seen; arrays have one value per image, in the order of the listing.

    Attributes:
        exact: uint64, see ``simmim.data.audit.duplicates``; so ``waves``,
            ``steps``, ``tints`` and ``blank``.
        readable: bool.
        height: int32, pixels; 0 where unreadable.
        width: int32.
        kinds: Images by (format, channels, type of the values).
        peak: Largest value of each integer type.
        low: Smallest value of each type.
        points: Some values of the images of each type but uint8.
        bytes: Of all files.
        bad: Number of an image and why it cannot be read: the first ones.
        reasons: Unreadable images by reason.
        odd: By what is odd: how many images, and the numbers of the first ones.
    """

    exact: np.ndarray
    waves: np.ndarray
    steps: np.ndarray
    tints: np.ndarray
    blank: np.ndarray
    readable: np.ndarray
    height: np.ndarray
    width: np.ndarray
    kinds: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    peak: dict[str, float] = field(default_factory=dict)
    low: dict[str, float] = field(default_factory=dict)
    points: dict[str, list[np.ndarray]] = field(default_factory=dict)
    bytes: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    odd: dict[str, tuple[int, list[int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, images: int) -> "ImageFacts":
        """Nothing seen yet of so many images."""
        bits = (np.uint64, np.uint64, np.uint64, np.uint64, bool, bool, np.int32, np.int32)
        arrays: dict[str, Any] = {
            name: np.zeros(images, kind) for name, kind in zip(ARRAYS, bits, strict=True)
        }
        return cls(**arrays)

    @property
    def hashes(self) -> Hashes:
        """The hashes of all images."""
        return Hashes(self.exact, self.waves, self.steps, self.tints, self.blank)


def read_facts(listing: Listing, workers: int, tell: Tell | None = None) -> ImageFacts:
    """Read every image once, in bounded memory: about 50 bytes are kept of each.

    Raises:
        DataError: The storage fails.
    """
    seen = ImageFacts.of(len(listing))
    starts = range(0, len(listing), AT_ONCE)
    tasks = [(start, min(start + AT_ONCE, len(listing))) for start in starts]
    done, values = 0, 0
    while tasks:
        again: list[tuple[int, int]] = []
        for (start, stop), result in do_all(partial(_task_facts, listing), tasks, workers):
            if isinstance(result, ProcessLoss):
                at = max(result.at, start)
                _add_bad(seen, at, f"the process that read it {result.how}")
                again += [(a, b) for a, b in ((start, at), (at + 1, stop)) if a < b]
                done += 1
                continue
            values += merge(seen, start, result, keep=values < VALUES)
            done += stop - start
            if tell:
                tell(done, len(listing))
        tasks = again
    seen.bad.sort()
    seen.odd = {what: (n, sorted(rows)) for what, (n, rows) in sorted(seen.odd.items())}
    return seen


def _task_facts(listing: Listing, task: tuple[int, int], place: Place) -> ImageFacts:
    """Look at the images ``task[0]`` … ``task[1] - 1``."""
    start, stop = task
    seen = ImageFacts.of(stop - start)
    for row in range(start, stop):
        place.at = row
        name = listing[row]
        try:
            _add_facts(seen, row - start, name, listing.read(row))
        except UnreadableError as error:
            _add_bad(seen, row - start, error.reason)
        except OSError as error:
            raise DataError(f"reading {name} failed several times: {error}.") from error
    return seen


def _add_facts(seen: ImageFacts, i: int, name: str, data: bytes) -> None:
    seen.bytes += len(data)
    opened = inspect(data)
    array = read_measured(opened)
    missing = array.dtype == np.float32 and bool(np.isnan(array).any())
    array = fill(array)
    hashes = hash_image(array)
    for field_name, value in hashes._asdict().items():
        getattr(seen, field_name)[i] = value
    seen.height[i], seen.width[i] = opened.height, opened.width
    seen.kinds[opened.format, opened.channels, opened.dtype] += 1
    kind = array.dtype.name
    seen.peak[kind] = max(seen.peak.get(kind, -np.inf), float(array.max()))
    seen.low[kind] = min(seen.low.get(kind, np.inf), float(array.min()))
    if kind != "uint8":
        rows = array.reshape(-1, array.shape[2])
        some = rows[:: max(1, array.size // POINTS)].ravel()[:POINTS]
        seen.points.setdefault(kind, []).append(some.copy())
    if missing:
        _add_odd(seen, "no measurement in places, which take their channel's mean", 1, [i])
    for what in oddities(name, data, opened):
        _add_odd(seen, what, 1, [i])
    seen.readable[i] = True


def oddities(name: str, data: bytes, opened: ImageFile) -> Iterator[str]:
    """Yield what is unusual about a readable image, in words."""
    ending = PurePosixPath(name).suffix.lower()
    known = NAMES.get(opened.format, (opened.format.lower(),))
    if ending in EXTENSIONS and ending[1:] not in known:
        yield f"named {ending}, but in the format {opened.format}"
    if min(opened.height, opened.width) < TINY:
        yield f"shorter side below {TINY} pixels"
    if max(opened.height, opened.width) > LONG * min(opened.height, opened.width):
        yield f"more than {LONG} times as long as wide"
    if opened.turned:
        yield "turned upright, as EXIF or XMP says"
    if opened.left_out:
        yield opened.left_out
    if opened.format != "JPEG" or len(opened.shrinks) == 1:
        yield from _oddities_of_pillow(data)


def _oddities_of_pillow(data: bytes) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        mode, info = image.mode, image.info
    except Exception:  # what Pillow cannot open was read by other means, or will be told as bad
        return
    if mode in ("P", "PA"):
        yield "a palette, expanded to colours"
    if mode == "CMYK":
        yield "CMYK, brought to RGB"
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in info:
        yield "transparent parts, laid over white"


def merge(seen: ImageFacts, start: int, new: ImageFacts, *, keep: bool = True) -> int:
    """Add what was seen of the images from ``start`` on; return how many points were kept."""
    for name in ARRAYS:
        values = getattr(new, name)
        getattr(seen, name)[start : start + len(values)] = values
    seen.kinds += new.kinds
    seen.bytes += new.bytes
    for kind, value in new.peak.items():
        seen.peak[kind] = max(seen.peak.get(kind, value), value)
        seen.low[kind] = min(seen.low.get(kind, new.low[kind]), new.low[kind])
    for kind, count in new.reasons.items():
        _add_reason(seen, kind, count)
    room = LISTED - len(seen.bad)
    seen.bad += [(start + row, reason) for row, reason in new.bad[: max(room, 0)]]
    for what, (count, rows) in new.odd.items():
        _add_odd(seen, what, count, [start + row for row in rows])
    if not keep:
        return 0
    for kind, some in new.points.items():
        seen.points.setdefault(kind, []).extend(some)
    return sum(len(values) for some in new.points.values() for values in some)


def _add_bad(seen: ImageFacts, row: int, reason: str) -> None:
    # Numbers differ from file to file; what they count is the same reason.
    _add_reason(seen, re.split(r"[:(;,]\s*[^:(;,]*\d", reason)[0].strip(), 1)
    seen.bad.append((row, reason))


def _add_reason(seen: ImageFacts, kind: str, count: int) -> None:
    told = kind in seen.reasons or len(seen.reasons) < EXAMPLES
    seen.reasons[kind if told else "other reasons"] += count


def _add_odd(seen: ImageFacts, what: str, count: int, rows: list[int]) -> None:
    before, examples = seen.odd.get(what, (0, []))
    seen.odd[what] = before + count, (examples + rows)[:EXAMPLES]
