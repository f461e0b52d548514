"""HEIC and deep AVIF, which Pillow cannot read or would cut to 8 bits."""

import io
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from simmim.data.formats.image_file import (
    ImageFile,
    UnreadableError,
    composite,
    orient,
    orientation_of,
)
from simmim.data.formats.pillow import frames_left_out

HEVC = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"})
AVIF = frozenset({b"avif", b"avis"})
HEADER = 1 << 16
"""Bytes in which the boxes that tell of the pixels are looked for."""


def is_heif(data: bytes) -> bool:
    """Tell HEIC, and AVIF of more than 8 bits, from other files."""
    brands = _brands(data)
    if brands & AVIF:
        return _avif_depth(data) > 8
    return bool(brands & (HEVC | {b"mif1", b"msf1"}))


def open_heif(data: bytes) -> ImageFile:
    """Read the header of the primary image.

    10 and 12 bits are spread over 16: 1023 becomes 65535, and nothing is lost.

    Raises:
        UnreadableError: The package that reads it is not installed.
        Exception: Whatever the package raises on a damaged file.
    """
    return _open_avif(data) if _brands(data) & AVIF else _open_heic(data)


def _open_heic(data: bytes) -> ImageFile:
    if find_spec("pi_heif") is None:
        raise UnreadableError("a HEIC image: pip install 'simmim[heic]'")
    import pi_heif

    file: Any = pi_heif.open_heif(
        io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False, bgr_mode=False
    )
    image: Any = file[file.primary_index]
    width, height = image.size
    mode, bits = str(image.mode), int(image.info.get("bit_depth", 8))
    grey, alpha = mode[0] in "LI", "A" in mode or "a" in mode

    def read(_shrink: int) -> np.ndarray:
        # Rows may be padded; a copy, since the memory goes with the image.
        stored = np.array(np.asarray(image)[:, :width])
        array = _spread(stored, bits) if stored.dtype == np.uint16 else stored
        array = array[..., None] if array.ndim == 2 else array
        return composite(array, premultiplied="a" in mode) if alpha else array

    # libheif turns and mirrors the picture itself.
    dtype = "uint16" if bits > 8 else "uint8"
    left_out = "several pictures: only the main one is used" if len(file) > 1 else ""
    return ImageFile("HEIC", height, width, 1 if grey else 3, dtype, read, left_out=left_out)


def _open_avif(data: bytes) -> ImageFile:
    bits = _avif_depth(data)
    if find_spec("imagecodecs") is None:
        raise UnreadableError(f"a {bits}-bit AVIF image: pip install 'simmim[tiff]'")
    image = Image.open(io.BytesIO(data), formats=["AVIF"])
    width, height = image.size
    orientation = orientation_of(image)
    if orientation > 4:
        height, width = width, height

    def read(_shrink: int) -> np.ndarray:
        import imagecodecs

        array: Any = imagecodecs.avif_decode(data, index=0)
        array = _spread(array, bits) if array.dtype == np.uint16 else array
        array = array[..., None] if array.ndim == 2 else array
        array = composite(array) if array.shape[2] in (2, 4) else array
        if array.shape[2] == 1:
            array = np.repeat(array, 3, axis=2)
        return orient(array, orientation)

    return ImageFile(
        *("AVIF", height, width, 3, "uint16", read),
        turned=orientation > 1,
        left_out=frames_left_out(image),
    )


def _spread(array: np.ndarray, bits: int) -> np.ndarray:
    """Scale values of ``bits`` bits to all 16, one to one."""
    high = 2**bits - 1
    return ((array.astype(np.uint32) * 65535 + high // 2) // high).astype(np.uint16)


def _brands(data: bytes) -> frozenset[bytes]:
    """Return the brands in the first box of an ISO base media file."""
    if data[4:8] != b"ftyp":
        return frozenset()
    size = min(int.from_bytes(data[:4], "big"), 256)
    return frozenset(data[at : at + 4] for at in (8, *range(16, size, 4)))


def _avif_depth(data: bytes) -> int:
    """Return the greatest depth that any AV1 configuration in the header tells."""
    depth, at = 8, data.find(b"av1C", 0, HEADER)
    while at >= 0:
        flags = data[at + 6] if at + 6 < len(data) else 0
        depth = max(depth, (12 if flags & 0x20 else 10) if flags & 0x40 else 8)
        at = data.find(b"av1C", at + 4, HEADER)
    return depth
