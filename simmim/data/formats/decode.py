"""From the bytes of a file to an array of pixels, or a short reason why not.

The format is told from the content, never from the name. Files come from anywhere: sizes are
checked before anything is decoded, and every failure is an ``UnreadableError``.
"""

import errno
import math
import stat
import struct
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from simmim.config.resolved import PixelFormat
from simmim.data.audit.ranges import measured_range
from simmim.data.formats.dicom import is_dicom, open_dicom
from simmim.data.formats.heif import is_heif, open_heif
from simmim.data.formats.image_file import ImageFile, Region, UnreadableError, kept
from simmim.data.formats.jpeg import open_jpeg
from simmim.data.formats.npy import is_npy, open_npy
from simmim.data.formats.pillow import open_pillow
from simmim.data.formats.tiff import NotNativeError, is_tiff, open_tiff

T = TypeVar("T")

MAX_FILE = 2 * 2**30
MAX_PIXELS = 250_000_000
MAX_BYTES = 600_000_000
"""Decoders keep up to three copies of an image, and must stay below 2 GB."""
MEASURED = 1e30
"""No measurement is larger; what is means no data, such as the least float32, -3.4e38."""

HOPELESS = (errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EOVERFLOW)
"""Errors of a storage that waiting does not help."""


class StorageError(OSError):
    """A storage that still fails after several tries, which says nothing about the image."""


def patiently(work: Callable[[], T]) -> T:
    """Do ``work`` on a file; a storage that fails is tried again for some eight seconds.

    Raises:
        UnreadableError: The file is gone, or may not be read.
        StorageError: The storage still fails.
    """
    for wait in (0.1, 0.5, 2, 5, None):
        try:
            return work()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
            raise UnreadableError(f"cannot be read: {error.strerror}") from error
        except OSError as error:
            if error.errno in HOPELESS:
                raise UnreadableError(f"cannot be read: {error.strerror}") from error
            if wait is None:
                raise StorageError(*error.args) from error
            time.sleep(wait)
    raise AssertionError


def read_file(file: Path) -> bytes:
    """Read a whole file, with the patience of ``patiently``.

    Raises:
        UnreadableError: The file is gone, may not be read, is none (a pipe), or is far too large.
        StorageError: The storage still fails.
    """

    def whole() -> bytes:
        if file_size(file) > MAX_FILE:
            raise UnreadableError(f"too large: a file of more than {MAX_FILE >> 30} GB")
        return file.read_bytes()

    return patiently(whole)


def file_size(file: Path) -> int:
    """Return the bytes of a file; what would block or never end, such as a pipe, is refused."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        is_folder = stat.S_ISDIR(status.st_mode)
        raise UnreadableError(f"not a file but a {'folder' if is_folder else 'pipe or device'}")
    return status.st_size


def inspect(data: bytes) -> ImageFile:
    """Read the header and check the size.

    Raises:
        UnreadableError: Not an image, a damaged header, or too large.
    """
    opened = guard(lambda: _open(data))
    if opened.height * opened.width == 0 or opened.channels == 0:
        raise UnreadableError("the image is empty")
    check_size(opened)
    return opened


def check_size(opened: ImageFile) -> None:
    """Refuse an image that is too large to be decoded whole."""
    pixels, channels = opened.height * opened.width, opened.channels + opened.alpha
    if pixels > MAX_PIXELS or pixels * channels * np.dtype(opened.dtype).itemsize > MAX_BYTES:
        raise UnreadableError(
            f"too large: {opened.height}×{opened.width} pixels, {channels} channels; "
            f"at most {MAX_PIXELS // 10**6} megapixels and {MAX_BYTES // 10**6} MB are decoded "
            f"at once (--tile cuts TIFF and .npy of any size)"
        )


def read_pixels(opened: ImageFile, shrink: int = 1) -> np.ndarray:
    """Return the pixels (h, w, C), uint8, uint16 or float32, of the first frame or page.

    EXIF orientation is applied, palettes are expanded, CMYK becomes RGB, alpha is composited over
    white, and values of a float image that are not measured take their channel's mean.

    Args:
        opened: What ``inspect`` gave.
        shrink: One of ``opened.shrinks``: the sides come at 1/shrink, rounded up.

    Raises:
        UnreadableError: With a short reason; nothing else is raised.
    """
    return guard(lambda: fill(_typed(opened.read(shrink))))


def read_measured(opened: ImageFile) -> np.ndarray:
    """Return ``read_pixels`` with NaN where a float image has no measurement; see ``fill``."""
    return guard(lambda: _typed(opened.read(1)))


def read_window(opened: ImageFile, box: Region) -> np.ndarray:
    """Return a part like ``read_pixels``, of the whole only where the format allows no less.

    Raises:
        UnreadableError: With a short reason; nothing else is raised.
    """
    if opened.window is not None:
        window = opened.window
        return guard(lambda: fill(_typed(window(box))))
    return read_part(opened, 1, box)


def read_part(opened: ImageFile, shrink: int, box: Region) -> np.ndarray:
    """Return a part of ``read_pixels(opened, shrink)``, where the format allows it from less work.

    ``box`` is in pixels of the smaller picture, and within it.

    Raises:
        UnreadableError: With a short reason; nothing else is raised.
    """
    if opened.part is not None:
        part = opened.part
        return guard(lambda: fill(_typed(part(shrink, box))))
    top, left, height, width = box
    return read_pixels(opened, shrink)[top : top + height, left : left + width]


def decode(data: bytes) -> np.ndarray:
    """Return all pixels of a file's content; see ``read_pixels``."""
    return read_pixels(inspect(data))


def bring(array: np.ndarray, pixels: PixelFormat) -> np.ndarray:
    """Bring a decoded (h, w, C) image to the channels and the units of its data set.

    Grey is repeated to three channels (as a view, where all have one range), three become one by
    luma. In an 8-bit set the result is uint8, otherwise float32, in the units of ``pixels.low`` …
    ``pixels.high``: integer files of another depth than the set's are scaled to it. Values beyond
    ``pixels.limits`` are clipped, before anything is resized, so that they do not spread.

    Raises:
        UnreadableError: Other channels than the data set's, or floats among integers.
    """
    have, want = array.shape[2], pixels.channels
    if not fits(have, want):
        raise UnreadableError(f"{have} channels, where the data set has {want}")
    ranged = _ranged(array, pixels)
    shape = (*array.shape[:2], want)
    if have == 3 and want == 1:
        ranged = _luma(ranged)
    elif have != want and not _alike(pixels):
        ranged = np.broadcast_to(ranged, shape)
    least, most = pixels.limits
    if max(least) > 0 or min(most) < _most(array.dtype, pixels):
        ranged = _clipped(ranged, pixels, fresh=ranged is not array)
    return ranged if ranged.shape == shape else np.broadcast_to(ranged, shape)


def _most(dtype: np.dtype, pixels: PixelFormat) -> float:
    """The largest value that a decoded image may have once it is in the units of its set."""
    if dtype == np.float32 or pixels.depth == "float":
        return math.inf
    return 65535.0 if dtype == np.uint16 and pixels.depth != "8-bit" else pixels.largest


def _luma(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        weights = np.array([19595, 38470, 7471], np.uint32)
        return ((array @ weights + 0x8000) >> 16).astype(np.uint8)[..., None]
    return (array @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]


def _alike(pixels: PixelFormat) -> bool:
    """Tell whether all channels have one range."""
    return len(set(pixels.low)) == len(set(pixels.high)) == 1


def _clipped(array: np.ndarray, pixels: PixelFormat, *, fresh: bool) -> np.ndarray:
    """Clip to ``pixels.limits``; in place where the array is ``fresh``."""
    least, most = pixels.limits
    if _alike(pixels):
        ends = array.dtype.type(least[0]), array.dtype.type(most[0])
        return np.clip(array, *ends, out=array if fresh else np.empty_like(array))
    # Vector instructions need long rows, not a pair of ends for each few numbers.
    low, high = (np.tile(np.array(v).astype(array.dtype), array.shape[1]) for v in (least, most))
    rows = np.maximum(array.reshape(len(array), -1), low)
    return np.minimum(rows, high, out=rows).reshape(array.shape)


def fits(have: int, want: int) -> bool:
    """Tell whether ``bring`` can make ``want`` channels of ``have``."""
    return have == want or {have, want} == {1, 3}


def usable(channels: int, dtype: str, pixels: PixelFormat) -> bool:
    """Tell whether ``bring`` takes images of so many channels and of this type."""
    return fits(channels, pixels.channels) and (dtype != "float32" or pixels.depth == "float")


def is_eight_bit(pixels: PixelFormat) -> bool:
    """Tell whether images of this format are kept as uint8."""
    return pixels.depth == "8-bit"


def _ranged(array: np.ndarray, pixels: PixelFormat) -> np.ndarray:
    """Bring values to the units of the set; (h, w, C), C as it was."""
    if array.dtype == np.float32:
        if pixels.depth != "float":
            raise UnreadableError(f"a float image, where the data set has {pixels.depth} images")
        return array
    if is_eight_bit(pixels):
        if array.dtype == np.uint8:
            return array
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype == np.uint16 and pixels.depth != "float":
        return array.astype(np.float32)
    share = array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
    if pixels.depth != "float":
        return share * np.float32(pixels.largest)
    low, high = (np.array(ends, np.float32) for ends in (pixels.low, pixels.high))
    if _alike(pixels):
        low, high = low[:1], high[:1]
    return share * (high - low) + low


def guard(work: Callable[[], Any]) -> Any:
    """Run ``work``; every failure becomes an ``UnreadableError``."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours is MAX_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()
    except (UnreadableError, StorageError):
        raise
    except MemoryError as error:
        raise UnreadableError("too large for the memory") from error
    except Exception as error:  # decoders raise whatever they like on damaged files
        text = " ".join(str(error).split())[:160]
        if (
            len(text) < 10
            or text.startswith("decoder error")
            or isinstance(error, (KeyError, IndexError, struct.error))
        ):
            text = f"damaged ({type(error).__name__} {text})"
        raise UnreadableError(text) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _open(data: bytes) -> ImageFile:
    if data[:3] == b"\xff\xd8\xff":
        return open_jpeg(data)
    if not data.strip(b"\0"):
        raise UnreadableError("the file is empty" if not data else "the file holds only zeros")
    for is_format, opener in OPENERS:
        if is_format(data):
            return opener(data)
    return open_pillow(data)


def _tiff(data: bytes) -> ImageFile:
    try:
        return _native_tiff(data)
    except Exception:
        if is_dicom(data):  # whose first bytes are free, and may be those of a TIFF
            return open_dicom(data)
        raise


def _native_tiff(data: bytes) -> ImageFile:
    try:
        return open_tiff(data)
    except NotNativeError as error:
        opened = open_pillow(data, deep=error.deep, page=error.page)
        return replace(opened, left_out=error.left_out)


OPENERS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes], ImageFile]], ...] = (
    (is_npy, open_npy),
    (is_tiff, _tiff),
    (is_dicom, open_dicom),
    (is_heif, open_heif),
)
"""Formats that are not left to Pillow: how each is recognised from its content, and opened."""


def _typed(array: np.ndarray) -> np.ndarray:
    """Bring the values to one of the three types; NaN stands for those that are not measured."""
    dtype = kept(array.dtype)
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    with np.errstate(over="ignore"):
        array = array.astype(dtype, copy=False)
    if dtype != "float32" or (array.min() >= -MEASURED and array.max() <= MEASURED):
        return array
    return np.where(np.abs(array) <= MEASURED, array, np.float32(np.nan))


def fill(array: np.ndarray) -> np.ndarray:
    """Give the NaN of a float image the mean of their channel, or 0 where it has no other value.

    Raises:
        UnreadableError: There is nothing else.
    """
    if array.dtype != np.float32:
        return array
    measured = ~np.isnan(array)
    if measured.all():
        return array
    if not measured.any():
        raise UnreadableError("no value is measured: all are not finite, or mean no data")
    out = array.copy()
    for channel, known in zip(np.moveaxis(out, 2, 0), np.moveaxis(measured, 2, 0), strict=True):
        values = channel[known]
        if len(values):
            # A few values that are far off must not decide what all the missing ones become.
            low, high = measured_range(values[:: max(1, len(values) >> 16)])
            values = np.clip(values, low - (high - low) / 2, high + (high - low) / 2)
        channel[~known] = values.mean(dtype=np.float64) if len(values) else 0
    return out
