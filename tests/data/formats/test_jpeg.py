"""JPEG files whose pixels are whole, and whose header is not as the standard wants it."""

import io
import struct

import numpy as np
import pytest
from jpegs import app, exif, jpeg, put, segments
from PIL import Image

from simmim.data.formats.decode import UnreadableError, decode, inspect, read_pixels, read_window

MODES = pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
STRAY = {
    "one fill byte": b"\xff",
    "fill bytes": b"\xff" * 9,
    "zeros": b"\0\0\0",
    "text": b"abc",
    "a kilobyte": b"\x11" * 1000,
    "a coded 0xFF": b"\xff\0",
    "all of it": b"\x11\xff\xff\0\x22\xff\0\xff\xff",
    "a marker without a segment": b"\xff\xd0",
}


def same(data: bytes, plain: bytes) -> None:
    """Everything that was read of ``plain`` is read of ``data``: whole, smaller, by parts."""
    right, opened = inspect(plain), inspect(data)
    assert opened.shrinks == right.shrinks
    for shrink in right.shrinks:
        assert np.array_equal(read_pixels(opened, shrink), read_pixels(right, shrink))
    assert np.array_equal(read_window(opened, (7, 9, 20, 30)), read_window(right, (7, 9, 20, 30)))


@MODES
@pytest.mark.parametrize("kind", STRAY)
@pytest.mark.parametrize("progressive", [False, True])
def test_stray_bytes_between_segments_cost_nothing(mode: str, kind: str, *, progressive: bool):
    plain = jpeg(mode, progressive=progressive)
    for at, _ in segments(plain)[1:]:
        same(put(plain, at, STRAY[kind]), plain)
    turned = put(plain, 2, app(1, exif(6)))
    same(put(turned, segments(turned)[1][0], STRAY[kind]), turned)


@MODES
def test_a_short_adobe_segment_is_passed_over(mode: str):
    plain = jpeg(mode)
    start, end = segments(plain)[0]
    bare = plain[:start] + plain[end:]  # without JFIF or Adobe
    for count in range(12):
        same(put(plain, end, app(14, b"Adobe\0d\0\0\0\0\1"[:count])), plain)
        same(put(bare, 2, app(14, b"Adobe\0d\0\0\0\0\1"[:count])), bare)
    # The length may be what is wrong: then the rest of the segment is stray bytes.
    for length in (2, 6, 7, 13):
        broken = b"\xff\xee" + struct.pack(">H", length) + b"Adobe\0d\0\0\0\0\1"
        same(put(plain, end, broken), plain)


@MODES
def test_unknown_numbers_of_adobe_and_jfif_change_nothing(mode: str):
    plain = jpeg(mode)
    start, end = segments(plain)[0]
    bare = plain[:start] + plain[end:]
    for number in (2, 3, 5, 255):
        data = put(bare, 2, app(14, b"Adobe\0d\0\0\0\0" + bytes([number])))
        right = np.asarray(Image.open(io.BytesIO(data)).convert("L" if mode == "L" else "RGB"))
        assert np.abs(decode(data).astype(int) - right.reshape(48, 64, -1)).max() <= 3
    if mode != "CMYK":
        for revision in (b"\0\0", b"\2\1", b"\x09\x09"):
            same(plain.replace(b"JFIF\0\1\1", b"JFIF\0" + revision), plain)
        for count in (5, 6, 7, 13):
            same(put(bare, 2, app(0, b"JFIF\0\1\1\0\0\1\0\1\0"[:count])), bare)


def test_damage_of_the_pixels_is_still_found():
    plain = jpeg()
    data = put(plain, segments(plain)[2][0], b"abc")
    with pytest.raises(UnreadableError):
        decode(data[:-400])


def test_of_several_pictures_the_first_is_read_and_the_others_are_told():
    stream = io.BytesIO()
    images = [Image.new("RGB", (40, 30), (k * 90, 0, 50)) for k in range(2)]
    images[0].save(stream, "MPO", save_all=True, append_images=images[1:])
    opened = inspect(stream.getvalue())
    assert opened.left_out == "several pictures: only the first is used"
    assert np.abs(read_pixels(opened).astype(int) - [0, 0, 50]).max() <= 3
    assert inspect(jpeg()).left_out == ""
