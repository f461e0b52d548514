"""Every way in which a file tells how it is turned gives what Pillow makes of it."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
import tifffile
from jpegs import PICTURE, XMP, app, exif, jpeg, put, segments, xmp
from PIL import Image, ImageOps

from simmim.data.formats.decode import inspect, read_pixels, read_window

FORMATS = {"PNG": {}, "WEBP": {"lossless": True}, "AVIF": {}, "TIFF": {}, "MPO": {}, "JPEG": {}}
BOX = (5, 3, 20, 17)


def as_pillow(data: bytes) -> bool:
    """Compare a file with Pillow's upright image; tell whether it was turned."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    image = image.convert("RGB") if image.mode in ("CMYK", "P") else image
    right = np.asarray(image).astype(int)
    opened = inspect(data)
    array = read_pixels(opened)
    assert array.shape[:2] == right.shape[:2] == (opened.height, opened.width)
    assert np.abs(array - right.reshape(array.shape)).max() <= 3
    top, left, height, width = BOX
    part = array[top : top + height, left : left + width]
    assert np.array_equal(read_window(opened, BOX), part)
    return opened.turned


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_number_may_be_of_any_type(mode: str, order: str):
    plain = jpeg(mode)
    for kind, orientation in itertools.product((1, 3, 4, 5, 6, 8, 9), (0, 3, 6, 9)):
        turned = as_pillow(put(plain, 2, app(1, exif(orientation, order, kind))))
        assert turned == (orientation in (3, 6) and kind != 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_xmp_counts_where_exif_says_nothing(mode: str):
    plain = jpeg(mode)
    for orientation in range(10):
        for element in (False, True):
            data = put(plain, 2, app(1, XMP + xmp(orientation, element=element)))
            assert as_pillow(data) == (2 <= orientation <= 8)
    other = exif(6, tag=0x0113)
    assert as_pillow(put(plain, 2, app(1, other) + app(1, XMP + xmp(8))))
    assert not as_pillow(put(plain, 2, app(1, XMP + xmp(6)) + app(1, exif(1))))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_several_segments_and_odd_ones():
    plain = jpeg()
    last = segments(plain)[-1][0]
    for extra in (
        app(1, exif(6)) + app(1, exif(3)),
        app(1, exif(6)[:20]) + app(1, exif(6)[14:]),  # in two parts
        app(1, XMP + xmp(6)) + app(1, XMP + xmp(3)),
        app(1, b"Exif\0\0" + exif(6)),
        app(1, exif(8)) + b"\xff\xff\0\0",
        app(2, exif(6)),
    ):
        for at in (2, last):
            as_pillow(put(plain, at, extra))


@pytest.mark.parametrize("kind", FORMATS)
def test_other_formats_are_turned_alike(kind: str):
    for orientation in range(1, 9):
        tags = Image.Exif()
        tags[0x0112] = orientation
        stream = io.BytesIO()
        Image.fromarray(PICTURE).save(stream, kind, exif=tags, **FORMATS[kind])
        assert as_pillow(stream.getvalue()) == (orientation > 1)
        if kind in ("WEBP", "AVIF"):
            stream = io.BytesIO()
            Image.fromarray(PICTURE).save(stream, kind, xmp=xmp(orientation), **FORMATS[kind])
            assert as_pillow(stream.getvalue()) == (orientation > 1)


def chunk(kind: bytes, content: bytes) -> bytes:
    code = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + code


PROFILE = b"\nexif\n" + b"%8d\n" % len(exif(6)) + exif(6).hex().encode() + b"\n"
CHUNKS = {
    "eXIf": chunk(b"eXIf", exif(6, ">", 4)[6:]),
    "two": chunk(b"eXIf", exif(3)[6:]) + chunk(b"eXIf", exif(8)[6:]),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)),
    "packed XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(6))),
    "profile": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(PROFILE)),
    "both": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)) + chunk(b"eXIf", exif(3)[6:]),
}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "I;16"])
def test_a_png_may_tell_it_before_or_behind_its_pixels(name: str, mode: str):
    stream = io.BytesIO()
    image = Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 200)
    image = image if mode == "I;16" else Image.fromarray(PICTURE).convert(mode)
    image.save(stream, "PNG")
    data = stream.getvalue()
    first, end = data.find(b"IDAT") - 4, data.find(b"IEND") - 4
    assert as_pillow(put(data, first, CHUNKS[name]))
    assert as_pillow(put(data, end, CHUNKS[name]))
    text = chunk(b"tEXt", b"Comment\0none of it")
    assert not as_pillow(put(put(data, end, text), first, text))
    broken = chunk(b"eXIf", b"nothing") + chunk(b"zTXt", b"Raw profile type exif\0\0nothing")
    assert not inspect(put(data, end, broken)).turned


@pytest.mark.parametrize("kind", ["plain", "deflate", "separated"])
def test_a_tiff_may_tell_it_by_any_type_or_by_xmp(kind: str):
    options = {
        "plain": {"photometric": "rgb"},
        "deflate": {"photometric": "rgb", "compression": "zlib"},
        "separated": {"photometric": "separated"},  # read by Pillow
    }[kind]
    stored = PICTURE if kind != "separated" else np.dstack([PICTURE, PICTURE[..., :1]])
    for orientation, order in itertools.product((1, 3, 6), "<>"):
        tags = [[(274, code, 1, orientation, True)] for code in "HIhi"]
        told = xmp(orientation)
        for extra in [*tags, [(700, "B", len(told), told, True)]]:
            stream = io.BytesIO()
            tifffile.imwrite(
                stream, stored, byteorder=order, extratags=extra, metadata=None, **options
            )
            assert as_pillow(stream.getvalue()) == (orientation > 1)
