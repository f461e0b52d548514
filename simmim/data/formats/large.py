"""Images that are left on the disk, and read by parts."""

import os
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from simmim.data.formats.decode import (
    check_size,
    file_size,
    guard,
    inspect,
    patiently,
    read_file,
    read_pixels,
)
from simmim.data.formats.dicom import is_dicom
from simmim.data.formats.image_file import ImageFile, Region, UnreadableError
from simmim.data.formats.npy import is_npy, open_npy_file
from simmim.data.formats.tiff import NotNativeError, is_tiff, open_tiff_file

HEADER = 132


def inspect_file(path: Path) -> ImageFile:
    """Read the header of a file, and leave its pixels on the disk where the format allows.

    TIFF whose strips or tiles can be decoded one by one, and .npy, give a ``window`` and may be of
    any size. Other formats are read whole, and limited as in ``inspect``.

    Raises:
        UnreadableError: The file cannot be read, or is no image, or is too large.
        StorageError: The storage fails.
    """
    opened = _open_parts(path)
    if opened is None:
        return inspect(read_file(path))
    if opened.height * opened.width == 0 or opened.channels == 0:
        raise UnreadableError("the image is empty")
    if opened.window is None:
        check_size(opened)
    return opened


def keep_whole(opened: ImageFile, most: int) -> ImageFile:
    """Give an image that has no window one that decodes the whole once, and crops it.

    Up to ``most`` bytes it is kept for the next part.
    """
    if opened.window is not None:
        return opened
    kept: list[np.ndarray] = []

    def window(box: Region) -> np.ndarray:
        array = kept[0] if kept else read_pixels(opened)
        if not kept and array.nbytes <= most:
            kept.append(array)
        top, left, height, width = box
        return array[top : top + height, left : left + width]

    return replace(opened, window=window)


def _open_parts(path: Path) -> ImageFile | None:
    """Open a file whose parts can be read by themselves; None for any other."""
    size = patiently(lambda: file_size(path))
    pieces = _Pieces(path)
    head = pieces.fetch(0, HEADER)
    if not is_tiff(head) and not is_npy(head):
        return None

    def parts() -> ImageFile | None:
        with path.open("rb") as stream:
            if is_npy(head):
                return open_npy_file(stream, path, size)
            try:
                return open_tiff_file(stream, size, pieces.fetch)
            except NotNativeError:
                return None  # for Pillow, which reads it whole

    try:
        return guard(lambda: patiently(parts))
    except UnreadableError:
        if is_dicom(head):  # whose first bytes are free, and may be those of a TIFF
            return None
        raise


class _Pieces:
    """Reads pieces of a file that it keeps open; safe in forked processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: IO[bytes] | None = None

    def fetch(self, at: int, count: int) -> bytes:
        """Return ``count`` bytes from ``at``; fewer where the file ends before."""
        return patiently(lambda: self._piece(at, count))

    def _piece(self, at: int, count: int) -> bytes:
        if self._stream is None:
            self._stream = self._path.open("rb", buffering=0)
        try:
            return os.pread(self._stream.fileno(), count, at)
        except OSError:
            self._stream = None  # opened anew at the next try
            raise
