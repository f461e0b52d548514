"""Files that are damaged, odd, or made to do harm, written on the spot."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

RNG = np.random.default_rng(17)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, bits: int, color: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    body = extra + chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def tiff(tags: list[tuple[int, int, int, int]], body: bytes = b"", then: int = 0) -> bytes:
    """A little-endian TIFF of tag, type, count, value; ``then`` is the next directory."""
    rows = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + rows + struct.pack("<I", then) + body


def plain(**other: int) -> list[tuple[int, int, int, int]]:
    """Tags of an image of 8×8 bytes, with some of another value."""
    tags = {
        **{"256": 8, "257": 8, "258": 8, "259": 1, "262": 1, "273": 150, "277": 1, "278": 8},
        **{"279": 64},
    } | {name[1:]: value for name, value in other.items()}
    return [(int(tag), 4, 1, value) for tag, value in tags.items()]


def saved(kind: str, image: Image.Image | None = None, **arguments: Any) -> bytes:
    stream = io.BytesIO()
    color = Image.fromarray(RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8))
    (image or color).save(stream, kind, **arguments)
    return stream.getvalue()


def samples() -> dict[str, bytes]:
    """Good files, small ones, of every kind that can be written here."""
    noise = RNG.integers(0, 2**16, (40, 56, 3), dtype=np.uint16)
    out = {
        **{kind.lower(): saved(kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TGA", "PPM")},
        **{kind.lower(): saved(kind) for kind in ("WEBP", "AVIF", "JPEG2000", "ICO", "QOI")},
        "progressive.jpg": saved("JPEG", progressive=True),
        "apng": saved("PNG", save_all=True, append_images=[Image.new("RGB", (56, 40))] * 3),
        "deep.png": png(
            56, 40, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in noise)
        ),
    }
    for name, options in {
        "plain": {},
        "tiled": {"tile": (16, 16), "compression": "zlib", "predictor": True},
        "big": {"bigtiff": True, "rowsperstrip": 5},
    }.items():
        stream = io.BytesIO()
        tifffile.imwrite(stream, noise, photometric="rgb", **options)
        out[f"{name}.tif"] = stream.getvalue()
    stream = io.BytesIO()
    np.save(stream, noise)
    out["x.npy"] = stream.getvalue()
    for file in (Path(__file__).parent / "heic").glob("*.heic"):
        out[file.name] = file.read_bytes()
    return out


def bombs() -> dict[str, bytes]:
    rows = zlib.compress(b"\0" * 10_000_000, 9)
    cyclic = tiff(plain(), bytes(200), then=8)
    inner = saved("PNG", Image.new("L", (12_000, 12_000)))
    icon = b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(inner), 22) + inner
    jpeg = saved("JPEG")
    size = jpeg.find(b"\xff\xc0") + 5
    floor = struct.pack("<IBBHHHH", 0, 0, 0, 0, 0, 0, 0)
    return {
        "wide.png": png(2**31 - 1, 2**31 - 1, 8, 2, b"\0" * 99),
        "large.png": png(60_000, 60_000, 1, 0, b"\0" * 99),
        "text.png": png(8, 8, 8, 0, b"\0" * 72, chunk(b"zTXt", b"a\0\0" + rows)),
        "profile.png": png(8, 8, 8, 0, b"\0" * 72, chunk(b"iCCP", b"a\0\0" + rows)),
        "large.jpg": jpeg[:size] + b"\xff\xff\xff\xff" + jpeg[size + 4 :],
        "none.jpg": jpeg[:size] + b"\0\0\0\0" + jpeg[size + 4 :],
        "large.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + saved("GIF")[10:],
        "large.bmp": saved("BMP")[:18] + struct.pack("<ii", 2**30, 2**30) + saved("BMP")[26:],
        "large.tga": b"\0\0\x0a"
        + floor[:9]
        + struct.pack("<HHBB", 65535, 65535, 24, 0)
        + b"\xff" * 99,
        "large.ppm": b"P6 99999 99999 255\n" + bytes(99),
        "slow.ppm": b"P2 9999 9999 255\n" + b"1 " * 99,
        "large.qoi": b"qoif" + struct.pack(">IIBB", 60_000, 60_000, 3, 0) + b"\xfd" * 99,
        "slow.qoi": b"qoif" + struct.pack(">IIBB", 9000, 9000, 3, 0) + b"\xfd" * 99,
        "large.npy": b"\x93NUMPY\1\0\x76\0"
        + b"{'descr': '|u1', 'fortran_order': False, 'shape': (999999, 999999), }".ljust(117)
        + b"\n",
        "negative.npy": b"\x93NUMPY\1\0\x76\0"
        + b"{'descr': '|u1', 'fortran_order': False, 'shape': (-5, 9), }".ljust(117)
        + b"\n",
        "icon.ico": icon,
        "wide.tif": tiff(plain(_256=2**31, _257=2**31), bytes(200)),
        "far.tif": tiff(plain(_273=2**31), bytes(200)),
        "bits0.tif": tiff(plain(_258=0), bytes(200)),
        "bits9999.tif": tiff(plain(_258=9999), bytes(200)),
        "samples.tif": tiff(plain(_277=60_000), bytes(200)),
        "rows.tif": tiff(plain(_278=0), bytes(200)),
        "count.tif": tiff([*plain(), (300, 12, 2**31, 8)], bytes(200)),
        "offsets.tif": tiff([t for t in plain() if t[0] != 273] + [(273, 4, 2**30, 8)], bytes(200)),
        "tile.tif": tiff(
            [(322, 4, 1, 2**28), (323, 4, 1, 2**28), (324, 4, 1, 150), (325, 4, 1, 64), *plain()],
            bytes(200),
        ),
        "deflate.tif": tiff(plain(_259=8, _273=150, _279=len(rows)), bytes(20) + rows),
        "cyclic.tif": cyclic,
        "imagej.tif": tiff(
            [*plain(), (270, 2, 40, 150)],
            b" " * 16 + b"ImageJ=1\nimages=99999999\nslices=9999\n",
            8,
        ),
        "none.tif": b"II*\0\x08\0\0\0\0\0" + bytes(99),
        "big.tif": b"II+\0\x08\0\0\0\x10" + b"\0" * 7 + b"\xff" * 99,
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\xff\xff\xff\xffmeta" + bytes(500),
        "dicom.dcm": bytes(128) + b"DICM" + b"\x02\0\x10\0UI\xff\xff" + b"9" * 500,
    }


def odd() -> dict[str, tuple[bytes, np.ndarray | None]]:
    """Odd files and, where known without loss, their pixels."""
    flat = Image.new("RGB", (24, 16), (200, 100, 50))
    color = np.zeros((16, 24, 3), np.uint8) + np.array([200, 100, 50], np.uint8)
    cmyk = Image.new("CMYK", (24, 16), (10, 60, 200, 30))
    jpeg = saved("JPEG", flat, quality=100, subsampling=0)
    garbage = bytes(RNG.integers(0, 256, 400, dtype=np.uint8))
    inks = [(255 - ink) * (255 - 30) / 255 for ink in (10, 60, 200)]
    return {
        "cmyk.jpg": (saved("JPEG", cmyk, quality=100), np.zeros((16, 24, 3)) + inks),
        "trailing.jpg": (jpeg + garbage, color),
        "profile.jpg": (saved("JPEG", flat, quality=100, icc_profile=garbage), color),
        "exif.jpg": (saved("JPEG", flat, quality=100, exif=b"Exif\0\0" + garbage), color),
        "profile.png": (saved("PNG", flat, icc_profile=garbage), color),
        "exif.png": (saved("PNG", flat, exif=b"Exif\0\0" + garbage), color),
        "wrong.jpg": (saved("PNG", flat), color),
        "wrong.png": (saved("WEBP", flat, lossless=True), color),
        "wrong.tif": (saved("BMP", flat), color),
        "grey4.png": (png(8, 2, 4, 0, b"\0\x01\x23\x45\x67\0\x89\xab\xcd\xef"), None),
        "grey2.png": (png(8, 1, 2, 0, b"\0\x1b\x1b"), None),
    }
