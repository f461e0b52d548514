"""JPEG files put together by hand: segments, and what tells how a picture is turned."""

import io
import struct

import numpy as np
from PIL import Image

Y, X = np.mgrid[:48, :64]
PICTURE = np.stack([3 * X, 4 * Y, X + Y], -1).astype(np.uint8)
PICTURE[:16, :24] = (200, 30, 10)  # no two of the eight orientations look alike
XMP = b"http://ns.adobe.com/xap/1.0/\0"


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def segments(data: bytes) -> list[tuple[int, int]]:
    """Where each segment of the header begins and ends."""
    found, at = [], 2
    while not found or data[found[-1][0] + 1] != 0xDA:
        found.append((at, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")))
        at = found[-1][1]
    return found


def put(data: bytes, at: int, what: bytes) -> bytes:
    return data[:at] + what + data[at:]


def app(number: int, content: bytes) -> bytes:
    return bytes([0xFF, 0xE0 + number]) + struct.pack(">H", len(content) + 2) + content


def exif(orientation: int, order: str = "<", kind: int = 3, tag: int = 0x0112) -> bytes:
    """One tag; its type is that of TIFF: 3 is SHORT, 4 LONG, 5 RATIONAL."""
    codes = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
    value = struct.pack(order + codes.get(kind, "I"), orientation).ljust(4, b"\0")
    if kind == 5:
        value = struct.pack(order + "I", 26)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, 1)
    entry = struct.pack(order + "HHI", tag, kind, 1) + value + bytes(4)
    return b"Exif\0\0" + head + entry + struct.pack(order + "II", orientation, 1)


def xmp(orientation: int, *, element: bool = False) -> bytes:
    told = f'tiff:Orientation="{orientation}"'
    if element:
        told = f"<tiff:Orientation>{orientation}</tiff:Orientation>"
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{told}</x:xmpmeta>'.encode()
