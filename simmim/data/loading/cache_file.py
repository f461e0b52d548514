"""A file of places of fixed size, which many processes read and fill at once.

Beside each place is a row, written after it: whoever is killed between the two leaves a place that
counts as empty. Writing does not go through the memory map: where the disk is full, that would kill
the process.
"""

import contextlib
import json
import mmap
import os
import secrets
import shutil
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ROW = struct.Struct("<6I")  # CRC of the rest, CRC of the content, height, width, and those before
HEAD = 64
MARK = 16
OLD = 3600.0
"""Seconds after which a folder that was never finished counts as left behind."""


class Row(NamedTuple):
    """What is known of a filled place.

    Attributes:
        crc: CRC-32 of the content.
        height: Rows of the kept picture.
        width: Columns of the kept picture.
        original: Height and width of the image that it was made from.
    """

    crc: int
    height: int
    width: int
    original: tuple[int, int]


class Slots:
    """The open files of one cache, in this process: ``rows``, ``pixels`` and ``about.json``."""

    def __init__(self, folder: Path, about: dict[str, Any], count: int, size: int) -> None:
        """Open the folder; it is made anew where it is missing, cut short or somebody else's.

        Args:
            folder: Where the files lie.
            about: JSON that an existing cache must agree with.
            count: Places.
            size: Bytes of a place.

        Raises:
            OSError: The folder cannot be made.
            ValueError: It cannot be opened even so.
        """
        self.folder, self.about, self.count, self.size = folder, about, count, size
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f".{folder.name}.lock"):
            try:
                self._open()
            except (OSError, ValueError):
                self._make()
                self._open()

    def row(self, i: int) -> Row | None:
        """Return what place ``i`` holds; None: nothing."""
        if not 0 <= i < self.count:
            raise IndexError(i)
        at = HEAD + i * ROW.size
        data = self._row_map[at : at + ROW.size]
        check, crc, height, width, *original = ROW.unpack(data)
        if check != zlib.crc32(data[4:]) or not height * width:
            return None
        return Row(crc, height, width, (original[0], original[1]))

    def find(self, i: int, channels: int) -> np.ndarray | None:
        """Return the picture at place ``i``, (h, w, C), as a view of the file; None: it is empty.

        A picture written before the last start of the machine is checked at its first use: the
        machine may have gone down before the pixels were on the disk.
        """
        row = self.row(i)
        if row is None or (room := row.height * row.width * channels) > self.size:
            return None
        array = np.frombuffer(self._pixel_map, np.uint8, room, i * self.size)
        if self._checked is not None and not self._checked[i]:
            if zlib.crc32(array.data) != row.crc:
                return None
            self._checked[i] = True
        return array.reshape(row.height, row.width, channels)

    def keep(self, i: int, array: np.ndarray, original: tuple[int, int]) -> None:
        """Write a picture (h, w, C) to place ``i``.

        Raises:
            OSError: There is no room. The place stays empty.
        """
        array = np.ascontiguousarray(array)
        facts = ROW.pack(0, zlib.crc32(array.data), *array.shape[:2], *original)[4:]
        _write(self._pixels, array.data, i * self.size)
        row = zlib.crc32(facts).to_bytes(4, "little") + facts
        _write(self._rows, memoryview(row), HEAD + i * ROW.size)
        if self._checked is not None:
            self._checked[i] = True

    def mark(self, run: bytes) -> bool:
        """Leave the mark of a run, of 16 bytes; False where it is there already."""
        with contextlib.suppress(OSError):
            if os.pread(self._rows, MARK, 0) == run:
                return False
            os.pwrite(self._rows, run, 0)
        return True

    def _open(self) -> None:
        """Open and check; raises OSError or ValueError."""
        self._rows = self._pixels = -1
        about = json.loads((self.folder / "about.json").read_bytes())
        ours = isinstance(about, dict) and all(about.get(k) == v for k, v in self.about.items())
        if not ours:
            raise ValueError("it is not a cache of these images")
        self._rows = _descriptor(self.folder / "rows", HEAD + self.count * ROW.size)
        self._pixels = _descriptor(self.folder / "pixels", max(1, self.count) * self.size)
        self._row_map = mmap.mmap(self._rows, 0, access=mmap.ACCESS_READ)
        self._pixel_map = mmap.mmap(self._pixels, 0, access=mmap.ACCESS_READ)
        same_boot = about.get("boot") == _boot() != ""
        self._checked = None if same_boot else np.zeros(self.count, bool)

    def _make(self) -> None:
        """Put an empty cache in the place of what is there; raises OSError."""
        self.close()
        parent = self.folder.parent
        _clean(parent, self.folder.name)
        fresh = parent / f".{self.folder.name}-{secrets.token_hex(8)}"
        fresh.mkdir()
        try:
            # The rows are written out, so that nothing but the pixels can lack room later.
            with (fresh / "rows").open("wb") as file:
                left = HEAD + self.count * ROW.size
                while left > 0:
                    left -= file.write(bytes(min(left, 1 << 20)))
            with (fresh / "pixels").open("wb") as file:
                file.truncate(max(1, self.count) * self.size)
            (fresh / "about.json").write_text(json.dumps({**self.about, "boot": _boot()}))
            old = parent / f"{fresh.name}-old"
            if self.folder.exists():
                self.folder.rename(old)
            fresh.rename(self.folder)
            _remove(old)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            raise

    def close(self) -> None:
        """Close the files; arrays that were found stay valid."""
        for file in (self._rows, self._pixels):
            if file >= 0:
                os.close(file)
        self._rows = self._pixels = -1

    def __del__(self) -> None:
        if "_rows" in self.__dict__:
            self.close()


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Let one process at a time look and make, where the file system can lock."""
    with file.open("a") as lock:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _descriptor(file: Path, size: int) -> int:
    descriptor = os.open(file, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    if os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        raise ValueError(f"{file.name} has another size than it should")
    return descriptor


def _write(descriptor: int, data: memoryview, at: int) -> None:
    left = data.cast("B")
    while left:
        done = os.pwrite(descriptor, left, at)
        left, at = left[done:], at + done


def _boot() -> str:
    """Return an id of this start of the machine; empty where the system tells none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _clean(parent: Path, name: str) -> None:
    """Remove what a process that was killed left behind."""
    for folder in parent.glob(f".{name}-*"):
        try:
            if time.time() - folder.stat().st_mtime > OLD:
                _remove(folder)
        except OSError:
            continue


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
