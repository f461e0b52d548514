"""Zip and tar files, read in place; WebDataset shards are tar files whose members go together."""

import os
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar

from simmim.data.formats.decode import MAX_FILE
from simmim.data.formats.image_file import UnreadableError
from simmim.data.sources.members import tar_members, zip_members
from simmim.data.sources.shards import are_shards
from simmim.data.sources.source import Entry, Reader, Source, SourceInfo, stamps
from simmim.data.sources.tally import Tally
from simmim.errors import DataError

INFLATED = 700_000_000
"""Most bytes of a member that inflates: twice as many are in memory for a moment."""
STORED, DEFLATED = 0, 8
ZIP_METHODS = {9: "deflate64", 12: "bzip2", 14: "LZMA", 93: "zstd", 95: "xz", 99: "AES"}


@dataclass
class _ArchiveSource(Source):
    """Lists the images in one or more archives."""

    kind: ClassVar[str]
    where: str
    files: list[Path]
    classes: list[str] = field(default_factory=list)
    """Names of the labels in their order, where an index beside the shards tells it."""
    _tally: Tally = field(default_factory=Tally)
    _damage: list[str] = field(default_factory=list)

    def state(self) -> list[list[Any]]:
        """See ``Source``."""
        return stamps(self.files)

    @property
    def packed(self) -> str:
        """See ``Index``."""
        return "shards" if are_shards(_prefixes(self.files)) else "archive"

    @property
    def others(self) -> Counter[str]:
        """Files that are no images, by kind."""
        return self._tally.others

    def info(self) -> SourceInfo:
        """See ``Source``."""
        options: dict[str, Any] = {"classes": self.classes} if self.classes else {}
        files = [str(file) for file in self.files]
        notes = self._damage + self._tally.notes()
        return SourceInfo(self.kind, self.where, files, options, notes)

    def entries(self) -> Iterator[Entry]:
        """See ``Source``; a tar that is damaged further on gives the images before that place."""
        self._tally, self._damage = Tally(), []
        for part, (file, prefix) in enumerate(zip(self.files, _prefixes(self.files), strict=True)):
            try:
                yield from self._members(file, part, prefix)
            except OSError as error:
                raise DataError(f"cannot read {file}: {error.strerror or error}.") from error

    def _members(self, file: Path, part: int, prefix: str) -> Iterator[Entry]:
        raise NotImplementedError


class TarSource(_ArchiveSource):
    """Lists the images in one or more tar files."""

    kind = "tar"

    def _members(self, file: Path, part: int, prefix: str) -> Iterator[Entry]:
        count = 0
        try:
            with file.open("rb") as stream:

                def read(at: int, size: int) -> bytes:
                    return os.pread(stream.fileno(), size, at)

                for entry in tar_members(stream, read, part, prefix, self._tally):
                    count += 1
                    yield entry
        except tarfile.TarError as error:
            if not count and len(self.files) == 1:
                raise DataError(f"{file} is not a whole tar file: {error}.") from error
            self._damage.append(f"{file} is damaged after {count:,} images ({error})")


class ZipSource(_ArchiveSource):
    """Lists the images in one or more zip files."""

    kind = "zip"

    def _members(self, file: Path, part: int, prefix: str) -> Iterator[Entry]:
        try:
            with zipfile.ZipFile(file) as archive:
                yield from zip_members(archive, part, prefix, self._tally)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise DataError(f"{file} is not a whole zip file: {error}.") from error


class _FilesReader(Reader):
    """Reads pieces of files that it keeps open."""

    def __init__(self, info: SourceInfo) -> None:
        self._parts = info.parts
        self._open: dict[int, tuple[int, IO[bytes]]] = {}

    def _piece(self, part: int, at: int, size: int) -> bytes:
        """Return ``size`` bytes from ``at``; fewer where the file ends before."""
        try:
            # A process that was forked meanwhile has descriptors of its own; pread needs no place.
            process, stream = self._open.get(part, (0, None))
            if stream is None or process != os.getpid():
                stream = Path(self._parts[part]).open("rb")  # noqa: SIM115
                self._open[part] = (os.getpid(), stream)
            return os.pread(stream.fileno(), size, at)
        except (FileNotFoundError, PermissionError) as error:
            text = f"cannot be read: {self._parts[part]}: {error.strerror}"
            raise UnreadableError(text) from error


class TarReader(_FilesReader):
    """Reads members of tar files."""

    def read(self, entry: Entry) -> bytes:
        """See ``Reader``."""
        if entry.size > MAX_FILE:
            raise UnreadableError(f"too large: a file of more than {MAX_FILE >> 30} GB")
        data = self._piece(entry.part, entry.at, entry.size)
        if len(data) < entry.size:
            raise UnreadableError(f"truncated: {len(data)} of {entry.size} bytes are in the tar")
        return data


class ZipReader(_FilesReader):
    """Reads members of zip files, stored or deflated."""

    def read(self, entry: Entry) -> bytes:
        """See ``Reader``."""
        header = self._piece(entry.part, entry.at, 30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise UnreadableError("damaged: the zip has no such member any more")
        flags, method, _, _, crc, _, _, name, extra = struct.unpack_from("<HHHHIIIHH", header, 6)
        if flags & 1:
            raise UnreadableError("encrypted: a password is needed")
        if method not in (STORED, DEFLATED):
            how = ZIP_METHODS.get(method, f"method {method}")
            raise UnreadableError(f"compressed by {how}; zip it anew with deflate")
        size = min(entry.size, MAX_FILE)
        start = entry.at + 30 + name + extra
        data = self._piece(entry.part, start, size)
        if len(data) < entry.size:
            raise UnreadableError(f"truncated: {len(data)} of {entry.size} bytes are in the zip")
        if method == DEFLATED:
            data = _inflate(data)
        if flags & 8:  # written as a stream: the checksum comes after the content
            tail = self._piece(entry.part, start + entry.size, 8)
            crc = int.from_bytes(tail[4:8] if tail[:4] == b"PK\x07\x08" else tail[:4], "little")
        if zlib.crc32(data) != crc:
            raise UnreadableError("damaged: its checksum in the zip does not hold")
        return data


def _inflate(data: bytes) -> bytes:
    stream = zlib.decompressobj(-15)
    try:
        out = stream.decompress(data, INFLATED)
    except zlib.error as error:
        raise UnreadableError(f"damaged in the zip: {error}") from error
    if stream.unconsumed_tail:
        raise UnreadableError(f"too large: it inflates to more than {INFLATED // 10**6} MB")
    if not stream.eof:
        raise UnreadableError("truncated in the zip")
    return out


def _prefixes(files: list[Path]) -> list[str]:
    """Return what comes before the names of each archive: its path below the common folder."""
    if len(files) == 1:
        return [""]
    common = Path(os.path.commonpath([file.parent for file in files]))
    return [f"{file.relative_to(common).as_posix()}/" for file in files]
