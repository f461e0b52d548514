"""From an image as it is to the bytes that a shard holds."""

import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
import tifffile
import torch
from PIL import Image
from torch.nn import functional as F

from simmim.config.data import ShardFormat
from simmim.data.formats.decode import inspect, read_pixels
from simmim.data.formats.endings import EXTENSIONS
from simmim.data.formats.image_file import ImageFile
from simmim.data.formats.jpeg import FRAMES, segments_of

FINE = 95
"""JPEG quality above which colours keep every pixel; up to it, every other in both directions."""
SEQUENTIAL = (0xC0, 0xC1)
"""Frames of baseline and extended sequential JPEG."""
ENDINGS = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}
"""Endings of formats whose name is not in lower case their ending."""


@dataclass(frozen=True)
class Encoded:
    """An image of a shard.

    Attributes:
        data: Content of the file.
        ending: What its name ends in, without the dot.
        height: Rows of the image that it was made of.
        width: Columns of that image.
        shape: Rows, columns and channels of what ``data`` decodes to.
        left_out: Whether the file holds more than the picture in ``data``.
    """

    data: bytes
    ending: str
    height: int
    width: int
    shape: tuple[int, int, int]
    left_out: bool = False


def encode(data: bytes, size: int | None, form: ShardFormat, quality: int) -> Encoded:
    """Decode, resize and encode one image.

    Args:
        data: The file.
        size: Length in pixels that the shorter side is brought to where it is longer; None: as is.
        form: `auto`: JPEG for 8-bit images of one or three channels, else lossless; `lossless`;
            `keep`: the file as it is.
        quality: Of JPEG, 1 to 100.

    Raises:
        UnreadableError: It is no whole image.
    """
    opened = inspect(data)
    height, width = opened.height, opened.width
    small = size is None or min(height, width) <= size
    stays = form == "auto" and small and _may_stay(data, opened)
    if form == "keep" or stays or opened.nodata is not None:  # which would mix with its neighbours
        array = read_pixels(opened)  # is it whole?
        return Encoded(data, _ending(opened.format), height, width, _shape(array))
    array = read_pixels(opened, 1 if size is None else _shrink(opened, size))
    if size is not None:
        array = resize(array, shorter(height, width, size))
    content, ending = write(array, form, quality)
    return Encoded(content, ending, height, width, _shape(array), left_out=bool(opened.left_out))


def shorter(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width with the shorter side at ``size``, or as they are where that is smaller."""
    short = min(height, width)
    if short <= size:
        return height, width
    return max(1, round(height * size / short)), max(1, round(width * size / short))


def resize(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (h, w, C) of any type that is decoded to, antialiased; integers are rounded."""
    if array.shape[:2] == size:
        return array
    deep = array.dtype == np.uint16
    image = torch.from_numpy(np.array(array, np.float32 if deep else array.dtype, order="C"))
    image = image.permute(2, 0, 1)[None]
    image = F.interpolate(image, size=size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    out = image.contiguous().numpy()
    return np.rint(out).clip(0, 65535).astype(np.uint16) if deep else out


def write(array: np.ndarray, form: ShardFormat, quality: int) -> tuple[bytes, str]:
    """Encode (h, w, C) without ever reducing its depth: the file, and its ending.

    Bytes of one or three channels become JPEG (`auto`) or PNG, 16-bit grey PNG, all else TIFF,
    whose deflate any reader knows; Pillow would cut a 16-bit colour PNG to 8 bits.
    """
    channels = array.shape[2]
    plain = channels in (1, 3) and max(array.shape[:2]) <= 65_500
    if array.dtype == np.uint8 and plain and form == "auto":
        grey = channels == 1
        return simplejpeg.encode_jpeg(
            np.ascontiguousarray(array),
            quality=quality,
            colorspace="GRAY" if grey else "RGB",
            colorsubsampling="Gray" if grey else "444" if quality > FINE else "420",
        ), "jpg"
    stream = io.BytesIO()
    if plain and (array.dtype == np.uint8 or (array.dtype == np.uint16 and channels == 1)):
        flat = np.ascontiguousarray(array[..., 0] if channels == 1 else array)
        Image.fromarray(flat).save(stream, "PNG")
        return stream.getvalue(), "png"
    colour = channels == 3
    tifffile.imwrite(
        stream,
        array if channels > 1 else array[..., 0],
        photometric="rgb" if colour else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=None if channels in (1, 3) else (0,) * (channels - 1),
        compression="zlib",
        metadata=None,
    )
    return stream.getvalue(), "tif"


def _shrink(opened: ImageFile, size: int) -> int:
    """The largest divisor of the decoder that leaves the shorter side at least ``size`` long."""
    short = min(opened.height, opened.width)
    return max(shrink for shrink in opened.shrinks if shrink == 1 or short // shrink >= size)


def _may_stay(data: bytes, opened: ImageFile) -> bool:
    """Tell whether a file is a plain JPEG: sequential, upright, and with nothing about its place.

    To encode it again would cost quality, and to keep others would cost time at each reading.
    """
    if opened.format != "JPEG" or len(opened.shrinks) == 1 or opened.turned:
        return False
    frame = next((each.kind for each in segments_of(data) if each.kind in FRAMES), None)
    return b"Exif\0\0" not in data[: 1 << 16] and frame in SEQUENTIAL


def _ending(name: str) -> str:
    """Return an ending that is found again; those who read a file go by its content."""
    ending = ENDINGS.get(name, name.lower())
    return ending if f".{ending}" in EXTENSIONS else "png"


def _shape(array: np.ndarray) -> tuple[int, int, int]:
    height, width, channels = array.shape
    return height, width, channels
