"""TIFF by tifffile: any depth and any number of channels, from files that may be hostile."""

import importlib.util
import io
import logging
import zlib
from typing import Any

import numpy as np
import tifffile

from simmim.data.opened import Opened, composite, kept, orient

# Without a handler, Python prints tifffile's complaints about each damaged file to the terminal.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

PLAIN, LZW, DEFLATE, PACKBITS = 1, 5, (8, 32946), 32773
MINISWHITE, MINISBLACK, RGB = 0, 1, 2
INFLATED = 256 * 2**20
"""Bytes that a strip or tile may inflate to, however few its image needs."""


class NotNativeError(Exception):
    """A TIFF for Pillow; ``deep`` says what Pillow would reduce to 8 bits, or is None."""

    def __init__(self, deep: str | None) -> None:
        super().__init__(deep)
        self.deep = deep


def is_tiff(data: bytes) -> bool:
    """Tell by the first four bytes, for TIFF and BigTIFF."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_tiff(data: bytes) -> Opened:
    """Read the header of the first page.

    An ImageJ or OME file whose pages are said to be channels gives them all.

    Raises:
        NotNativeError: A kind that is left to Pillow.
        Exception: Whatever tifffile raises on a damaged file.
    """
    file = tifffile.TiffFile(io.BytesIO(data))
    page: Any = file.pages.first
    samples = page.samplesperpixel
    deep = None
    if (page.bitspersample > 8 and samples > 1) or samples not in (1, 3, 4):
        deep = f"{samples} channels of {page.bitspersample} bits, {page.compression.name} coding"
    if not _native(page) or page.axes not in ("YX", "YXS", "SYX"):
        raise NotNativeError(deep)
    _check_strips(page, data)

    height, width = page.imagelength, page.imagewidth
    alpha = _alpha(page)
    source: Any = page
    if (file.is_imagej or file.is_ome) and file.series[0].axes == "CYX" and samples == 1:
        source = file.series[0]
        samples = source.shape[0]
    orientation = page.tags.valueof(274, 1)
    orientation = orientation if orientation in range(1, 9) else 1

    def read() -> np.ndarray:
        array = source.asarray()
        if array.ndim == 2:
            array = array[..., None]
        elif source.axes in ("SYX", "CYX"):
            array = array.transpose(1, 2, 0)
        if page.photometric == MINISWHITE and array.dtype.kind == "u":
            array = np.iinfo(array.dtype).max - array
        if alpha:
            array = composite(array, premultiplied=alpha == "premultiplied")
        return orient(array, orientation)

    if orientation > 4:
        height, width = width, height
    return Opened("TIFF", height, width, samples - (alpha is not None), kept(page.dtype), read)


def _native(page: Any) -> bool:
    """Tell whether tifffile decodes the page by itself, or with imagecodecs where installed."""
    if page.photometric not in (MINISWHITE, MINISBLACK, RGB) or page.dtype is None:
        return False
    if page.bitspersample % 8 or page.dtype.kind not in "uif":
        return False
    if page.compression == LZW or page.predictor not in (1, 2):
        return importlib.util.find_spec("imagecodecs") is not None
    return page.compression in (PLAIN, PACKBITS, *DEFLATE)


def _alpha(page: Any) -> str | None:
    """Say how the last sample is alpha, if it is; None for further channels of any other kind."""
    colors = 3 if page.photometric == RGB else 1
    if page.samplesperpixel != colors + 1 or len(page.extrasamples) != 1:
        return None
    return {1: "premultiplied", 2: "straight"}.get(page.extrasamples[0])


def _check_strips(page: Any, data: bytes) -> None:
    """Refuse strips or tiles that reach past the end, or that inflate beyond all measure."""
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if offset + count > len(data):
            raise ValueError(f"truncated: {len(data)} of at least {offset + count} bytes")
        # Deflate packs 1032 to 1 at best, so nearly all strips need no look.
        if page.compression in DEFLATE and count * 1032 > INFLATED:
            inflater = zlib.decompressobj()
            if len(inflater.decompress(data[offset : offset + count], INFLATED)) == INFLATED:
                raise ValueError(f"a strip inflates to more than {INFLATED >> 20} MB")
