"""JPEG by libjpeg-turbo, at the whole size or at 1/2, 1/4 or 1/8, and no further down than needed.

Most of the time goes into the entropy coding, which runs from the top: a part is had sooner if the
decoder stops below it. The header is given a smaller height for that, in a copy.
"""

import contextlib
import io
import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from simmim.data.formats.image_file import (
    ImageFile,
    Region,
    UnreadableError,
    orient,
    orientation_in,
    stored_box,
)
from simmim.data.formats.pillow import frames_left_out, open_pillow

SHRINKS = (1, 2, 4, 8)
EXTRANEOUS = "extraneous bytes"
HARMLESS = (EXTRANEOUS, "Inconsistent progression")
"""Warnings that cost no pixels, common in cameras' files; others leave parts grey."""
BELOW = 2
"""Rows decoded below a part: smooth upsampling of the colours looks at the next one."""
MAX_SCANNED = 8_000_000_000
"""Pixels times scans: each scan of a progressive file goes over all of them."""
TAIL = 1024
"""Bytes at the end in which a whole file has its end marker."""

MARKER = re.compile(rb"\xff[^\xff\0]")
"""As decoders look for it: fill bytes, and all others up to it, are passed over."""
ALONE = {0x01, *range(0xD0, 0xD8)}
"""Markers without a segment, which mean nothing in the header."""
START, END, SCAN = 0xD8, 0xD9, 0xDA
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JFIF, EXIF, MPF, ADOBE = 0xE0, 0xE1, 0xE2, 0xEE
JFIF_BYTES, ADOBE_BYTES = 14, 12
"""What these segments hold at least; a shorter one is passed over, as by libjpeg."""
EXIF_BEGINS, XMP_BEGINS = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


class Segment(NamedTuple):
    """A part of the header: what it is, where its marker stands, and where its content ends."""

    kind: int
    at: int
    end: int


class _Frame(NamedTuple):
    """A JPEG whose header was read: ``sof`` is where the height stands in the data, or -1."""

    data: bytes
    height: int
    width: int
    grey: bool
    orientation: int
    sof: int


def open_jpeg(data: bytes) -> ImageFile:
    """Read the header; the rare kinds that libjpeg-turbo's own interface refuses go to Pillow."""
    stored, data = data, _mended(data, _header(data))
    try:
        header: Any = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # it knows the usual subsamplings and colour spaces only
        return open_pillow(data)
    height, width, colorspace, _ = header
    if colorspace not in ("Gray", "YCbCr", "RGB"):
        return open_pillow(data)
    grey = colorspace == "Gray"
    segments = _header(data)
    orientation = _orientation(data, segments)
    sof, many = _frame(data, segments, height, width)
    if many and data.count(b"\xff\xda") * height * width > MAX_SCANNED:
        raise UnreadableError("damaged: an absurd number of scans")
    frame = _Frame(data, height, width, grey, orientation, sof)

    def read(shrink: int) -> np.ndarray:
        return orient(_decode(frame, shrink, height), orientation)

    def part(shrink: int, box: Region) -> np.ndarray:
        return _part(frame, shrink, box)

    rows, columns = (width, height) if orientation > 4 else (height, width)
    return ImageFile(
        *("JPEG", rows, columns, 1 if grey else 3, "uint8", read, SHRINKS),
        part=part,
        turned=orientation > 1,
        left_out=_left_out(stored, segments),
    )


def _part(frame: _Frame, shrink: int, box: Region) -> np.ndarray:
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


def segments_of(data: bytes) -> Iterator[Segment]:
    """Yield the header's segments, up to the one that begins a scan.

    Whatever lies between them is passed over, as decoders do.
    """
    at = 2
    while match := MARKER.search(data, at):
        at = match.start()
        kind = data[at + 1]
        if kind in ALONE:
            at += 2
            continue
        if kind in (START, END):
            return
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield Segment(kind, at, end)
        if kind == SCAN:
            return
        at = end


def _header(data: bytes) -> list[Segment]:
    """Return the segments, the last of which begins a scan; none where there is no scan."""
    found = list(segments_of(data))
    return found if found and found[-1].kind == SCAN else []


def _mended(data: bytes, segments: list[Segment]) -> bytes:
    """Return the file without what costs no pixels, but that libjpeg-turbo or Pillow trip over.

    These are stray bytes between the segments, short JFIF and Adobe ones, unknown numbers in them.
    """
    if not segments:
        return data
    layers = next((data[s.at + 9] for s in segments if s.kind in FRAMES and s.at + 9 < s.end), 0)
    parts = [data[:2]]
    for kind, at, end in segments[:-1]:
        part, content = data[at:end], data[at + 4 : end]
        if kind == JFIF and content.startswith(b"JFIF"):
            part = part[:9] + b"\1" + part[10:] if len(content) >= JFIF_BYTES else b""
        elif kind == ADOBE and content.startswith(b"Adobe"):
            # The transformation of colours: none, or the one that is taken for any unknown one.
            known = 2 if layers == 4 else 1
            short = len(content) < ADOBE_BYTES
            part = b"" if short else part[:15] + bytes([content[11] and known]) + part[16:]
        parts.append(part)
    scan = segments[-1].at
    header = b"".join(parts)
    return data if header == data[:scan] else header + data[scan:]


def _frame(data: bytes, segments: list[Segment], height: int, width: int) -> tuple[int, bool]:
    """Return where the height stands, or -1, and whether there may be several scans."""
    frames = [segment for segment in segments if segment.kind in FRAMES]
    if len(frames) != 1 or frames[0].kind not in (0xC0, 0xC1, 0xC2):
        return -1, True
    at, scan = frames[0].at + 5, segments[-1].at
    if not data.startswith(struct.pack(">HH", height, width), at):
        return -1, True
    # Where the first scan has all channels, and is no progressive one, there is no other.
    many = frames[0].kind == 0xC2 or data[scan + 4 : scan + 5] != data[at + 4 : at + 5]
    return at, many


def _orientation(data: bytes, segments: list[Segment]) -> int:
    """Return the orientation that EXIF tells, or XMP alone, 1 … 8."""
    told = [data[at + 4 : end] for kind, at, end in segments if kind == EXIF]
    exif = [content for content in told if content.startswith(EXIF_BEGINS)]
    xmp = [content for content in told if content.startswith(XMP_BEGINS)]
    info = {}
    if exif:  # a long one takes several segments
        info["exif"] = exif[0] + b"".join(more.removeprefix(EXIF_BEGINS) for more in exif[1:])
    if xmp:
        info["xmp"] = xmp[-1].removeprefix(XMP_BEGINS)
    return orientation_in(info) if info else 1


def _left_out(data: bytes, segments: list[Segment]) -> str:
    """Say what a file of several pictures has beside the first one; see ``ImageFile``."""
    if any(kind == MPF and data.startswith(b"MPF\0", at + 4) for kind, at, _ in segments):
        with contextlib.suppress(Exception):  # a table of pictures that is damaged
            return frames_left_out(Image.open(io.BytesIO(data), formats=["JPEG"]))
    return ""
