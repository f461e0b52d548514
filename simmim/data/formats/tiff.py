"""TIFF by tifffile: any depth and any number of channels, from files that may be hostile."""

import importlib.util
import io
import logging
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import numpy as np
import tifffile

from simmim.data.formats.image_file import (
    ImageFile,
    Region,
    UnreadableError,
    composite,
    kept,
    orient,
    orientation_in,
    stored_box,
)
from simmim.data.formats.strips import Fetch, Strips

# Without a handler, Python prints tifffile's complaints about each damaged file to the terminal.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

PLAIN, LZW, JPEG, DEFLATE, PACKBITS = 1, 5, 7, (8, 32946), 32773
MINISWHITE, MINISBLACK, RGB, YCBCR = 0, 1, 2, 6
ORIENTATION, XMP, NODATA = 274, 700, 42113
NODATA_ROUNDED = 1e-5
"""By what share of it a value may differ from the one in the tag, which may have six digits."""
INFLATED = 256 * 2**20
"""Bytes that a strip or tile may inflate to, however few its image needs."""


STACKS = (
    *("shaped", "lsm", "mmstack", "ome", "imagej", "ndtiff", "fluoview", "stk", "sis", "qpi"),
    "scanimage",
)
"""Kinds of files that say what their pages are: channels, planes in depth, times."""
AXES = {"Z": "planes in Z", "T": "planes in T"}
MISFIT = "what it says of its pages does not fit them: only the first is used"
LOOKED_AT = 64
"""Pages among which one at full resolution is looked for."""
MOST_CHANNELS = 4096
MOST_PLANES = 10_000_000
OME_NUMBERS = re.compile(r'\b(Size[CZT]|First[CZT]|IFD|PlaneCount)="(\d+)"')


class NotNativeError(Exception):
    """A TIFF for Pillow.

    Attributes:
        deep: What Pillow would lose, or None.
        page: Number of the page to read.
        left_out: See ``ImageFile``.
    """

    def __init__(self, deep: str | None, page: int, left_out: str) -> None:
        super().__init__(deep)
        self.deep, self.page, self.left_out = deep, page, left_out


def is_tiff(data: bytes) -> bool:
    """Tell by the first four bytes, for TIFF and BigTIFF."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_tiff(data: bytes) -> ImageFile:
    """Read the header of the first page of a file's content.

    A file that says which of its pages are channels gives them all, of the first plane.

    Raises:
        NotNativeError: A kind that is left to Pillow.
        Exception: Whatever tifffile raises on a damaged file.
    """
    view = memoryview(data)
    stream = io.BytesIO(data)
    layout = _layout(stream, len(data), lambda at, count: bytes(view[at : at + count]))
    return layout.opened(
        layout.decoded,
        # What is not finite is filled by a mean over the whole image, so floats are read whole.
        windows=kept(layout.page.dtype) != "float32",
    )


def open_tiff_file(stream: IO[bytes], size: int, fetch: Fetch) -> ImageFile:
    """Read the header of a file of ``size`` bytes that stays on the disk.

    Args:
        stream: The file; it may be closed afterwards.
        size: Its bytes.
        fetch: Returns so many bytes from a place in it, whenever pixels are needed.

    Raises:
        NotNativeError: A kind that cannot be read by parts.
        Exception: Whatever tifffile raises on a damaged file.
    """
    layout = _layout(stream, size, fetch)
    whole = (0, 0, layout.page.imagelength, layout.page.imagewidth)
    return layout.opened(lambda: layout.window(whole), windows=True)


def _layout(stream: IO[bytes], size: int, fetch: Fetch) -> "_Layout":
    file: Any = tifffile.TiffFile(stream, _multifile=False)
    planes, left_out = _planes(file, _full_page(file))
    page = planes[0][0]
    samples = page.samplesperpixel
    deep = None
    if (page.bitspersample > 8 and samples > 1) or samples * len(planes) not in (1, 3, 4):
        deep = f"{samples * len(planes)} channels of {page.bitspersample} bits"
    elif len(planes) > 1 or not _is_main(page):
        deep = "an image outside of the first page"
    if not _native(page) or page.axes not in ("YX", "YXS", "SYX"):
        deep = deep and f"{deep}, {page.compression.name} coding"
        raise NotNativeError(deep, page.index, left_out)
    nodata = _nodata(page)
    strips = []
    for part, shift in planes:
        if (part.shape, part.dtype, part.axes) != (page.shape, page.dtype, page.axes):
            raise UnreadableError("damaged: its channels are of different sizes or types")
        _check_strips(part, shift, size, fetch)
        if nodata is not None:
            part.nodata = nodata  # which tifffile takes for 0 where the tag's text is rounded
        strips.append(Strips(part, fetch, INFLATED, shift))
    return _Layout(page, strips, left_out)


def _full_page(file: Any) -> Any:
    """Return the first page that is neither a smaller copy nor a mask, if need be of a SubIFD."""
    first = file.pages.first
    if not _is_aside(first):
        return first
    others = [*islice(file.pages, 1, LOOKED_AT), *islice(first.pages or (), LOOKED_AT)]
    return next((page for page in others if not _is_aside(page)), first)


def _is_aside(page: Any) -> bool:
    return page.is_reduced or page.is_mask


def _is_main(page: Any) -> bool:
    return len(page.treeindex) == 1


def _planes(file: Any, page: Any) -> tuple[list[tuple[Any, int]], str]:
    """Return the pages of the channels, each with how far its pixels lie behind; and what is left.

    Where a file says which axes its pages run along, all channels of the first plane are taken.
    """
    if not any(getattr(file, f"is_{kind}") for kind in STACKS):
        rest = islice(file.pages, page.index + 1, LOOKED_AT) if _is_main(page) else ()
        several = any(not _is_aside(other) for other in rest)
        return [(page, 0)], "several pages: only the first is used" if several else ""
    series, others = _series_of(file, page)
    if series is None:
        return [(page, 0)], MISFIT
    inner = len(page.shape)
    places = [0]
    for at, (axis, count) in enumerate(zip(series.axes, series.shape[:-inner], strict=False)):
        if axis != "C":
            others[AXES.get(axis, "pages")] = count
            continue
        if count * len(places) > MOST_CHANNELS:
            raise UnreadableError(f"too large: {count} channels")
        stride = math.prod(series.shape[at + 1 : -inner])
        places = [place + k * stride for place in places for k in range(count)]
    said = ", ".join(f"{count} {what}" for what, count in others.items())
    left_out = f"{said}: only the first is used" if said else ""
    if series.dataoffset is not None:  # one after the other, perhaps with no page of their own
        return [(page, place * page.nbytes) for place in places], left_out
    pages = [series[place] for place in places]
    if None in pages:
        return [(page, 0)], MISFIT
    return [(each.aspage(), 0) for each in pages], left_out


def _series_of(file: Any, page: Any) -> tuple[Any, dict[str, int]]:
    """Return the pages that belong to a page, and the number of images, where there are more.

    None where what the file says of its pages is damaged, or fits another file.
    """
    try:
        if file.is_ome and _planes_told(file.pages.first.description) > MOST_PLANES:
            return None, {}
        series = [found for found in file.series if not _is_aside(found.keyframe)]
    except Exception:
        return None, {}
    own = next((found for found in series if found.keyframe.index == page.index), None)
    if own is None or own.kind in ("generic", "uniform"):
        return None, {}
    if own.shape[-len(page.shape) :] != page.shape:
        return None, {}
    return own, {"images": len(series)} if len(series) > 1 else {}


def _planes_told(xml: str) -> int:
    """Return how many planes OME's XML speaks of; tifffile makes a list as long as that."""
    most = dict.fromkeys(("SizeC", "SizeZ", "SizeT"), 1)
    others = 0
    for name, digits in OME_NUMBERS.findall(xml):
        if name in most:
            most[name] = max(most[name], int(digits))
        others = max(others, int(digits))
    return max(math.prod(most.values()), others)


@dataclass(frozen=True)
class _Layout:
    """A page that tifffile decodes, and the strips of it, or of each of its channels."""

    page: Any
    strips: list[Strips]
    left_out: str

    def decoded(self) -> np.ndarray:
        """Return all samples (h, w, S) as they are stored."""
        page = self.page
        if len(self.strips) > 1:
            return self.window((0, 0, page.imagelength, page.imagewidth))
        array = page.asarray()
        if array.ndim == 2:
            return array[..., None]
        return array.transpose(1, 2, 0) if page.axes == "SYX" else array

    def window(self, box: Region) -> np.ndarray:
        """Return a part of the samples (h, w, S)."""
        parts = [strips.window(box) for strips in self.strips]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    def opened(self, whole: Callable[[], np.ndarray], *, windows: bool) -> ImageFile:
        page = self.page
        alpha = _alpha(page) if len(self.strips) == 1 else None
        samples = page.samplesperpixel * len(self.strips)
        orientation = _orientation(page)
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

        def window(box: Region) -> np.ndarray:
            return finish(self.window(stored_box(box, size, orientation)))

        return ImageFile(
            *("TIFF", size[0], size[1], samples - (alpha is not None), dtype),
            lambda _: finish(whole()),
            window=window if windows else None,
            nodata=nodata,
            alpha=alpha is not None,
            turned=orientation > 1,
            left_out=self.left_out,
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


def _orientation(page: Any) -> int:
    """Return how the page is turned; as Pillow does, by XMP where no tag of its own tells."""
    value = page.tags.valueof(ORIENTATION)
    if value is None:
        xmp = page.tags.valueof(XMP)
        value = orientation_in({"xmp": xmp}) if isinstance(xmp, bytes) else 1
    return value if value in range(1, 9) else 1


def _means(array: np.ndarray, nodata: float) -> np.ndarray:
    """Tell where the value is that means no data; as text in the tag, it may be rounded."""
    if array.dtype.kind != "f":
        return array == array.dtype.type(nodata)
    with np.errstate(over="ignore", invalid="ignore"):
        value = array.dtype.type(nodata)
        if np.isinf(value):  # the tag may be of doubles, as the least one, in a file of floats
            return array == value
        return np.abs(array - value) <= NODATA_ROUNDED * np.abs(value)


def _check_strips(page: Any, shift: int, size: int, fetch: Fetch) -> None:
    """Refuse strips or tiles that reach past the end, or that inflate beyond all measure."""
    for start, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        offset = start + shift
        if offset + count > size:
            raise ValueError(f"truncated: {size} of at least {offset + count} bytes")
        # Deflate packs 1032 to 1 at best, so nearly all strips need no look.
        if page.compression in DEFLATE and count * 1032 > INFLATED:
            inflater = zlib.decompressobj()
            if len(inflater.decompress(fetch(offset, count), INFLATED)) == INFLATED:
                raise ValueError(f"a strip inflates to more than {INFLATED >> 20} MB")
