"""What every decoder gives and needs: an opened image, its errors, its orientation, its alpha."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from simmim.errors import DataError

Region = tuple[int, int, int, int]
"""Top, left, height and width in pixels of the upright image."""


class UnreadableError(DataError):
    """An image that cannot be decoded or used, with a short ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class ImageFile:
    """An image whose header was read.

    Attributes:
        format: Name of the file format, such as JPEG.
        height: Rows of the upright image.
        width: Columns of the upright image.
        channels: Channels after palettes are expanded and alpha is composited.
        dtype: Type of the decoded values: uint8, uint16 or float32.
        read: Decodes the pixels at 1/shrink of each side, rounded up, (h, w, C); shrink is one of
            ``shrinks``; may raise anything.
        shrinks: By how much the sides can be divided while decoding, from 1 on.
        window: Decodes a part without the whole, where the format allows; may raise anything.
        nodata: Value of an integer image that the file says to mean that nothing was measured;
            in float images such values are decoded as NaN.
        part: Decodes a part of ``read(shrink)``, in pixels of the smaller picture, sooner than the
            whole; may raise anything.
        alpha: Whether there is one more channel, until it is composited.
        turned: Whether the stored image is turned or mirrored to be upright, as the file says.
        left_out: What the file has beside the picture that is read, in words; empty: nothing.
    """

    format: str
    height: int
    width: int
    channels: int
    dtype: str
    read: Callable[[int], np.ndarray]
    shrinks: tuple[int, ...] = (1,)
    window: Callable[[Region], np.ndarray] | None = None
    nodata: float | None = None
    part: Callable[[int, Region], np.ndarray] | None = None
    alpha: bool = False
    turned: bool = False
    left_out: str = ""


def channels_first(shape: tuple[int, ...]) -> bool:
    """Tell (C, h, w), as arrays for torch are, from (h, w, C)."""
    if len(shape) != 3:
        return False
    usual = (1, 3, 4)
    return (shape[0] in usual and shape[2] not in usual) or shape[0] <= 32 < shape[2]


def from_array(array: np.ndarray) -> ImageFile:
    """Give decoded pixels (h, w, C) as if they were read from a file."""
    height, width, channels = array.shape
    return ImageFile("array", height, width, channels, kept(array.dtype), lambda _: array)


def orientation_in(info: dict[str, Any]) -> int:
    """Return the EXIF orientation, 1 … 8, that Pillow finds in EXIF, or else in XMP.

    Args:
        info: As Pillow's: ``exif`` and ``xmp`` in bytes, where the file has them.
    """
    image: Any = Image.Image()
    image.info = info
    return orientation_of(image)


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image of Pillow's, 1 … 8; 1 where it is damaged."""
    try:
        # Not the method of PNG, which would decode the pixels to look behind them.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return int(orientation) if orientation in range(1, 9) else 1


UPSIDE_DOWN, MIRRORED, LYING = (3, 4, 7, 8), (2, 3, 6, 7), (5, 6, 7, 8)
"""Numbers of EXIF by what must be done: rows reversed, columns reversed, both exchanged before."""


def orient(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror (h, w, C) upright; the numbers are those of EXIF."""
    array = array.transpose(1, 0, 2) if orientation in LYING else array
    array = array[::-1] if orientation in UPSIDE_DOWN else array
    return array[:, ::-1] if orientation in MIRRORED else array


def stored_box(box: Region, size: tuple[int, int], orientation: int) -> Region:
    """Find the part of the stored image that ``orient`` turns into a part of the upright one.

    ``size`` is height and width of the upright image.
    """
    top, left, height, width = box
    top = size[0] - top - height if orientation in UPSIDE_DOWN else top
    left = size[1] - left - width if orientation in MIRRORED else left
    return (left, top, width, height) if orientation in LYING else (top, left, height, width)


def composite(array: np.ndarray, *, premultiplied: bool = False) -> np.ndarray:
    """Lay (h, w, C + 1) with alpha last over white: (h, w, C), of the same type."""
    out = np.empty((*array.shape[:2], array.shape[2] - 1), array.dtype)
    whole = array.dtype.kind != "f"
    white = np.iinfo(array.dtype).max if whole else 1
    wide = np.uint64 if whole else np.float32
    rows = max(1, 2**20 // array.shape[1])  # in strips, for the memory
    for start in range(0, len(array), rows):
        strip = array[start : start + rows].astype(wide)
        values, alpha = strip[..., :-1], strip[..., -1:]
        if premultiplied:
            laid = np.minimum(values + (wide(white) - alpha), wide(white))
        else:
            laid = values * alpha + (wide(white) - alpha) * wide(white)
            laid = (laid + wide(white // 2)) // wide(white) if whole else laid
        out[start : start + rows] = laid
    return out


def kept(dtype: np.dtype) -> str:
    """Name the type in which values of ``dtype`` are kept."""
    if dtype.kind in "bu" and dtype.itemsize == 1:
        return "uint8"
    return "uint16" if dtype.kind == "u" and dtype.itemsize == 2 else "float32"
