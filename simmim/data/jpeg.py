"""JPEG by libjpeg-turbo, at the whole size or at 1/2, 1/4 or 1/8, and no further down than needed.

Most of the time goes into the entropy coding, which runs from the top: a part is had sooner if the
decoder stops below it. The header is given a smaller height for that, in a copy.
"""

import struct
from typing import Any, NamedTuple

import numpy as np
import simplejpeg

from simmim.data.opened import Box, Opened, UnreadableError, orient, stored_box
from simmim.data.pillow import open_pillow

SHRINKS = (1, 2, 4, 8)
EXTRANEOUS = "extraneous bytes"
HARMLESS = (EXTRANEOUS, "Unknown Adobe", "Inconsistent progression")
"""Warnings that cost no pixels, common in cameras' files; others leave parts grey."""
BELOW = 2
"""Rows decoded below a part: smooth upsampling of the colours looks at the next one."""
MAX_SCANNED = 8_000_000_000
"""Pixels times scans: each scan of a progressive file goes over all of them."""
TAIL = 1024
"""Bytes at the end in which a whole file has its end marker."""


class _Frame(NamedTuple):
    """A JPEG whose header was read: ``sof`` is where the height stands in the data, or -1."""

    data: bytes
    height: int
    width: int
    grey: bool
    orientation: int
    sof: int


def open_jpeg(data: bytes) -> Opened:
    """Read the header; the rare kinds that libjpeg-turbo's own interface refuses go to Pillow."""
    try:
        header: Any = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # it knows the usual subsamplings and colour spaces only
        return open_pillow(data)
    height, width, colorspace, _ = header
    if colorspace not in ("Gray", "YCbCr", "RGB"):
        return open_pillow(data)
    grey = colorspace == "Gray"
    sof, orientation, many = _walk(data, height, width)
    if many and data.count(b"\xff\xda") * height * width > MAX_SCANNED:
        raise UnreadableError("damaged: an absurd number of scans")
    frame = _Frame(data, height, width, grey, orientation, sof)

    def read(shrink: int) -> np.ndarray:
        return orient(_decode(frame, shrink, height), orientation)

    def part(shrink: int, box: Box) -> np.ndarray:
        return _part(frame, shrink, box)

    rows, columns = (width, height) if orientation > 4 else (height, width)
    return Opened("JPEG", rows, columns, 1 if grey else 3, "uint8", read, SHRINKS, part=part)


def _part(frame: _Frame, shrink: int, box: Box) -> np.ndarray:
    height, width = -(-frame.height // shrink), -(-frame.width // shrink)
    upright = (width, height) if frame.orientation > 4 else (height, width)
    top, left, rows, columns = stored_box(box, upright, frame.orientation)
    # A file without its end is decoded whole, so that it is found to be truncated at any crop.
    whole = frame.sof < 0 or frame.data.rfind(b"\xff\xd9", -TAIL) < 0
    end = frame.height if whole else min(frame.height, (top + rows + BELOW) * shrink)
    array = _decode(frame, shrink, end)
    return orient(array[top : top + rows, left : left + columns], frame.orientation)


def _decode(frame: _Frame, shrink: int, end: int) -> np.ndarray:
    """Decode the rows above ``end``, as they are stored."""
    data = frame.data
    if end < frame.height:
        at = frame.sof
        data = b"".join((data[:at], end.to_bytes(2, "big"), data[at + 2 :]))
    height, width = -(-end // shrink), -(-frame.width // shrink)
    out = np.empty((height, width, 1 if frame.grey else 3), np.uint8)
    arguments: dict[str, Any] = {"colorspace": "GRAY" if frame.grey else "RGB", "buffer": out}
    if shrink > 1:
        arguments |= {"min_height": height, "min_width": width, "min_factor": shrink}
    try:
        simplejpeg.decode_jpeg(data, **arguments)
    except ValueError as error:
        # It is raised when all was decoded, and names the first warning. What comes after the last
        # row of a part is extraneous.
        if not any(text in str(error) for text in HARMLESS):
            raise
        if EXTRANEOUS not in str(error) or end == frame.height:
            simplejpeg.decode_jpeg(data, **arguments, strict=False)
    return out


def _walk(data: bytes, height: int, width: int) -> tuple[int, int, bool]:
    """Go through the header's segments.

    Returns:
        Where the height stands, or -1; the orientation; and whether there may be several scans.
    """
    at, orientation, found, many = 2, 1, [], False
    while True:
        kind = data[at + 1] if len(data) > at + 1 and data[at] == 0xFF else 0
        if not 0xC0 <= kind < 0xFF or kind in (0xD8, 0xD9):
            return -1, exif_orientation(data), True  # something odd between the segments
        if kind == 0xDA:
            break
        if kind == 0xE1 and orientation == 1 and data.startswith(b"Exif\0\0", at + 4):
            orientation = exif_orientation(data, at)
        if kind in (0xC0, 0xC1, 0xC2):
            found.append(at + 5)
            many |= kind == 0xC2
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    if len(found) != 1 or not data.startswith(struct.pack(">HH", height, width), found[0]):
        return -1, orientation, True
    # Where the first scan has all channels, and is no progressive one, there is no other.
    many |= data[at + 4 : at + 5] != data[found[0] + 4 : found[0] + 5]
    return found[0], orientation, many


def exif_orientation(data: bytes, begin: int = 0) -> int:
    """Return the EXIF orientation of a JPEG, 1 … 8; 1 where it has none or a damaged one."""
    start = data.find(b"Exif\0\0", begin, begin + (1 << 16))
    if start < 0:
        return 1
    tiff = data[start + 6 : start + 6 + (1 << 16)]
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, offset)
        for i in range(count):
            entry = struct.unpack_from(f"{order}HHIH", tiff, offset + 2 + 12 * i)
            if entry[0] == 0x0112:
                return entry[3] if 1 <= entry[3] <= 8 else 1
    except struct.error:
        pass
    return 1
