"""TIFF by tifffile: any depth and any number of channels, from files that may be hostile."""

import importlib.util
import io
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import tifffile

from simmim.data.opened import Box, Opened, composite, kept, orient, stored_box
from simmim.data.strips import Fetch, Strips

# Without a handler, Python prints tifffile's complaints about each damaged file to the terminal.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

PLAIN, LZW, JPEG, DEFLATE, PACKBITS = 1, 5, 7, (8, 32946), 32773
MINISWHITE, MINISBLACK, RGB, YCBCR = 0, 1, 2, 6
ORIENTATION, NODATA = 274, 42113
NODATA_ROUNDED = 1e-5
"""By what share of it a value may differ from the one in the tag, which may have six digits."""
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
    """Read the header of the first page of a file's content.

    An ImageJ or OME file whose pages are said to be channels gives them all.

    Raises:
        NotNativeError: A kind that is left to Pillow.
        Exception: Whatever tifffile raises on a damaged file.
    """
    view = memoryview(data)
    file = tifffile.TiffFile(io.BytesIO(data))
    layout = _layout(file, len(data), lambda at, count: bytes(view[at : at + count]))
    return layout.opened(
        layout.decoded,
        # What is not finite is filled by a mean over the whole image, so floats are read whole.
        windows=kept(layout.page.dtype) != "float32",
    )


def open_tiff_file(stream: IO[bytes], size: int, fetch: Fetch) -> Opened:
    """Read the header of a file of ``size`` bytes that stays on the disk.

    Args:
        stream: The file; it may be closed afterwards.
        size: Its bytes.
        fetch: Returns so many bytes from a place in it, whenever pixels are needed.

    Raises:
        NotNativeError: A kind that cannot be read by parts.
        Exception: Whatever tifffile raises on a damaged file.
    """
    layout = _layout(tifffile.TiffFile(stream), size, fetch)
    if layout.source is not layout.page:
        raise NotNativeError(None)  # channels in several pages
    whole = (0, 0, layout.page.imagelength, layout.page.imagewidth)
    return layout.opened(lambda: layout.strips.window(whole), windows=True)


def _layout(file: Any, size: int, fetch: Fetch) -> "_Layout":
    page: Any = file.pages.first
    samples = page.samplesperpixel
    deep = None
    if (page.bitspersample > 8 and samples > 1) or samples not in (1, 3, 4):
        deep = f"{samples} channels of {page.bitspersample} bits, {page.compression.name} coding"
    if not _native(page) or page.axes not in ("YX", "YXS", "SYX"):
        raise NotNativeError(deep)
    _check_strips(page, size, fetch)
    nodata = _nodata(page)
    if nodata is not None:
        page.nodata = nodata  # which tifffile takes for 0 where the tag's text is rounded
    source: Any = page
    if (file.is_imagej or file.is_ome) and file.series[0].axes == "CYX" and samples == 1:
        source = file.series[0]
    return _Layout(page, source, Strips(page, fetch, INFLATED))


@dataclass(frozen=True)
class _Layout:
    """A page whose samples tifffile decodes; ``source`` is it, or the series of its channels."""

    page: Any
    source: Any
    strips: Strips

    def decoded(self) -> np.ndarray:
        """Return all samples (h, w, S) as they are stored."""
        array = self.source.asarray()
        if array.ndim == 2:
            return array[..., None]
        return array.transpose(1, 2, 0) if self.source.axes in ("SYX", "CYX") else array

    def opened(self, whole: Callable[[], np.ndarray], *, windows: bool) -> Opened:
        page = self.page
        alpha = _alpha(page)
        samples = page.samplesperpixel if self.source is page else self.source.shape[0]
        orientation = page.tags.valueof(ORIENTATION, 1)
        orientation = orientation if orientation in range(1, 9) else 1
        size = (page.imagelength, page.imagewidth)
        size = size[::-1] if orientation > 4 else size
        nodata = _nodata(page)
        dtype = kept(page.dtype)

        def finish(array: np.ndarray) -> np.ndarray:
            if page.photometric == MINISWHITE and array.dtype.kind == "u":
                array = array.dtype.type(2**page.bitspersample - 1) - array
            if alpha:
                array = composite(array, premultiplied=alpha == "premultiplied")
            if nodata is not None and dtype == "float32":
                array = np.where(_means(array, nodata), np.nan, array)
            return orient(array, orientation)

        def window(box: Box) -> np.ndarray:
            return finish(self.strips.window(stored_box(box, size, orientation)))

        return Opened(
            *("TIFF", size[0], size[1], samples - (alpha is not None), dtype),
            lambda _: finish(whole()),
            window=window if windows and self.source is page else None,
            nodata=nodata,
            alpha=alpha is not None,
        )


def _native(page: Any) -> bool:
    """Tell whether tifffile decodes the page by itself, or with imagecodecs where installed."""
    if page.dtype is None or page.dtype.kind not in "uif":
        return False
    codecs = importlib.util.find_spec("imagecodecs") is not None
    if page.photometric == YCBCR and page.compression == JPEG:
        return codecs and page.bitspersample == 8
    if page.photometric not in (MINISWHITE, MINISBLACK, RGB):
        return False
    if page.bitspersample % 8 and not (codecs and page.bitspersample > 8):
        return False
    if page.compression in (PLAIN, PACKBITS, *DEFLATE) and page.predictor in (1, 2):
        return codecs or page.predictor == 1 or page.dtype.kind != "f"
    return codecs and page.compression in tifffile.TIFF.DECOMPRESSORS


def _alpha(page: Any) -> str | None:
    """Say how the last sample is alpha, if it is; None for further channels of any other kind."""
    colors = 3 if page.photometric == RGB else 1
    if page.samplesperpixel != colors + 1 or len(page.extrasamples) != 1:
        return None
    return {1: "premultiplied", 2: "straight"}.get(page.extrasamples[0])


def _nodata(page: Any) -> float | None:
    """Return the value that GDAL's tag says to mean no data, where the page can hold it."""
    try:
        value = float(str(page.tags.valueof(NODATA)).strip().rstrip("\0").replace(",", "."))
        if page.dtype.kind != "f":
            limits = np.iinfo(page.dtype)
            return value if limits.min <= value <= limits.max else None
    except ValueError:
        return None
    return value


def _means(array: np.ndarray, nodata: float) -> np.ndarray:
    """Tell where the value is that means no data; as text in the tag, it may be rounded."""
    if array.dtype.kind != "f":
        return array == array.dtype.type(nodata)
    with np.errstate(over="ignore", invalid="ignore"):
        value = array.dtype.type(nodata)
        return np.abs(array - value) <= NODATA_ROUNDED * np.abs(value)


def _check_strips(page: Any, size: int, fetch: Fetch) -> None:
    """Refuse strips or tiles that reach past the end, or that inflate beyond all measure."""
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if offset + count > size:
            raise ValueError(f"truncated: {size} of at least {offset + count} bytes")
        # Deflate packs 1032 to 1 at best, so nearly all strips need no look.
        if page.compression in DEFLATE and count * 1032 > INFLATED:
            inflater = zlib.decompressobj()
            if len(inflater.decompress(fetch(offset, count), INFLATED)) == INFLATED:
                raise ValueError(f"a strip inflates to more than {INFLATED >> 20} MB")
