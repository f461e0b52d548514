"""The list of a source's images, as a memory-mapped file: millions of names, hardly any memory.

The file is an Arrow IPC file, which pyarrow, pandas, polars or DuckDB read too. Its columns: `name`
(bytes), `rank` (64 bits of the SHA-256 of the name: a fixed random order), and, unless the source
is a folder, `part`, `at`, `size`, `label` (see ``Entry``; a label is a place in `classes`, -1 for
none). Its metadata tells the format, the source, its state, and the classes. Between the last batch
and the footer, where readers of Arrow do not look, is the SHA-256 of all the other bytes: a damaged
file must not be parsed, since that can end the process or give another list.
"""

import contextlib
import hashlib
import json
import mmap
import os
import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from simmim.data.sources.source import Entry, Source, SourceInfo
from simmim.errors import DataError

FORMAT = 1
BATCH = 1 << 16
"""Images in a record batch."""
MOST_FOLDERS = 100_000
"""First folders that are counted, to tell whether they are classes."""
KEY = b"simmim"
MARK = b"\nSHA-256 of all the other bytes:\n"
"""What stands before the hash."""
SEAL = len(MARK) + 64
"""Bytes of both."""
TAIL = struct.Struct("<i6s")
"""The end of an Arrow file: the size of the footer before it, and ARROW1."""
HEADER = b', "info": {"kind": "'
"""A part of the metadata, at the beginning and the end of the file."""
READS = 256
"""Look-ups after which pages of the file are given back; the system maps 16 for each of them."""

Progress = Callable[[int], None]


class Index:
    """All images of one source, read from a file that stays on the disk."""

    def __init__(self, file: Path, sha256: str | None = None) -> None:
        """Open an index.

        Args:
            file: What ``build`` wrote, or a copy.
            sha256: The hash that another process found right in this very file, so that it is not
                read whole again.

        Raises:
            DataError: Not an index, a damaged one, or of another format.
        """
        self.file = file
        self._reads = 0
        try:
            with file.open("rb") as stream:
                self.sha256 = _check(stream, sha256)
                self._mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._table = pa.ipc.open_file(pa.py_buffer(self._mapped)).read_all()
            meta = json.loads((self._table.schema.metadata or {})[KEY])
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise DataError(f"{file} is not a whole index of images: {error}.") from error
        if meta.get("format") != FORMAT:
            raise DataError(
                f"{file} is an index of format {meta.get('format')}, and this simmim reads format "
                f"{FORMAT}. Use the simmim that wrote it, or delete it."
            )
        self.info = SourceInfo(**meta["info"])
        self.classes: list[str] = meta["classes"]
        self.state: Any = meta["state"]
        self.folders: dict[str, int] | None = meta["folders"]
        """Images by the first folder of their names; None: too many folders to be classes."""
        self.others: dict[str, int] = meta["others"]
        self._placed = "part" in self._table.column_names
        sizes = [0, *(len(chunk) for chunk in self._table.column("rank").chunks)]
        self._starts = list(accumulate(sizes))

    def __len__(self) -> int:
        return self._table.num_rows

    def name(self, row: int) -> str:
        """The name of an image."""
        chunk, offset = self._find(row)
        return os.fsdecode(self._column("name")[chunk][offset].as_py())

    def entry(self, row: int) -> Entry:
        """All that is known of an image."""
        chunk, offset = self._find(row)
        values = {key: column[chunk][offset].as_py() for key, column in self._facts.items()}
        name = os.fsdecode(values["name"])
        if not self._placed:
            return Entry(name)
        label = None if values["label"] < 0 else self.classes[values["label"]]
        return Entry(name, values["part"], values["at"], values["size"], label)

    def label(self, row: int) -> str | None:
        """The class of an image, where the source tells it."""
        if not self._placed:
            return None
        chunk, offset = self._find(row)
        place = self._column("label")[chunk][offset].as_py()
        return None if place < 0 else self.classes[place]

    def ranks(self) -> Iterator[np.ndarray]:
        """Yield the ranks, uint64, in pieces."""
        for chunk in self._column("rank"):
            yield chunk.to_numpy()
            self._let_go()

    @cached_property
    def labelled(self) -> bool:
        """Whether the source tells the class of any image."""
        return self._placed and bool(self.classes)

    def _find(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        self._reads += 1
        if self._reads % READS == 0:
            self._let_go()
        chunk = bisect_right(self._starts, row) - 1
        return chunk, row - self._starts[chunk]

    def _let_go(self) -> None:
        """Give back the pages that were looked at: they stay in the system's cache of files."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def _column(self, name: str) -> list[pa.Array]:
        return self._chunks[name]

    @cached_property
    def _facts(self) -> dict[str, list[pa.Array]]:
        return {name: chunks for name, chunks in self._chunks.items() if name != "rank"}

    @cached_property
    def _chunks(self) -> dict[str, list[pa.Array]]:
        return {name: self._table.column(name).chunks for name in self._table.column_names}


def is_index(file: Path) -> bool:
    """Tell whether a file is a list of images that simmim wrote, whole or damaged."""
    try:
        with file.open("rb") as stream:
            head = stream.read(1 << 12)
            stream.seek(max(0, _seal_at(stream)))
            return HEADER in head or stream.read(len(MARK)) == MARK
    except (OSError, ValueError):
        return False


def _seal_at(stream: BinaryIO) -> int:
    """Where the mark is, if the file is whole; anywhere, or below 0, if not."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - TAIL.size))
    end = stream.read(TAIL.size)
    footer = TAIL.unpack(end)[0] if len(end) == TAIL.size else 0
    return size - TAIL.size - footer - SEAL


def _check(stream: BinaryIO, known: str | None) -> str:
    """Return the hash in a file; raise ValueError where it is not right, or not the known one."""
    at = _seal_at(stream)
    stream.seek(max(0, at))
    seal = stream.read(SEAL)
    found = seal.removeprefix(MARK).decode("ascii", "replace")
    if at < 0 or not seal.startswith(MARK):
        raise ValueError("it does not end as simmim ends it")
    if known is None and _hash(stream, at) != found:
        raise ValueError("its content does not have the SHA-256 that it should")
    if known not in (None, found):
        raise ValueError("it was replaced by another one while it was in use")
    return found


def _hash(stream: BinaryIO, at: int) -> str:
    """SHA-256 of a file but for its mark and hash at ``at``."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    for first, last in ((0, at), (at + SEAL, stream.seek(0, os.SEEK_END))):
        stream.seek(first)
        while (left := last - stream.tell()) > 0:
            digest.update(buffer[: stream.readinto(buffer[: min(left, len(buffer))])])  # type: ignore[attr-defined]
    return digest.hexdigest()


def _seal(file: Path) -> None:
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


def rank_of(name: str) -> int:
    """Return 64 bits that follow from a name alone: its place in a fixed random order."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big")


def build(source: Source, file: Path, progress: Progress | None = None) -> Index:
    """List a source into ``file``, which appears whole or not at all.

    Args:
        source: What is listed; its names must be distinct.
        file: The index to write; one that exists is replaced.
        progress: Called with the number of images found so far, now and then.

    Raises:
        DataError: The source cannot be listed, or holds no image.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        _write(source, temporary, progress)
        _seal(temporary)
        temporary.replace(file)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            _body(temporary).unlink(missing_ok=True)
    return Index(file)


def _body(file: Path) -> Path:
    return file.with_name(file.name + ".body")


def _write(source: Source, file: Path, progress: Progress | None) -> None:
    """Write the entries first, since the metadata, which comes before them, follows from them."""
    collect = _Collect()
    body = _body(file)
    entries = iter(source.entries())
    with contextlib.ExitStack() as stack:
        writer = None
        while batch := list(islice(entries, BATCH)):
            table = collect.table(batch)
            if writer is None:
                writer = stack.enter_context(pa.ipc.new_stream(str(body), table.schema))
            writer.write_batch(table)
            if progress is not None and len(batch) == BATCH:
                progress(collect.count)
    info = source.info()
    known = [str(name) for name in info.options.get("classes", [])]
    classes, places = collect.classes(known)
    meta = {
        "format": FORMAT,
        "info": asdict(info),
        "state": source.state(),
        "classes": classes,
        "folders": None if len(collect.folders) > MOST_FOLDERS else dict(collect.folders),
        "others": dict(getattr(source, "others", {})),
    }
    schema = collect.schema.with_metadata({KEY: json.dumps(meta).encode()})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        if collect.count:
            with pa.memory_map(str(body)) as mapped, pa.ipc.open_stream(mapped) as batches:
                for batch in batches:
                    writer.write_batch(_renumber(batch, places, schema))


def _renumber(batch: pa.RecordBatch, places: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
    """Give the labels of a batch the numbers of the sorted classes."""
    columns = list(batch.columns)
    if "label" in schema.names:
        at = schema.names.index("label")
        columns[at] = pa.array(places[columns[at].to_numpy()], pa.int32())
    return pa.RecordBatch.from_arrays(columns, schema=schema)


class _Collect:
    """Turns entries into record batches, and counts what the metadata tells."""

    def __init__(self) -> None:
        self.count = 0
        self.folders: Counter[str] = Counter()
        self._labels: dict[str, int] = {}
        self._placed: bool | None = None
        self.schema = pa.schema([("name", pa.binary()), ("rank", pa.uint64())])

    def table(self, entries: Sequence[Entry]) -> pa.RecordBatch:
        """Return a batch of entries; the first decides whether there are places to keep."""
        if self._placed is None:
            self._placed = any(entry[1:] != (0, 0, -1, None) for entry in entries)
            if self._placed:
                fields = [("part", pa.int32()), ("at", pa.int64()), ("size", pa.int64())]
                for name, kind in [*fields, ("label", pa.int32())]:
                    self.schema = self.schema.append(pa.field(name, kind))
        self.count += len(entries)
        if len(self.folders) <= MOST_FOLDERS:
            self.folders.update(e.name.split("/", 1)[0] if "/" in e.name else "" for e in entries)
        names = [os.fsencode(entry.name) for entry in entries]
        hashes = b"".join(hashlib.sha256(name).digest()[:8] for name in names)
        ranks = np.frombuffer(hashes, ">u8").astype(np.uint64)
        columns: list[Any] = [pa.array(names, pa.binary()), pa.array(ranks)]
        if self._placed:
            columns += [pa.array([entry.part for entry in entries], pa.int32())]
            columns += [pa.array([entry.at for entry in entries], pa.int64())]
            columns += [pa.array([entry.size for entry in entries], pa.int64())]
            columns += [pa.array([self._place(entry.label) for entry in entries], pa.int32())]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def classes(self, known: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Return the classes in order, and the place of each label as numbered; -1 stays -1."""
        names = list(known) + in_order([name for name in self._labels if name not in known])
        where = {name: i for i, name in enumerate(names)}
        return names, np.array([*(where[name] for name in self._labels), -1], np.int32)

    def _place(self, label: str | None) -> int:
        return -1 if label is None else self._labels.setdefault(label, len(self._labels))


def in_order(names: Sequence[str]) -> list[str]:
    """Sort the names of classes: by number where all are numbers, else by letters."""
    if all(name.lstrip("-").isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)
