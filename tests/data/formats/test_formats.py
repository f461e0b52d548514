"""Values of odd formats against what was written by hand, or by an independent reader."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, features

from simmim.data.formats.decode import (
    UnreadableError,
    decode,
    inspect,
    read_file,
    read_pixels,
    read_window,
)
from simmim.data.formats.image_file import orient, stored_box
from simmim.data.formats.large import inspect_file

HEIC = Path(__file__).parent / "heic"
RNG = np.random.default_rng(3)
DEEP = RNG.integers(0, 2**16, (60, 50, 5), dtype=np.uint16)
TWELVE = (DEEP >> 4).astype(np.uint16)
BOXES = ((0, 0, 60, 50), (7, 9, 20, 30), (59, 49, 1, 1), (15, 15, 2, 35))


def raw_tiff(
    rows: bytes, height: int, width: int, samples: int, bits: int, kind: int = 1, order: str = "<"
) -> bytes:
    """An uncompressed TIFF in one strip, by hand: kind 1 is unsigned, 2 signed, 3 float."""
    tags = [
        *((256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, 1)),
        *((273, 4, 0), (277, 3, samples), (278, 3, height), (279, 4, len(rows)), (339, 3, kind)),
    ]
    start = 8 + 2 + 12 * len(tags) + 4 + 32
    shorts = 8 + 2 + 12 * len(tags) + 4
    out = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    out += struct.pack(order + "H", len(tags))
    for tag, size, plain in tags:
        value = start if tag == 273 else plain
        count = samples if tag in (258, 339) else 1
        if count > 2:
            out += struct.pack(order + "HHII", tag, size, count, shorts + (16 if tag == 339 else 0))
        elif size == 3:
            out += struct.pack(order + "HHIHH", tag, size, count, value, value if count > 1 else 0)
        else:
            out += struct.pack(order + "HHII", tag, size, count, value)
    out += struct.pack(order + "I", 0)
    for value in (bits, kind):
        out += struct.pack(order + f"{samples}H", *[value] * samples).ljust(16, b"\0")
    return out + rows


def by_parts(data: bytes, file: Path) -> None:
    """Every way to a part must give what the whole has there."""
    file.write_bytes(data)
    whole = decode(data)
    for opened in (inspect(data), inspect_file(file)):
        assert (opened.height, opened.width, opened.channels) == whole.shape
        assert opened.dtype == whole.dtype
        assert np.array_equal(read_pixels(opened), whole)
        for top, left, height, width in BOXES:
            part = read_window(opened, (top, left, height, width))
            assert np.array_equal(part, whole[top : top + height, left : left + width])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("samples", [1, 2, 5])
def test_tiffs_written_by_hand_keep_their_values(samples: int, order: str, tmp_path: Path):
    file = tmp_path / "x.tif"
    for array in (DEEP, TWELVE, (DEEP >> 8).astype(np.uint8)):
        array = array[..., :samples]
        stored = array.astype(array.dtype.newbyteorder(order)).tobytes()
        data = raw_tiff(stored, 60, 50, samples, 8 * array.itemsize, order=order)
        assert np.array_equal(decode(data), array)
        by_parts(data, file)
    real = RNG.normal(size=(60, 50, samples)).astype(order + "f4")
    data = raw_tiff(real.tobytes(), 60, 50, samples, 32, kind=3, order=order)
    assert np.array_equal(decode(data), real)
    signed = RNG.integers(-3000, 3000, (60, 50, samples)).astype(order + "i2")
    data = raw_tiff(signed.tobytes(), 60, 50, samples, 16, kind=2, order=order)
    assert np.array_equal(decode(data), signed.astype(np.float32))


LAYOUTS = [
    {},
    {"rowsperstrip": 7},
    {"tile": (16, 32)},
    {"tile": (16, 16), "bigtiff": True},
    {"compression": "zlib", "rowsperstrip": 11},
    {"compression": "zlib", "predictor": True, "tile": (32, 16)},
    {"byteorder": ">", "compression": "zlib", "predictor": True},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_parts_of_every_layout_are_those_of_the_whole(layout: dict, planar: str, tmp_path: Path):
    stored = DEEP if planar == "contig" else np.ascontiguousarray(DEEP.transpose(2, 0, 1))
    tifffile.imwrite(
        tmp_path / "x.tif", stored, photometric="minisblack", planarconfig=planar, **layout
    )
    data = (tmp_path / "x.tif").read_bytes()
    assert np.array_equal(decode(data), DEEP)
    assert inspect_file(tmp_path / "x.tif").window is not None
    by_parts(data, tmp_path / "y.tif")


@pytest.mark.parametrize("kind", ["jpeg", "lzw", "zstd", "packbits"])
def test_codings_of_the_extra_are_read_by_parts(kind: str, tmp_path: Path):
    pytest.importorskip("imagecodecs")
    smooth = np.add.outer(np.arange(60), 2 * np.arange(50)).astype(np.uint8)
    color = np.stack([smooth, smooth[::-1], 255 - smooth], -1)
    tifffile.imwrite(tmp_path / "x.tif", color, photometric="rgb", compression=kind, tile=(16, 16))
    data = (tmp_path / "x.tif").read_bytes()
    by_parts(data, tmp_path / "y.tif")
    if kind != "jpeg":
        assert np.array_equal(decode(data), color)
    elif features.check("libtiff"):
        right = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.abs(decode(data).astype(int) - right).max() <= 3


def test_overviews_are_passed_over_and_sparse_tiles_filled(tmp_path: Path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        options = {"tile": (16, 16), "photometric": "minisblack", "planarconfig": "contig"}
        file.write(DEEP, subifds=1, **options)
        file.write(DEEP[::2, ::2].copy(), subfiletype=1, **options)
    assert np.array_equal(decode((tmp_path / "x.tif").read_bytes()), DEEP)
    assert np.array_equal(read_window(inspect_file(tmp_path / "x.tif"), BOXES[1]), DEEP[7:27, 9:39])


def test_a_tile_that_is_not_there_holds_no_data_whatever_the_tag_was_rounded_to(tmp_path: Path):
    file = tmp_path / "x.tif"
    tag = (42113, "s", 0, "-3.39999999999999996e+38", True)
    tiles = [np.full((16, 16), 7, np.float32), None, None, np.full((16, 16), 9, np.float32)]
    tifffile.imwrite(
        *(file, iter(tiles)),
        **{"shape": (32, 32), "dtype": np.float32, "tile": (16, 16), "extratags": [tag]},
        photometric="minisblack",
    )
    array = decode(file.read_bytes())[..., 0]
    assert (array[0, 0], array[0, 20], array[20, 20]) == (7, 8, 9)


def test_what_gdal_calls_no_data_is_not_taken_for_a_value(tmp_path: Path):
    height = RNG.normal(500, 50, (60, 50)).astype(np.float32)
    height[:, :10] = -9999
    file = tmp_path / "x.tif"
    tag = (42113, "s", 0, "-9999", True)
    tifffile.imwrite(file, height, photometric="minisblack", extratags=[tag])
    array = decode(file.read_bytes())
    assert array.min() > 0
    assert np.array_equal(array[:, 10:, 0], height[:, 10:])
    assert np.allclose(array[:, :10], height[:, 10:].mean(), rtol=1e-5)
    rounded = {
        "-3.39999999999999996e+38": (np.float32, -3.4028234663852886e38),
        "-1.7976931348623157e+308": (np.float64, -1.7976931348623157e308),
        "-1.79769313486232e+308": (np.float32, -3.4028234663852886e38),
        "-inf": (np.float32, -np.inf),
        "-99999.1": (np.float32, -99999.125),
        "-9999": (np.float16, -9999),
        "-32768": (np.int16, -32768),
        "4294967295": (np.uint32, 4294967295),
    }
    for text, (kind, value) in rounded.items():
        stored = np.abs(height).astype(kind)
        stored[:, :10] = value
        tag = (42113, "s", 0, text, True)
        tifffile.imwrite(file, stored, photometric="minisblack", extratags=[tag])
        array = decode(file.read_bytes())
        assert np.allclose(array[:, :10], height[:, 10:].mean(), rtol=2e-3), text
        assert np.array_equal(array[:, 10:, 0], stored[:, 10:].astype(np.float32))
    tag = (42113, "s", 0, "0", True)
    tifffile.imwrite(file, DEEP[..., 0], photometric="minisblack", extratags=[tag])
    assert inspect(file.read_bytes()).nodata == 0
    assert np.array_equal(decode(file.read_bytes())[..., 0], DEEP[..., 0])  # integers stay


@pytest.mark.parametrize("orientation", range(1, 9))
def test_parts_of_turned_images_are_those_of_the_upright_one(orientation: int, tmp_path: Path):
    stored = np.arange(7 * 5).reshape(7, 5, 1)
    upright = orient(stored, orientation)
    for top in range(upright.shape[0] - 1):
        for left in range(upright.shape[1] - 2):
            place = stored_box((top, left, 2, 3), upright.shape[:2], orientation)
            part = stored[place[0] : place[0] + place[2], place[1] : place[1] + place[3]]
            part = orient(part, orientation)
            assert np.array_equal(part, upright[top : top + 2, left : left + 3])
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(
        tmp_path / "x.tif",
        DEEP[:50, :, 0],
        photometric="minisblack",
        extratags=[tag],
        tile=(16, 16),
    )
    opened = inspect_file(tmp_path / "x.tif")
    whole = decode((tmp_path / "x.tif").read_bytes())
    assert np.array_equal(whole, orient(DEEP[:50, :, :1], orientation))
    assert np.array_equal(read_window(opened, (3, 20, 30, 9)), whole[3:33, 20:29])


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_is_read_by_parts(order: str, tmp_path: Path):
    for number, array in enumerate(
        [DEEP, DEEP[..., 0], DEEP.transpose(2, 0, 1), DEEP[..., :1] > 9999, DEEP.astype(np.float64)]
    ):
        np.save(tmp_path / f"{number}.npy", np.asarray(array, order=order))
        by_parts((tmp_path / f"{number}.npy").read_bytes(), tmp_path / "y.npy")


def test_heic_of_8_and_10_bits_has_the_values_that_were_coded():
    pytest.importorskip("pi_heif")
    y, x = np.mgrid[:64, :64] // 16 * 300
    coded = np.stack([x, y, 1023 - x], -1)
    deep = decode((HEIC / "steps_10bit.heic").read_bytes())
    assert deep.dtype == np.uint16
    assert np.array_equal(deep, (coded * 65535 + 511) // 1023)  # one to one, over all 16 bits
    eight = decode((HEIC / "steps_8bit.heic").read_bytes())
    assert eight.dtype == np.uint8
    assert np.array_equal(eight, coded >> 2)
    assert inspect((HEIC / "steps_8bit.heic").read_bytes()).format == "HEIC"


def test_heic_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("simmim.data.formats.heif.find_spec", lambda name: None)
    with pytest.raises(UnreadableError, match=r"simmim\[heic\]"):
        decode((HEIC / "steps_8bit.heic").read_bytes())


def test_avif_keeps_its_depth():
    codecs = pytest.importorskip("imagecodecs")
    for bits in (8, 10, 12):
        array = RNG.integers(0, 2**bits, (32, 48, 3), dtype=np.uint16)
        stored = array.astype(np.uint8) if bits == 8 else array
        depth = {} if bits == 8 else {"bitspersample": bits, "pixelformat": "444"}
        data = codecs.avif_encode(stored, level=100, **depth)
        if bits == 8:
            expected = np.asarray(Image.open(io.BytesIO(data)))
        else:
            expected = (array.astype(int) * 65535 + (2**bits - 1) // 2) // (2**bits - 1)
        assert np.array_equal(decode(data), expected)


def test_deep_avif_is_refused_rather_than_cut(monkeypatch: pytest.MonkeyPatch):
    codecs = pytest.importorskip("imagecodecs")
    data = codecs.avif_encode(DEEP[:32, :32, :3] >> 6, level=90, bitspersample=10)
    monkeypatch.setattr("simmim.data.formats.heif.find_spec", lambda name: None)
    with pytest.raises(UnreadableError, match=r"10-bit AVIF.*simmim\[tiff\]"):
        decode(data)


def test_lab_becomes_srgb():
    """Against the formulas of CIE L*a*b* (D50) and sRGB, Bradford-adapted."""
    lab = np.array([[[0, 0, 0], [100, 0, 0], [50, 0, 0], [60, 40, 30], [40, -30, 20]]], float)
    stored = np.stack([lab[..., 0] * 255 / 100, lab[..., 1], lab[..., 2]], -1).round()
    tags = [(338, "H", 0, (), True)]
    stream = io.BytesIO()
    coded = np.stack([stored[..., 0], stored[..., 1] % 256, stored[..., 2] % 256], -1)
    tifffile.imwrite(stream, coded.astype(np.uint8), photometric="cielab", extratags=tags[:0])
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1, 0.8249]
    matrix = np.array(
        [[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]
    )
    linear = np.clip(xyz @ matrix.T, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(decode(stream.getvalue()).astype(float) - srgb).max() < 3


def test_transparent_png_of_few_bits_is_laid_over_white():
    for bits in (1, 2, 4):
        palette = Image.new("P", (8, 4))
        palette.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
        palette.putdata([0, 1] * 16)
        stream = io.BytesIO()
        palette.save(stream, "PNG", bits=bits, transparency=0)
        array = decode(stream.getvalue())
        assert array[0, :2].tolist() == [[255, 255, 255], [200, 100, 50]]


def test_animations_give_their_first_frame():
    frames = [Image.new("RGB", (20, 10), (k * 100, 0, 50)) for k in range(3)]
    for kind in ("GIF", "PNG", "WEBP", "AVIF", "TIFF"):
        stream = io.BytesIO()
        extra = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "AVIF" else {}
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:], **extra)
        array = decode(stream.getvalue())
        assert array.shape == (10, 20, 3)
        assert np.abs(array.astype(int) - [0, 0, 50]).max() <= 3, kind


def test_what_pillow_would_cut_to_8_bits_is_refused():
    codecs = pytest.importorskip("imagecodecs")
    data = codecs.jpeg2k_encode(DEEP[..., :3], bitspersample=16, codecformat="jp2")
    with pytest.raises(UnreadableError, match="16-bit colour JPEG 2000"):
        decode(data)
    grey = codecs.jpeg2k_encode(DEEP[..., 0], bitspersample=16, codecformat="jp2", level=0)
    assert np.array_equal(decode(grey)[..., 0], DEEP[..., 0])


def test_pipes_and_folders_are_refused_at_once(tmp_path: Path):
    import os

    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    for name in ("pipe.jpg", "folder.jpg", "loop.jpg"):
        for read in (read_file, inspect_file):
            with pytest.raises(UnreadableError):
                read(tmp_path / name)
    with pytest.raises(UnreadableError, match="device"):
        read_file(Path("/dev/zero"))
