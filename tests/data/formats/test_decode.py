import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from simmim.config.resolved import PixelFormat
from simmim.data.formats.decode import (
    UnreadableError,
    bring,
    decode,
    inspect,
    read_file,
    read_pixels,
)

RNG = np.random.default_rng(0)
SMOOTH = np.add.outer(np.arange(40), 2 * np.arange(60)).astype(np.uint8)
COLOR = np.stack([SMOOTH, SMOOTH[::-1], 255 - SMOOTH], -1)  # (40, 60, 3)


def saved(image: Image.Image, kind: str, **arguments: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **arguments)
    return stream.getvalue()


def tiff(array: np.ndarray, **arguments: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **arguments)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def png(
    height: int,
    width: int,
    bits: int,
    color: int,
    rows: bytes,
    extra: dict[str, bytes] | None = None,
) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunks = [
        chunk(b"IHDR", header),
        *(chunk(name.encode(), value) for name, value in (extra or {}).items()),
    ]
    chunks += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def deep_png(array: np.ndarray, **extra: bytes) -> bytes:
    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return png(height, width, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, extra)


def over_white(color: np.ndarray, alpha: np.ndarray, white: int) -> np.ndarray:
    share = alpha[..., None].astype(np.float64) / white
    return np.floor(color * share + white * (1 - share) + 0.5).astype(color.dtype)


def check(data: bytes, expected: np.ndarray, tolerance: int = 0) -> None:
    header, array = inspect(data), decode(data)
    assert (header.height, header.width, header.channels) == array.shape == expected.shape
    assert header.dtype == array.dtype == expected.dtype
    assert np.abs(array.astype(np.float64) - expected).max() <= tolerance


@pytest.mark.parametrize("channels", [1, 3])
def test_deep_pngs_are_turned_and_their_transparent_colour_is_white(channels: int):
    deep = RNG.integers(0, 2**16, (4, 6, channels), dtype=np.uint16)
    color = deep[1, 2].astype(">u2").tobytes()
    white = deep.copy()
    white[1, 2] = 65535
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    check(deep_png(deep, tRNS=color, eXIf=exif), np.rot90(white, -1))


def test_sizes_are_bounded_here_and_not_by_pillow():
    large = png(13000, 15000, 8, 0, bytes(15001) * 13000)
    assert decode(large).shape == (13000, 15000, 1)
    with pytest.raises(UnreadableError, match=r"too large: 10000×10000 pixels, 4 channels"):
        inspect(png(10000, 10000, 16, 6, b""))  # alpha counts while it is decoded


def test_a_jpeg_of_absurdly_many_scans_is_refused_at_once():
    data = saved(Image.fromarray(SMOOTH), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    sof = data.index(b"\xff\xc2")
    large = data[: sof + 5] + struct.pack(">HH", 12000, 12000) + data[sof + 9 : last]
    with pytest.raises(UnreadableError, match="scans"):
        inspect(large + data[last:-2] * 1000 + data[-2:])
    assert decode(data).shape == (*SMOOTH.shape, 1)


def test_every_kind_of_pixel_comes_out_as_it_is():
    deep = RNG.integers(0, 2**16, (40, 60, 4), dtype=np.uint16)
    real = RNG.normal(size=(40, 60)).astype(np.float32)
    alpha = SMOOTH[:, ::-1]
    grey, color = Image.fromarray(SMOOTH), Image.fromarray(COLOR)
    rgba, la = color.copy(), grey.copy()
    rgba.putalpha(Image.fromarray(alpha))
    la.putalpha(Image.fromarray(alpha))
    palette = color.quantize(16)
    clear = palette.copy()
    clear.info["transparency"] = 3
    laid = np.where((np.asarray(palette) == 3)[..., None], 255, np.asarray(palette.convert("RGB")))

    check(saved(grey, "PNG"), SMOOTH[..., None])
    check(saved(grey.convert("1"), "PNG"), np.asarray(grey.convert("1"))[..., None] * np.uint8(255))
    check(saved(rgba, "PNG"), over_white(COLOR, alpha, 255))
    check(saved(la, "PNG"), over_white(SMOOTH[..., None], alpha, 255))
    check(saved(palette, "GIF"), np.asarray(palette.convert("RGB")))
    check(saved(clear, "PNG", transparency=3), laid.astype(np.uint8))
    check(saved(color, "BMP"), COLOR)
    check(saved(color, "PPM"), COLOR)
    check(b"P3 1 1 255 1 2 3\n", np.array([[[1, 2, 3]]], np.uint8))
    check(saved(color, "WEBP", lossless=True), COLOR)
    check(saved(color, "JPEG", quality=95), COLOR, 40)
    check(saved(grey, "JPEG", quality=95), SMOOTH[..., None], 20)
    check(saved(color.convert("CMYK"), "JPEG", quality=95), COLOR, 40)
    check(deep_png(deep[..., :1]), deep[..., :1])
    check(deep_png(deep[..., :3]), deep[..., :3])
    check(deep_png(deep[..., :2]), over_white(deep[..., :1], deep[..., 1], 65535))
    check(deep_png(deep), over_white(deep[..., :3], deep[..., 3], 65535))
    check(tiff(real), real[..., None])
    check(tiff(real.astype(np.float64)), real[..., None])
    check(tiff(deep[..., 0], photometric="miniswhite"), 65535 - deep[..., :1])
    check(tiff(COLOR, compression="zlib", predictor=True), COLOR)
    check(saved(color, "TIFF", compression="tiff_lzw"), COLOR)
    check(saved(palette, "TIFF"), np.asarray(palette.convert("RGB")))
    check(tiff(deep, photometric="rgb", extrasamples=["unassalpha"]), decode(deep_png(deep)))
    five = RNG.integers(0, 2**16, (40, 60, 5), dtype=np.uint16)
    check(tiff(five, photometric="minisblack", planarconfig="contig"), five)
    planes = np.ascontiguousarray(five.transpose(2, 0, 1))
    check(tiff(planes, photometric="minisblack", planarconfig="separate"), five)
    check(tiff(planes, imagej=True, metadata={"axes": "CYX"}), five)
    check(tiff(planes, photometric="minisblack"), five[..., :1])  # pages: the first
    check(npy(five), five)
    check(npy(five.astype(np.int32)), five.astype(np.float32))
    check(npy(np.asfortranarray(real)), real[..., None])
    check(npy(np.ascontiguousarray(COLOR.transpose(2, 0, 1))), COLOR)  # channels first


def test_non_finite_values_take_the_mean_of_their_channel():
    array = np.array([[[1, 10], [np.nan, 20]], [[3, np.inf], [5, 30]]], np.float32)
    assert decode(npy(array)).tolist() == [[[1, 10], [3, 20]], [[3, 20], [5, 30]]]
    with pytest.raises(UnreadableError, match="finite"):
        decode(npy(np.full((4, 4), np.nan)))


def test_values_that_no_measurement_has_take_the_mean_that_others_do_not_spoil():
    array = RNG.normal(500, 50, (50, 50, 1))
    right = array[:, 20:].mean()
    array[:, :20] = -3.4028234663852886e38
    for kind in (np.float32, np.float64):
        filled = decode(npy(array.astype(kind)))
        assert np.allclose(filled[:, :20], right, rtol=1e-5)
        assert np.array_equal(filled[:, 20:], array[:, 20:].astype(np.float32))
    array[0, 30] = 1e29
    assert np.allclose(decode(npy(array.astype(np.float32)))[:, :20], right, rtol=1e-2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF LZW"])
def test_exif_orientation_is_applied(kind: str):
    upright = Image.new("RGB", (48, 32))
    upright.paste((255, 0, 0), (0, 0, 24, 16))
    upright.paste((0, 255, 0), (24, 0, 48, 16))
    undo = {
        **{2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4},  # the inverse Image.Transpose of each
    }
    for orientation, transpose in undo.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = upright.transpose(Image.Transpose(transpose))
        extra = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
        if kind == "TIFF LZW":  # left to Pillow, where imagecodecs is not installed
            extra = {"compression": "tiff_lzw"}
        data = saved(turned, kind.split()[0], exif=exif.tobytes(), **extra)
        assert (inspect(data).height, inspect(data).width) == (32, 48)
        difference = np.abs(decode(data).astype(int) - np.asarray(upright)).mean()
        assert difference < 6, orientation


def test_a_large_jpeg_may_come_at_a_fraction_of_its_size():
    big = Image.fromarray(COLOR).resize((1200, 800), Image.Resampling.BICUBIC)
    data = saved(big, "JPEG", quality=95)
    opened = inspect(data)
    assert read_pixels(opened, 1).shape == (800, 1200, 3)
    assert read_pixels(opened, 2).shape == (400, 600, 3)
    assert read_pixels(opened, 8).shape == (100, 150, 3)
    reduced = np.asarray(big.reduce(8)).astype(int)
    assert np.abs(read_pixels(opened, 8) - reduced).mean() < 3


def bomb() -> bytes:
    return png(60_000, 60_000, 8, 0, b"\0" * 1000)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


NOISE = Image.fromarray(RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8))

BAD = {
    "empty": (b"", "empty"),
    "zeros": (b"\0" * 5000, "zeros"),
    "text": (b"not an image, " * 100, "known format"),
    "html": (b"<!doctype html><p>404", "HTML"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "jpeg cut": (saved(Image.fromarray(COLOR), "JPEG")[:-40], "Premature"),
    "jpeg header": (saved(Image.fromarray(COLOR), "JPEG")[:400], "damaged|[Tt]runcated|Premature"),
    "png cut": (saved(Image.fromarray(COLOR), "PNG")[:-40], "truncated"),
    "png damaged": (flipped(saved(NOISE, "PNG"), 45), "stream"),
    "tiff cut": (tiff(COLOR)[:-200], "truncated"),
    "npy cut": (npy(COLOR)[:-200], "truncated"),
    "png bomb": (bomb(), "too large"),
    "jpeg bomb": (
        saved(Image.fromarray(COLOR), "JPEG").replace(
            struct.pack(">HH", 40, 60), struct.pack(">HH", 65500, 65500), 1
        ),
        "too large",
    ),
    "npy bomb": (npy(np.zeros((1, 1, 1))).replace(b"(1, 1, 1)", b"(99999,9)"), "truncated"),
    "deep ppm": (b"P6\n2 1\n1023\n" + bytes(12), "16-bit colour PPM"),
    "npy text": (npy(np.array([["a"]])), "numbers"),
    "npy objects": (npy(np.array([[1, 2], [3, 4]])).replace(b"'<i8'", b"'|O' "), "numbers"),
    "complex": (tiff(np.ones((8, 8), np.complex64)), "a TIFF that is damaged, or of a kind"),
    "one value": (npy(np.array(3.0)), "shape"),
    "no pixels": (npy(np.zeros((0, 5, 3))), "empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_with_a_reason(name: str):
    data, reason = BAD[name]
    with pytest.raises(UnreadableError, match=reason) as caught:
        decode(data)
    assert caught.value.reason == str(caught.value)
    assert 0 < len(caught.value.reason) < 200


def test_damage_at_random_is_read_or_refused_and_nothing_else():
    color, grey16 = Image.fromarray(COLOR), (SMOOTH.astype(np.uint16) * 257)[..., None]
    files = [
        *(saved(color, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP")),
        *(
            tiff(COLOR, compression="zlib"),
            tiff(grey16),
            npy(COLOR),
            deep_png(np.dstack([grey16] * 3)),
        ),
    ]
    for data in files:
        for _ in range(60):
            broken = bytearray(data)
            for _ in range(RNG.integers(1, 4)):
                broken[RNG.integers(0, min(len(data), 200))] = RNG.integers(0, 256)
            with contextlib.suppress(UnreadableError):
                assert decode(bytes(broken)).ndim == 3


def test_a_missing_file_is_unreadable(tmp_path: Path):
    with pytest.raises(UnreadableError, match="No such file"):
        read_file(tmp_path / "gone.jpg")


def pixels(channels: int, high: float, depth: str, low: float = 0) -> PixelFormat:
    one = (1.0,) * channels
    return PixelFormat(
        channels=channels,
        low=(low,) * channels,
        high=(high,) * channels,
        mean=one,
        std=one,
        depth=depth,
    )


def test_images_are_brought_to_the_channels_and_range_of_their_set():
    grey8 = np.array([[[0], [255]]], np.uint8)
    grey16 = np.array([[[0], [65535]]], np.uint16)
    real = np.array([[[0.25], [1.0]]], np.float32)
    photo, scan = pixels(3, 255, "8-bit"), pixels(1, 4095, "12-bit")
    measured = pixels(1, 1.0, "float", low=-1.0)

    assert bring(COLOR, photo) is COLOR
    assert bring(grey8, photo).tolist() == [[[0] * 3, [255] * 3]]
    assert bring(grey16, photo)[..., :1].tolist() == grey8.tolist()
    assert bring(grey8, scan).tolist() == [[[0], [4095]]]
    assert bring(grey16, scan).tolist() == [[[0], [4095]]]
    assert bring(grey8, measured).tolist() == [[[-1], [1]]]
    assert np.array_equal(bring(real, measured), real)
    luma = bring(COLOR, pixels(1, 255, "8-bit"))[..., 0]
    assert np.array_equal(luma, np.asarray(Image.fromarray(COLOR).convert("L")))
    for set_ in (photo, scan):
        with pytest.raises(UnreadableError, match="float"):
            bring(real, set_)
    with pytest.raises(UnreadableError, match="5 channels, where the data set has 3"):
        bring(np.zeros((2, 2, 5), np.uint8), photo)


def test_what_lies_far_outside_the_range_of_its_channel_is_clipped():
    one = (1.0,) * 3
    low, high = (0.0, 10.0, 1000.0), (2.0, 30.0, 3000.0)
    units = PixelFormat(channels=3, low=low, high=high, mean=one, std=one, depth="float")
    far = np.full((4, 5, 3), 1e9, np.float32)
    assert bring(far, units)[0, 0].tolist() == [3, 40, 4000]
    assert bring(-far[::2, ::2], units)[1, 2].tolist() == [-1, 0, 0]
    planar = np.ascontiguousarray(far.transpose(2, 0, 1)).transpose(1, 2, 0)
    assert bring(planar, units)[3, 4].tolist() == [3, 40, 4000]
    near = np.array([[[2.9, 0.1, 3999.0]]], np.float32)
    assert np.array_equal(bring(near, units), near)
    assert bring(near[..., :1], units)[0, 0].tolist() == pytest.approx([2.9, 2.9, 2.9])
    assert bring(far[..., :1], units)[0, 0].tolist() == [3, 40, 4000]
    assert bring(np.full((1, 1, 1), 255, np.uint8), units)[0, 0].tolist() == [2, 30, 3000]
    counts = pixels(1, 5, "8-bit")
    assert bring(np.array([[[0], [7], [8], [255]]], np.uint8), counts).tolist() == [
        [[0], [7], [7], [7]]
    ]
    deep = pixels(1, 5, "12-bit")
    assert bring(np.array([[[5], [9000]]], np.uint16), deep).tolist() == [[[5], [7.5]]]
    assert bring(np.array([[[0], [255]]], np.uint8), deep).tolist() == [[[0], [7.5]]]  # of 4095
