"""Arrays in .npy files: from bytes, or by parts of a file that stays on the disk."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from simmim.data.formats.image_file import ImageFile, Region, UnreadableError, channels_first, kept


def is_npy(data: bytes) -> bool:
    """Tell by the first six bytes."""
    return data[:6] == b"\x93NUMPY"


def open_npy(data: bytes) -> ImageFile:
    """Read the header of a file's content.

    Raises:
        UnreadableError: Not an image of numbers, or truncated.
        Exception: Whatever numpy raises on a damaged header.
    """
    header = _header(io.BytesIO(data), len(data))

    def array() -> np.ndarray:
        flat = np.frombuffer(data, header.dtype, int(np.prod(header.shape)), header.offset)
        return header.upright(flat.reshape(header.shape, order=header.order))

    # What is not finite is filled by a mean over the whole image, so floats are read whole.
    return header.opened(array, windows=header.dtype.kind != "f")


def open_npy_file(stream: IO[bytes], path: Path, size: int) -> ImageFile:
    """Read the header of a file of ``size`` bytes; parts of it are mapped when they are needed."""
    header = _header(stream, size)

    def array() -> np.ndarray:
        mapped = np.memmap(path, header.dtype, "r", header.offset, header.shape, header.order)
        return header.upright(mapped)

    return header.opened(array, windows=True)


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    order: Any
    dtype: np.dtype
    offset: int

    @property
    def first(self) -> bool:
        """Whether channels come first, as in arrays that were saved for torch."""
        return channels_first(self.shape)

    def upright(self, array: np.ndarray) -> np.ndarray:
        """Return a view (h, w, C)."""
        array = array[..., None] if array.ndim == 2 else array
        return array.transpose(1, 2, 0) if self.first else array

    def opened(self, array: Callable[[], np.ndarray], *, windows: bool) -> ImageFile:
        height, width = self.shape[1:] if self.first else self.shape[:2]
        channels = 1 if len(self.shape) == 2 else self.shape[0 if self.first else 2]

        def window(box: Region) -> np.ndarray:
            top, left, rows, columns = box
            part = np.array(array()[top : top + rows, left : left + columns])
            return part * np.uint8(255) if part.dtype == bool else part

        return ImageFile(
            *("NPY", height, width, channels, kept(self.dtype)),
            lambda _: array(),
            window=window if windows else None,
        )


def _header(stream: IO[bytes], size: int) -> _Header:
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise UnreadableError(f"a .npy file of version {version}; 1.0 and 2.0 can be read")
    shape, fortran, dtype = readers[version](stream)
    if dtype.hasobject or dtype.kind not in "buif":
        raise UnreadableError(f"a .npy array of {dtype}; numbers are needed")
    if len(shape) not in (2, 3):
        raise UnreadableError(f"a .npy array of shape {shape}; (h, w) or (h, w, C) is needed")
    if min(shape) < 0:
        raise UnreadableError(f"damaged: a .npy array of shape {shape}")
    offset = stream.tell()
    need = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if need > size - offset:
        raise UnreadableError(f"truncated: {size - offset} of {need} bytes")
    return _Header(shape, "F" if fortran else "C", dtype, offset)
