"""Label maps: images whose values are class numbers, read as they are stored."""

import io
from typing import Any

import numpy as np
from PIL import Image

from simmim.data.formats.decode import guard, inspect, read_pixels
from simmim.data.formats.image_file import UnreadableError

STORED = ("PNG", "GIF", "BMP")
"""Formats whose palettes and transparency say how a map looks, and not what its values are."""
SINGLE = ("1", "L", "LA", "P", "PA", "I", "I;16", "I;16B", "I;16L")
"""Modes of Pillow with one value for each pixel."""


def read_map(data: bytes) -> np.ndarray:
    """Return the values of a label map (h, w), int32; those of a palette are places in it.

    One in colour, of 8 bits, has 2²⁴ + 65536 red + 256 green + blue at each pixel.

    Raises:
        UnreadableError: It cannot be decoded, or its values are not whole or not exact.
    """
    opened = inspect(data)
    if opened.format == "JPEG":
        raise UnreadableError("in JPEG, which changes values; save it as PNG")
    values = guard(lambda: _stored(data)) if opened.format in STORED else None
    values = read_pixels(opened) if values is None else values
    if not (values == values[..., :1]).all():
        if values.shape[2] != 3 or values.dtype != np.uint8:
            raise UnreadableError("several numbers for each pixel, which are no colours of 8 bits")
        red, green, blue = (values[..., k].astype(np.int32) for k in range(3))
        return (1 << 24) + (red << 16) + (green << 8) + blue
    whole = values[..., 0].astype(np.int32)
    if values.dtype.kind == "f" and not (whole == values[..., 0]).all():
        raise UnreadableError("fractions; whole numbers are needed")
    return whole


def _stored(data: bytes) -> np.ndarray | None:
    """Return what Pillow finds in the file (h, w, C), without alpha; None where it is deeper."""
    image: Any = Image.open(io.BytesIO(data), formats=STORED)
    if image.mode not in (*SINGLE, "RGB", "RGBA"):
        return None
    values = np.asarray(image)
    values = values if values.ndim == 3 else values[..., None]
    return values[..., : 1 if image.mode in SINGLE else 3]
