"""How the files of each image format begin, whatever they are called."""

import re

from simmim.data.formats.heif import AVIF, HEVC
from simmim.data.formats.npy import is_npy
from simmim.data.formats.tiff import is_tiff

HEAD = 132
"""Bytes from the beginning of a file that tell its format."""

MARKS = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"qoif"),
    *(b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
)
"""JPEG, PNG, GIF, QOI, JPEG 2000."""
BRANDS = HEVC | AVIF | {b"mif1", b"msf1"}
BMP = re.compile(rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL)
"""What a bitmap has, and no text that begins alike: zeros, and a header of a known length."""
PNM = re.compile(rb"P[1-6]\s+(#|\d+\s)")


def begins_like_image(head: bytes) -> bool:
    """Tell whether a file that begins with ``head`` is an image of a format that is read here.

    DICOM is known by its preamble alone here; TGA has no mark.
    """
    return (
        head.startswith(MARKS)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in BRANDS)
        or head[128:132] == b"DICM"
        or is_tiff(head)
        or is_npy(head)
        or bool(BMP.match(head) or PNM.match(head))
    )
