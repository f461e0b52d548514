"""From the bytes of a file to an array of pixels, or a short reason why not.

The format is told from the content, never from the name. Files come from anywhere: sizes are
checked before anything is decoded, and every failure is an ``UnreadableError``.
"""

import io
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from simmim.config.resolved import PixelFormat
from simmim.data.opened import Opened, UnreadableError, kept, orient
from simmim.data.pillow import open_pillow
from simmim.data.tiff import NotNativeError, is_tiff, open_tiff

MAX_FILE = 2 * 2**30
MAX_PIXELS = 250_000_000
MAX_BYTES = 600_000_000
"""Decoders keep up to three copies of an image, and must stay below 2 GB."""


def read_file(file: Path) -> bytes:
    """Read a whole file; a storage that fails is tried again for some eight seconds.

    Raises:
        UnreadableError: The file is gone, may not be read, or is far too large.
        OSError: The storage still fails, which says nothing about the image.
    """
    for wait in (0.1, 0.5, 2, 5, None):
        try:
            if file.stat().st_size > MAX_FILE:
                raise UnreadableError(f"too large: a file of more than {MAX_FILE >> 30} GB")
            return file.read_bytes()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
            raise UnreadableError(f"cannot be read: {error.strerror}") from error
        except OSError:
            if wait is None:
                raise
            time.sleep(wait)
    raise AssertionError


def decode(data: bytes, least: int | None = None) -> np.ndarray:
    """Return the pixels (h, w, C), uint8, uint16 or float32, of the first frame or page.

    EXIF orientation is applied, palettes are expanded, CMYK becomes RGB, alpha is composited over
    white, and non-finite values of a float image take their channel's mean.

    Args:
        data: Content of the file.
        least: Where given, a large JPEG may come at 1/2, 1/4 or 1/8 of its size, as long as both
            sides keep this many pixels; other formats come whole.

    Raises:
        UnreadableError: With a short reason; nothing else is raised.
    """
    return _guard(lambda: _finish(inspect(data, least).read()))


def inspect(data: bytes, least: int | None = None) -> Opened:
    """Read the header and check the size; ``decode`` explains the arguments.

    Raises:
        UnreadableError: Not an image, a damaged header, or too large.
    """
    opened = _guard(lambda: _open(data, least))
    pixels = opened.height * opened.width
    if pixels == 0 or opened.channels == 0:
        raise UnreadableError("the image is empty")
    if pixels > MAX_PIXELS or pixels * opened.channels * _width(opened.dtype) > MAX_BYTES:
        raise UnreadableError(
            f"too large: {opened.height}×{opened.width} pixels, {opened.channels} channels; "
            f"at most {MAX_PIXELS // 10**6} megapixels and {MAX_BYTES // 10**6} MB are decoded"
        )
    return opened


def bring(array: np.ndarray, pixels: PixelFormat) -> np.ndarray:
    """Bring a decoded (h, w, C) image to the channels and the range of its data set.

    Grey is repeated to three channels (as a view), three become one by luma. In an 8-bit set the
    result is uint8, otherwise float32 in the units of ``pixels.low`` … ``pixels.high``: integer
    files of another depth than the set's are scaled to it.

    Raises:
        UnreadableError: Other channels than the data set's, or floats among integers.
    """
    have, want = array.shape[2], pixels.channels
    if not fits(have, want):
        raise UnreadableError(f"{have} channels, where the data set has {want}")
    array = _ranged(array, pixels)
    if have == 3 and want == 1:
        if array.dtype == np.uint8:
            weights = np.array([19595, 38470, 7471], np.uint32)
            return ((array @ weights + 0x8000) >> 16).astype(np.uint8)[..., None]
        return (array @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    if have == 1 and want == 3:
        return np.broadcast_to(array, (*array.shape[:2], 3))
    return array


def fits(have: int, want: int) -> bool:
    """Tell whether ``bring`` can make ``want`` channels of ``have``."""
    return have == want or {have, want} == {1, 3}


def is_eight_bit(pixels: PixelFormat) -> bool:
    """Tell whether images of this format are kept as uint8."""
    return pixels.depth == "8-bit" and pixels.high == 255


def _ranged(array: np.ndarray, pixels: PixelFormat) -> np.ndarray:
    if is_eight_bit(pixels):
        if array.dtype == np.uint8:
            return array
        if array.dtype == np.uint16:
            return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
        raise UnreadableError("a float image, where the data set has 8-bit images")
    is_float = pixels.depth == "float"
    if array.dtype == np.float32:
        if not is_float:
            raise UnreadableError(f"a float image, where the data set has {pixels.depth} images")
        return array
    if array.dtype == np.uint16 and not is_float:
        return array.astype(np.float32)
    share = array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
    return share * np.float32(pixels.high - pixels.low) + np.float32(pixels.low)


def _guard(work: Callable[[], Any]) -> Any:
    """Run ``work``; every failure becomes an ``UnreadableError``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()
    except UnreadableError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableError("too large: Pillow takes it for a decompression bomb") from error
    except MemoryError as error:
        raise UnreadableError("too large for the memory") from error
    except Exception as error:  # decoders raise whatever they like on damaged files
        text = " ".join(str(error).split())[:160]
        if len(text) < 10 or isinstance(error, (KeyError, IndexError, struct.error)):
            text = f"damaged ({type(error).__name__} {text})"
        raise UnreadableError(text) from error


def _open(data: bytes, least: int | None) -> Opened:
    if not data.strip(b"\0"):
        raise UnreadableError("the file is empty" if not data else "the file holds only zeros")
    if data[:3] == b"\xff\xd8\xff":
        return _open_jpeg(data, least)
    if data[:6] == b"\x93NUMPY":
        return _open_npy(data)
    if is_tiff(data):
        try:
            return open_tiff(data)
        except NotNativeError as error:
            return open_pillow(data, deep=error.deep)
    return open_pillow(data)


def _open_jpeg(data: bytes, least: int | None) -> Opened:
    try:
        header: Any = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError:  # libjpeg-turbo's own interface knows the usual subsamplings only
        return open_pillow(data)
    height, width, colorspace, _ = header
    if colorspace not in ("Gray", "YCbCr", "RGB"):
        return open_pillow(data)
    grey = colorspace == "Gray"
    orientation = _exif_orientation(data)
    shrink = 1
    while least and shrink < 8 and min(height, width) // (2 * shrink) >= least:
        shrink *= 2

    def read() -> np.ndarray:
        arguments: dict[str, Any] = {"colorspace": "GRAY" if grey else "RGB"}
        if shrink > 1:
            arguments |= {
                "min_height": -(-height // shrink),
                "min_width": -(-width // shrink),
                "min_factor": shrink,
            }
        return orient(_decode_jpeg(data, arguments), orientation)

    if orientation > 4:
        height, width = width, height
    return Opened("JPEG", height, width, 1 if grey else 3, "uint8", read)


def _decode_jpeg(data: bytes, arguments: dict[str, Any]) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(data, **arguments)
    except ValueError as error:
        # Warnings that cost no pixels, such as stray bytes between segments, are common in
        # cameras' files; the others leave parts of the picture grey.
        harmless = ("extraneous bytes", "Unknown Adobe", "Inconsistent progression")
        if not any(text in str(error) for text in harmless):
            raise
        return simplejpeg.decode_jpeg(data, **arguments, strict=False)


def _exif_orientation(data: bytes) -> int:
    """Return the EXIF orientation of a JPEG, 1 … 8; 1 where it has none or a damaged one."""
    start = data.find(b"Exif\0\0", 0, 1 << 16)
    if start < 0:
        return 1
    tiff = data[start + 6 : start + 6 + (1 << 16)]
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, offset)
        for i in range(count):
            entry = struct.unpack_from(f"{order}HHIH", tiff, offset + 2 + 12 * i)
            if entry[0] == 0x0112:
                return entry[3] if 1 <= entry[3] <= 8 else 1
    except struct.error:
        pass
    return 1


def _open_npy(data: bytes) -> Opened:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise UnreadableError(f"a .npy file of version {version}; 1.0 and 2.0 can be read")
    shape, fortran, dtype = readers[version](stream)
    if dtype.hasobject or dtype.kind not in "buif":
        raise UnreadableError(f"a .npy array of {dtype}; numbers are needed")
    if len(shape) not in (2, 3):
        raise UnreadableError(f"a .npy array of shape {shape}; (h, w) or (h, w, C) is needed")
    offset = stream.tell()
    need = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if need > len(data) - offset:
        raise UnreadableError(f"truncated: {len(data) - offset} of {need} bytes")
    # Channels come first in arrays that were saved for torch.
    first = len(shape) == 3 and shape[0] <= 32 < shape[2]
    height, width = shape[1:] if first else shape[:2]
    channels = 1 if len(shape) == 2 else shape[0 if first else 2]

    def read() -> np.ndarray:
        flat = np.frombuffer(data, dtype, int(np.prod(shape)), offset)
        array = flat.reshape(shape, order="F" if fortran else "C")
        array = array[..., None] if array.ndim == 2 else array
        return array.transpose(1, 2, 0) if first else array

    return Opened("NPY", height, width, channels, kept(dtype), read)


def _finish(array: np.ndarray) -> np.ndarray:
    """Bring the values to one of the three types, and fill what is not finite."""
    dtype = kept(array.dtype)
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    with np.errstate(over="ignore"):
        array = array.astype(dtype, copy=False)
    if dtype != "float32":
        return array
    finite = np.isfinite(array)
    if finite.all():
        return array
    if not finite.any():
        raise UnreadableError("no value is finite")
    count = np.maximum(finite.sum((0, 1)), 1)
    mean = np.where(finite, array, 0).sum((0, 1), dtype=np.float64) / count
    return np.where(finite, array, mean.astype(np.float32))


def _width(dtype: str) -> int:
    return np.dtype(dtype).itemsize
