"""All formats that have no decoder of their own here, by Pillow, at their full depth."""

import contextlib
import importlib.util
import io
import os
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms

from simmim.data.formats.image_file import (
    ImageFile,
    UnreadableError,
    composite,
    orient,
    orientation_of,
)

FORMATS = [
    *("PNG", "GIF", "BMP", "DIB", "WEBP", "AVIF", "JPEG", "JPEG2000", "PPM", "TIFF", "QOI", "ICO"),
    *("PCX", "SGI", "FITS", "SPIDER", "XBM", "TGA"),
]
"""What Pillow may open: no format that starts other programs (EPS) or reads other files."""

SLOW, SLOW_PIXELS = ("qoi", "ppm", "ppm_plain"), 25_000_000
"""What Pillow decodes in Python, at about a megapixel per second."""
ICON = 2048

PNG_HEAD, PNG_PIXELS = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IDAT\x35\xaf\x06\x1e"
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
PNG_KEYWORDS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
"""Where a PNG tells its orientation, beside eXIf."""

TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DEEP_PNG_MODES = {2: ("RGB;16B", "RGB;16L"), 6: ("RGBA;16B", "RGBA;16L")}


def open_pillow(data: bytes, *, deep: str | None = None, page: int = 0) -> ImageFile:
    """Open by Pillow; ``deep`` is what would be lost where Pillow would not give all of it."""
    try:
        image: Any = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise UnreadableError(_unknown(data)) from error
    if deep:
        codecs = importlib.util.find_spec("imagecodecs") is not None
        way = "convert it to plain TIFF" if codecs else "pip install 'simmim[tiff]'"
        raise UnreadableError(f"{deep}: cannot be read here without loss; {way}")
    if page:
        image.seek(page)
    name = image.format or "unknown"
    width, height = image.size
    if name == "PNG" and data[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06"):
        return _open_deep_png(image, data)
    _refuse(image, data)
    mode = image.mode
    grey = mode in ("1", "L", "LA", "La", "F", "I") or mode.startswith("I;16")
    deep_grey = mode.startswith("I;16") or (mode == "I" and name == "PPM")
    dtype = "uint16" if deep_grey else "float32" if mode in ("F", "I") else "uint8"
    orientation = _png_orientation(data) if name == "PNG" else orientation_of(image)
    # Pillow turns a TIFF itself, and tells the size of one that it turns by its own tag.
    if orientation > 4 and not (name == "TIFF" and ExifTags.Base.Orientation in image.tag_v2):
        height, width = width, height

    def read(_shrink: int) -> np.ndarray:
        array = _pixels(image, deep_grey=deep_grey)
        return array if name == "TIFF" else orient(array, orientation)

    return ImageFile(
        *(name, height, width, 1 if grey else 3, dtype, read),
        alpha=mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info,
        turned=orientation > 1,
        left_out=frames_left_out(image),
    )


def frames_left_out(image: Any) -> str:
    """Say what a file has beside its first frame; empty: nothing."""
    if image.format == "TIFF" or not getattr(image, "is_animated", False):
        return ""  # the pages of a TIFF are told apart before
    kind = "several pictures" if image.format == "MPO" else "animated"
    return f"{kind}: only the first is used"


def _open_deep_png(image: Image.Image, data: bytes) -> ImageFile:
    """Open a 16-bit PNG of several channels."""
    color = data[25]
    width, height = image.size
    orientation = _png_orientation(data)
    if orientation > 4:
        height, width = width, height
    clear = image.info.get("transparency")

    def read(_shrink: int) -> np.ndarray:
        return orient(_whitened(_deep_png(data, color), clear), orientation)

    channels = 1 if color == 4 else 3
    return ImageFile(
        *("PNG", height, width, channels, "uint16", read),
        alpha=color != 2,
        turned=orientation > 1,
        left_out=frames_left_out(image),
    )


def _whitened(array: np.ndarray, clear: Any) -> np.ndarray:
    """Lay a 16-bit PNG whose one colour ``clear`` is transparent over white."""
    if isinstance(clear, (int, tuple)):
        array[(array == np.array(clear)).all(-1)] = 65535
    return array


def _refuse(image: Any, data: bytes) -> None:
    """Refuse what Pillow would cut to 8 bits, decode for minutes, or blow up."""
    name, coding = image.format, image.tile[0] if image.tile else None
    arguments: Any = coding.args if coding else None
    deep = ""
    if name == "PPM" and image.mode == "RGB" and isinstance(arguments, tuple):
        deep = "16-bit colour PPM" if arguments[1] > 255 else ""
    elif name == "SGI" and data[3] == 2:
        deep = "16-bit SGI image"
    elif name == "JPEG2000" and image.mode != "I;16" and _depth_of_jpeg2000(data) > 8:
        deep = f"{_depth_of_jpeg2000(data)}-bit colour JPEG 2000"
    if deep:
        raise UnreadableError(f"a {deep}: convert it to PNG or TIFF")
    codec = coding.codec_name if coding else ""
    if codec in SLOW and image.width * image.height > SLOW_PIXELS:
        raise UnreadableError(
            f"too large: {name} is decoded slowly, so at most {SLOW_PIXELS // 10**6} megapixels; "
            "convert it to PNG or TIFF"
        )
    if codec == "fits_gzip":
        raise UnreadableError("a compressed FITS file: unpack it")
    if name == "ICO":  # which may hold a PNG of any size, whatever its own header says
        at = data.find(b"IHDR")
        while at >= 0:
            if max(struct.unpack_from(">II", data + bytes(12), at + 4)) > ICON:
                raise UnreadableError("too large for an icon")
            at = data.find(b"IHDR", at + 4)


def _depth_of_jpeg2000(data: bytes) -> int:
    """Return the greatest depth of a channel."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or start + 42 > len(data):
        return 8
    count = int.from_bytes(data[start + 40 : start + 42], "big")
    return max(
        [(depth & 0x7F) + 1 for depth in data[start + 42 : start + 42 + 3 * count : 3]] + [8]
    )


def _pixels(image: Image.Image, *, deep_grey: bool) -> np.ndarray:
    """Decode a Pillow image, without reducing its depth."""
    with _no_stderr() if image.format == "TIFF" else contextlib.nullcontext():
        image.load()
    mode = image.mode
    if deep_grey:
        array = _array(image).astype(np.uint16)[..., None]
        return _whitened(array, image.info.get("transparency")) if image.format == "PNG" else array
    if mode in ("F", "I"):
        return _array(image)[..., None]
    if mode == "LAB":
        profiles = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
        turned: Any = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        return _array(turned)
    transparent = "transparency" in image.info or mode in ("PA", "La", "RGBa")
    if mode in ("1", "L", "LA", "La"):
        target = "LA" if transparent or mode == "LA" else "L"
    else:
        target = "RGBA" if transparent or mode == "RGBA" else "RGB"
    array = _array(image if mode == target else image.convert(target))
    array = array[..., None] if array.ndim == 2 else array
    return composite(array) if target in ("LA", "RGBA") else array


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Silence libtiff, which writes hundreds of lines about one damaged file to descriptor 2."""
    saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    os.close(sink)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _array(image: Image.Image) -> np.ndarray:
    """Copy the pixels; in strips where large, since Pillow keeps two further copies of each."""
    width, height = image.size
    rows = max(1, 2**24 // width)
    if height <= rows:
        return np.asarray(image)
    strips = ((0, top, width, min(top + rows, height)) for top in range(0, height, rows))
    first = np.asarray(image.crop((0, 0, width, 1)))
    out = np.empty((height, *first.shape[1:]), first.dtype)
    for box in strips:
        out[box[1] : box[3]] = np.asarray(image.crop(box))
    return out


def _deep_png(data: bytes, color: int) -> np.ndarray:
    """Decode a 16-bit PNG of several channels, which Pillow would cut to 8 bits."""

    def planes(raw: str) -> np.ndarray:
        image: Any = Image.open(io.BytesIO(data), formats=["PNG"])
        image.tile = [tile._replace(args=raw) for tile in image.tile]
        return _array(image)

    if color == 4:
        both = planes("RGBA")  # grey and alpha of 16 bits are as wide as four bytes
        high, low = both[..., 0::2], both[..., 1::2]
    else:
        high, low = (planes(raw) for raw in DEEP_PNG_MODES[color])
    array = high.astype(np.uint16)
    array <<= 8
    array |= low
    return array if color == 2 else composite(array)


def _png_orientation(data: bytes) -> int:
    """Return the orientation of a PNG, which may stand behind its pixels, without decoding them."""
    told, at = [], len(PNG_HEAD)
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = data[at + 8 : at + 40]
        if kind == b"eXIf" or (kind in PNG_TEXTS and head.startswith(PNG_KEYWORDS)):
            told.append(data[at : at + 12 + size])
        at += 12 + size
    if not told:
        return 1
    head = data[: len(PNG_HEAD) + 25]  # with the sizes
    with contextlib.suppress(Exception):  # they may be damaged
        return orientation_of(Image.open(io.BytesIO(head + b"".join(told) + PNG_PIXELS)))
    return 1


def _unknown(data: bytes) -> str:
    """Say what a file is that is no image."""
    head = data[:256].lstrip()
    known = (
        (
            head.startswith(b"version https://git-lfs"),
            "a Git LFS pointer, not the image: run `git lfs pull`",
        ),
        (head[:5].lower() in (b"<html", b"<!doc"), "an HTML page, not an image"),
        (b"<svg" in data[:1024], "an SVG drawing, not pixels"),
        (head.startswith((b"\x1f\x8b", b"PK\x03\x04")), "a compressed file, not an image"),
        (data[:4] in TIFFS, "a TIFF that is damaged, or of a kind that cannot be read"),
        (
            data[4:8] == b"ftyp",
            "an AVIF, HEIC or video that is damaged, or of a kind that cannot be read",
        ),
    )
    return next((text for true, text in known if true), "not an image of a known format")
