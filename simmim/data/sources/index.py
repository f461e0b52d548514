"""The list of a source's images, as a memory-mapped file: millions of names, hardly any memory.

The file is an Arrow IPC file, which pyarrow, pandas, polars or DuckDB read too. Its columns: `name`
(bytes), `rank` (64 bits of the SHA-256 of the name: a fixed random order), and, unless the source
is a folder, `part`, `at`, `size`, `label` (see ``Entry``; a label is a place in `classes`, -1 for
none), and `caption`, `boxes`, `masks` and `shapes` where any image has them. Its metadata tells the
format, the source, its state, and the classes. A hash of all of it is compared before it is parsed
(``arrow_seal``).
"""

import contextlib
import hashlib
import json
import mmap
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from simmim.data.parts import LEVELS, find_parts, wrapper_of
from simmim.data.sources.arrow_seal import check, has_seal, seal
from simmim.data.sources.boxes import VALUES
from simmim.data.sources.source import Entry, Source, SourceInfo
from simmim.errors import DataError

FORMAT = 1
BATCH = 1 << 16
"""Images in a record batch."""
MOST_FOLDERS = 100_000
"""First folders that are counted, to tell whether they are classes."""
MOST_INNER = 10_000
"""Folders of some levels that are counted, to tell classes from parts of a split."""
NAMED = 5
"""Folders that a note names."""
SHARD = re.compile(r".*?\.(?:tar|zip)/", re.IGNORECASE | re.DOTALL)
"""What the name of an image begins with that is in one of several archives."""
KEY = b"simmim"
HEADER = b', "info": {"kind": "'
"""A part of the metadata, at the beginning and the end of the file."""
READS = 256
"""Look-ups after which pages of the file are given back; the system maps 16 for each of them."""

ANNOTATIONS = {
    "caption": pa.large_string(),
    "boxes": pa.list_(pa.float32()),
    "masks": pa.list_(pa.large_string()),
    "shapes": pa.large_string(),
}
"""Columns that an index has where any image has a value in them."""

Progress = Callable[[int], None]
"""Called with the number of images found so far."""


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
                self.sha256 = check(stream, sha256)
                self._mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._table = pa.ipc.open_file(pa.py_buffer(self._mapped)).read_all()
            meta = json.loads((self._table.schema.metadata or {})[KEY])
            if meta.get("format") != FORMAT:
                raise DataError(
                    f"{file} is an index of format {meta.get('format')}, and this simmim reads "
                    f"format {FORMAT}. Use the simmim that wrote it, or delete it."
                )
            self.info = SourceInfo(**meta["info"])
            self.classes: list[str] = meta["classes"]
            self.state: Any = meta["state"]
            self.unlabelled: int = meta["unlabelled"]
            """Images without a label."""
            self.packed: str = meta["packed"]
            """Whether the images are in an "archive", or in "shards" whose names are no folders."""
            self.folders: dict[str, int] | None = meta["folders"]
            """Images by the first folder of their names, 0 for one without images; None: too many
            folders to be classes."""
            self.inner: dict[str, int] | None = meta["inner"]
            """Images by their first ``LEVELS`` folders; None: too many to tell anything."""
            self.others: dict[str, int] = meta["others"]
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{file} is not a whole index of images: {error}.") from error
        self._placed = "part" in self._table.column_names
        sizes = [0, *(len(chunk) for chunk in self._table.column("rank").chunks)]
        self._starts = list(accumulate(sizes))

    def __len__(self) -> int:
        return self._table.num_rows

    def name(self, row: int) -> str:
        """The name of an image."""
        chunk, offset = self._find(row)
        return os.fsdecode(self._chunks["name"][chunk][offset].as_py())

    def entry(self, row: int) -> Entry:
        """What is known of an image, but for its caption, boxes, masks and shapes."""
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
        place = self._chunks["label"][chunk][offset].as_py()
        return None if place < 0 else self.classes[place]

    def value(self, column: str, row: int) -> Any:
        """The `caption`, `boxes`, `masks` or `shapes` of an image, where the source tells them."""
        if column not in self._chunks:
            return None
        chunk, offset = self._find(row)
        return self._chunks[column][chunk][offset].as_py()

    @cached_property
    def annotations(self) -> frozenset[str]:
        """What the source tells of its images beside labels: maps, boxes, masks, captions."""
        bases = self.info.options.get("bases", [vars(self.info)])
        told = {"captions": "caption", "boxes": "boxes", "masks": "masks"}
        found = {name for name, column in told.items() if column in self._chunks}
        # What COCO's masks are drawn from is not in the list of the tiles.
        drawn = self.info.kind == "tiles" and any(base["kind"] == "coco-masks" for base in bases)
        maps = not drawn and all(base["options"].get("maps") for base in bases)
        return frozenset(found | ({"maps"} if maps else set()))

    @cached_property
    def named(self) -> bool:
        """Whether its label maps are drawn, of categories with names."""
        return "shapes" in self._chunks

    @cached_property
    def most_boxes(self) -> int:
        """The largest number of boxes in an image."""
        offsets = [chunk.offsets.to_numpy() for chunk in self._chunks.get("boxes", [])]
        return max((int(np.diff(each).max(initial=0)) // VALUES for each in offsets), default=0)

    def ranks(self) -> Iterator[np.ndarray]:
        """Yield the ranks, uint64, in pieces."""
        for chunk in self._chunks["rank"]:
            yield chunk.to_numpy()
            self._let_go()

    @cached_property
    def parts(self) -> list[str]:
        """The folders that are parts of a split; see ``find_parts``."""
        return find_parts(self.inner or {})

    @cached_property
    def wrapper(self) -> str:
        """The folder that all of an archive was packed in, with its slash; "" if there is none."""
        return wrapper_of(self.inner or {}) if self.packed else ""

    def inside(self, name: str) -> str:
        """Return the name of an image without that of the shard it is in."""
        return _inside(name, self.packed)

    @cached_property
    def labelled(self) -> bool:
        """Whether the source tells the class of any image."""
        return self.unlabelled < len(self)

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

    @cached_property
    def _facts(self) -> dict[str, list[pa.Array]]:
        apart = ("rank", *ANNOTATIONS)
        return {name: chunks for name, chunks in self._chunks.items() if name not in apart}

    @cached_property
    def _chunks(self) -> dict[str, list[pa.Array]]:
        return {name: self._table.column(name).chunks for name in self._table.column_names}


def is_index(file: Path) -> bool:
    """Tell whether a file is a list of images that simmim wrote, whole or damaged."""
    try:
        with file.open("rb") as stream:
            return HEADER in stream.read(1 << 12) or has_seal(stream)
    except (OSError, ValueError):
        return False


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
        seal(temporary)
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
    packed = source.packed
    collect = _Collect(packed)
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
    if not classes:
        # Tiles have the notes of what they are cut from.
        info = replace(info, notes=list(dict.fromkeys([*info.notes, *collect.notes()])))
    meta = {
        "format": FORMAT,
        "info": asdict(info),
        "state": source.state(),
        "classes": classes,
        "unlabelled": collect.unlabelled,
        "packed": packed,
        "folders": collect.counts(source.folders),
        "inner": None if len(collect.inner) > MOST_INNER else dict(collect.inner),
        "others": dict(source.others),
    }
    unused = [name for name in ANNOTATIONS if not collect.told[name]]
    kept = [each for each in collect.schema if each.name not in unused]
    schema = pa.schema(kept).with_metadata({KEY: json.dumps(meta).encode()})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        if collect.count:
            with pa.memory_map(str(body)) as mapped, pa.ipc.open_stream(mapped) as batches:
                for batch in batches:
                    writer.write_batch(_renumber(batch, places, schema))


def _renumber(batch: pa.RecordBatch, places: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
    """Keep the columns of a schema, and give labels the numbers of the sorted classes."""
    columns: list[Any] = [batch.column(name) for name in schema.names]
    if "label" in schema.names:
        at = schema.names.index("label")
        columns[at] = pa.array(places[columns[at].to_numpy()], pa.int32())
    return pa.RecordBatch.from_arrays(columns, schema=schema)


_NO_PLACE = Entry("")[1:]


class _Collect:
    """Turns entries into record batches, and counts what the metadata tells."""

    def __init__(self, packed: str) -> None:
        self.count = 0
        self._packed = packed
        self.folders: Counter[str] = Counter()
        self.inner: Counter[str] = Counter()
        self.unlabelled = 0
        self.told = dict.fromkeys(ANNOTATIONS, False)
        """Whether any image has one."""
        self._labels: dict[str, int] = {}
        self._placed: bool | None = None
        self.schema = pa.schema([("name", pa.binary()), ("rank", pa.uint64())])

    def table(self, entries: Sequence[Entry]) -> pa.RecordBatch:
        """Return a batch of entries; the first decides whether there are places to keep."""
        if self._placed is None:
            self._placed = any(entry[1:] != _NO_PLACE for entry in entries)
            if self._placed:
                fields = [("part", pa.int32()), ("at", pa.int64()), ("size", pa.int64())]
                for name, kind in [*fields, ("label", pa.int32()), *ANNOTATIONS.items()]:
                    self.schema = self.schema.append(pa.field(name, kind))
        self.count += len(entries)
        paths = (_inside(entry.name, self._packed) for entry in entries)
        for folder, count in Counter(path.rpartition("/")[0] for path in paths).items():
            if len(self.folders) <= MOST_FOLDERS:
                self.folders[folder.partition("/")[0]] += count
            if len(self.inner) <= MOST_INNER:
                self.inner["/".join(folder.split("/", LEVELS)[:LEVELS])] += count
        self.unlabelled += sum(entry.label is None for entry in entries)
        names = [os.fsencode(entry.name) for entry in entries]
        hashes = b"".join(hashlib.sha256(name).digest()[:8] for name in names)
        ranks = np.frombuffer(hashes, ">u8").astype(np.uint64)
        columns: list[Any] = [pa.array(names, pa.binary()), pa.array(ranks)]
        if self._placed:
            columns += [pa.array([entry.part for entry in entries], pa.int32())]
            columns += [pa.array([entry.at for entry in entries], pa.int64())]
            columns += [pa.array([entry.size for entry in entries], pa.int64())]
            columns += [pa.array([self._place(entry.label) for entry in entries], pa.int32())]
            for name, kind in ANNOTATIONS.items():
                values = [getattr(entry, name) for entry in entries]
                self.told[name] = self.told[name] or any(value is not None for value in values)
                columns.append(pa.array(values, kind))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def counts(self, first: Sequence[str]) -> dict[str, int] | None:
        """Return the images in each first folder, 0 for those of ``first`` that hold none."""
        if len(self.folders) > MOST_FOLDERS:
            return None
        return {**dict.fromkeys(first, 0), **self.folders}

    def notes(self) -> list[str]:
        """See ``SourceInfo``."""
        parts = find_parts(self.inner) if len(self.inner) <= MOST_INNER else []
        if not parts:
            return []
        listed = ", ".join(parts[:NAMED]) + ", …" * (len(parts) > NAMED)
        return [f"{len(parts)} folders are taken for parts of a split, not for classes: {listed}"]

    def classes(self, known: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Return the classes in order, and the place of each label as numbered; -1 stays -1."""
        names = list(known) + in_order([name for name in self._labels if name not in known])
        where = {name: i for i, name in enumerate(names)}
        return names, np.array([*(where[name] for name in self._labels), -1], np.int32)

    def _place(self, label: str | None) -> int:
        return -1 if label is None else self._labels.setdefault(label, len(self._labels))


def _inside(name: str, packed: str) -> str:
    return SHARD.sub("", name, count=1) if packed == "shards" else name


def in_order(names: Sequence[str]) -> list[str]:
    """Sort the names of classes: by number where all are numbers, else by letters."""
    if all(name.lstrip("-").isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)
