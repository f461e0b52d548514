"""The hash of an Arrow file, inside it: a damaged one must not be parsed.

To parse it can end the process or give other values. The SHA-256 of all the other bytes lies
between the last batch and the footer, where readers of Arrow do not look.
"""

import hashlib
import os
import struct
from pathlib import Path
from typing import BinaryIO

MARK = b"\nSHA-256 of all the other bytes:\n"
"""What stands before the hash."""
SEAL = len(MARK) + 64
"""Bytes of both."""
TAIL = struct.Struct("<i6s")
"""The end of an Arrow file: the size of the footer before it, and ARROW1."""

_PIECE = 1 << 20


def _seal_at(stream: BinaryIO) -> int:
    """Where the mark is, if the file is whole; anywhere, or below 0, if not."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - TAIL.size))
    end = stream.read(TAIL.size)
    footer = TAIL.unpack(end)[0] if len(end) == TAIL.size else 0
    return size - TAIL.size - footer - SEAL


def has_seal(stream: BinaryIO) -> bool:
    """Tell whether a file ends as ``seal`` ends it, whole or damaged before that."""
    stream.seek(max(0, _seal_at(stream)))
    return stream.read(len(MARK)) == MARK


def check(stream: BinaryIO, known: str | None) -> str:
    """Return the hash in a file; raise ValueError where it is not right, or not the known one."""
    at = _seal_at(stream)
    stream.seek(max(0, at))
    ending = stream.read(SEAL)
    found = ending.removeprefix(MARK).decode("ascii", "replace")
    if at < 0 or not ending.startswith(MARK):
        raise ValueError("it does not end as simmim ends it")
    if known is None and _hash(stream, at) != found:
        raise ValueError("its content does not have the SHA-256 that it should")
    if known not in (None, found):
        raise ValueError("it was replaced by another one while it was in use")
    return found


def _hash(stream: BinaryIO, at: int) -> str:
    """SHA-256 of a file but for its mark and hash at ``at``."""
    digest = hashlib.sha256()
    for first, last in ((0, at), (at + SEAL, stream.seek(0, os.SEEK_END))):
        stream.seek(first)
        while piece := stream.read(min(_PIECE, last - stream.tell())):
            digest.update(piece)
    return digest.hexdigest()


def seal(file: Path) -> None:
    """Put mark and hash between the batches and the footer."""
    with file.open("r+b") as stream:
        at = _seal_at(stream) + SEAL
        stream.seek(at)
        footer = stream.read()
        stream.seek(at)
        stream.write(MARK + bytes(64) + footer)
        found = _hash(stream, at)
        stream.seek(at + len(MARK))
        stream.write(found.encode())
