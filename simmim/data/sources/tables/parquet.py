"""Images in Parquet and Arrow files, and in Hugging Face data sets, which are made of them.

A row is an image. Arrow files are mapped into memory, so that any row is at hand. Parquet is read
by row groups: a process holds those it used last, up to 128 MB of images, and always at least one.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simmim.data.formats.endings import is_image
from simmim.data.formats.image_file import UnreadableError
from simmim.data.formats.label_map import read_map
from simmim.data.sources.classes import caption_text, class_name
from simmim.data.sources.source import Entry, Reader, Source, SourceInfo, stamps
from simmim.data.sources.tables.columns import Columns, find_columns, image_bytes
from simmim.data.sources.tally import Tally
from simmim.errors import DataError

PARQUET, ARROW = (".parquet", ".pq"), (".arrow", ".feather", ".ipc")
HELD = 128 << 20
"""Bytes of images in row groups that a process holds."""
MOST_OPEN = 64
"""Files that a process holds open."""
NOTED = 4 << 20
"""Bytes of a row group from which the user is told that reading single images of it is slow."""
LOOKED_AT = 1000
"""Names in a folder that are looked at to tell what it holds."""
PARTITIONS = ("label=", "class=", "category=")
"""Beginnings of folder names that tell a label, as Hive, Spark and polars write them."""
DEPTH = 32
"""Bits of a place that count rows in a row group or record batch; the upper ones count these."""

NOWHERE = "__HIVE_DEFAULT_PARTITION__"
"""What Hive calls the folder of rows without a value."""
FOLDERS = "labels in {n} file{s} are taken from a column, and not from folders, such as {such}"


Opened = tuple[Columns, Callable[[int, str], pa.Array]]
"""The columns of a file, and what reads one, by its name, of a row group or record batch."""


class Batch(NamedTuple):
    """Rows of a row group or record batch; None where there is no such column."""

    rows: int
    labels: list[Any] | None
    captions: list[Any] | None
    classes: list[str]


def column_source(where: str) -> Source | None:
    """Return the source that a file or a folder of files stands for.

    Raises:
        DataError: A folder of the library `datasets` that lacks its files.
    """
    path = Path(where)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        head = stream.read(8)
    ending = path.suffix.lower()
    if ending in PARQUET or head[:4] == b"PAR1":
        return ColumnSource("parquet", where, path.parent, [path])
    if ending in ARROW or head[:6] == b"ARROW1":
        return ColumnSource("arrow", where, path.parent, [path])
    return None


@dataclass
class ColumnSource(Source):
    """Lists the rows of Parquet or Arrow files.

    A file among several that cannot be read is left out, and the note says so.
    """

    kind: str
    """`parquet` or `arrow`."""
    where: str
    root: Path
    """Folder that the names of the files are relative to."""
    files: list[Path]
    note: str = ""
    _guessed: list[str] = field(default_factory=list)
    _tally: Tally = field(default_factory=Tally)
    _classes: list[str] = field(default_factory=list)
    _bad: list[str] = field(default_factory=list)
    _masks: set[str | None] = field(default_factory=set)
    _group: int = 0
    _bytes: int = 0

    def state(self) -> list[list[Any]]:
        """See ``Source``."""
        return stamps(self.files)

    def info(self) -> SourceInfo:
        """See ``Source``."""
        notes = [self.note] if self.note else []
        notes += self._tally.notes() + self._guessed
        if self._bad:
            many = f"{len(self._bad)} of {len(self.files)} files"
            notes.append(f"{many} cannot be read and are left out: {self._bad[0]}")
        if self._group >= NOTED and self._bytes > HELD:
            notes.append(
                f"row groups hold up to {self._group >> 20} MB, and each image is read with all of "
                f"its group; `simmim shard` makes shards that are read faster"
            )
        options: dict[str, Any] = {"classes": self._classes} if self._classes else {}
        if self._masks and None not in self._masks:
            options["maps"] = True
            notes.append(f"masks are those in the column {self._masks.copy().pop()!r}")
        return SourceInfo(self.kind, self.where, [str(file) for file in self.files], options, notes)

    def entries(self) -> Iterator[Entry]:
        """See ``Source``."""
        self._tally, self._classes, self._guessed, self._bad = Tally(), [], [], []
        self._masks = set()
        self._group = self._bytes = 0
        for part, file in enumerate(self.files):
            try:
                yield from self._rows(part, file)
            except (pa.ArrowException, OSError, DataError) as error:
                text = str(error) if isinstance(error, DataError) else f"{file}: {_reason(error)}"
                if len(self.files) == 1:
                    raise DataError(f"cannot list {text.rstrip('.')}.") from error
                self._bad.append(text.rstrip("."))
        if self.files and len(self._bad) == len(self.files):
            raise DataError(f"none of the {len(self.files)} files can be read: {self._bad[0]}.")

    def _rows(self, part: int, file: Path) -> Iterator[Entry]:
        name = file.relative_to(self.root).as_posix()
        always = _partition(name)
        row, labelled = 0, False
        for number, batch in enumerate(self._batches(file)):
            labelled = labelled or batch.labels is not None
            for i in range(batch.rows):
                which = f"{name}#{row}"
                value = always if batch.labels is None else batch.labels[i]
                label = class_name(value, batch.classes, self._tally, which)
                told = None if batch.captions is None else batch.captions[i]
                text = caption_text(told, self._tally, which)
                yield Entry(which, part, number << DEPTH | i, -1, label, text)
                row += 1
        if labelled and always is not None:
            self._tally.add(FOLDERS, name)

    def _batches(self, file: Path) -> Iterator[Batch]:
        if self.kind == "arrow":
            yield from self._arrow(file)
            return
        with pq.ParquetFile(file) as opened:
            columns = self._columns(opened.schema_arrow, file)
            paths = [
                opened.metadata.schema.column(i).path for i in range(opened.metadata.num_columns)
            ]
            ours = [i for i, path in enumerate(paths) if path.split(".")[0] == columns.image]
            for number in range(opened.num_row_groups):
                group = opened.metadata.row_group(number)
                size = sum(group.column(i).total_uncompressed_size for i in ours)
                self._group, self._bytes = max(self._group, size), self._bytes + size
                read = opened.read_row_group(number, columns.told, use_threads=False)
                yield _batch(columns, group.num_rows, read)

    def _arrow(self, file: Path) -> Iterator[Batch]:
        with pa.memory_map(str(file)) as mapped:
            span = _span(mapped)
            reader = _open_arrow(mapped)
            columns = self._columns(reader.schema, file)
            stream = isinstance(reader, pa.RecordBatchStreamReader)
            batches = reader if stream else map(reader.get_batch, range(reader.num_record_batches))
            for batch in batches:
                if stream and _is_copy(batch.column(columns.image), span):
                    raise DataError(
                        f"{file} is a compressed Arrow stream, of which single rows cannot be "
                        f"read; write it as an Arrow file or as Parquet"
                    )
                yield _batch(columns, batch.num_rows, batch)

    def _columns(self, schema: pa.Schema, file: Path) -> Columns:
        columns = find_columns(schema, str(file))
        self._classes += [name for name in columns.classes if name not in self._classes]
        self._guessed += [note for note in columns.notes if note not in self._guessed]
        self._masks.add(columns.mask)
        return columns


def _batch(columns: Columns, count: int, table: pa.Table | pa.RecordBatch) -> Batch:
    labels, captions = (
        None if name is None else table.column(name).to_pylist()
        for name in (columns.label, columns.caption)
    )
    return Batch(count, labels, captions, columns.classes)


class _RowsReader(Reader):
    """Reads rows of files; what it holds is bounded and belongs to one process."""

    def __init__(self, info: SourceInfo) -> None:
        self._parts, self._has_maps = info.parts, info.options.get("maps", False)
        self._files: OrderedDict[int, Opened] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int, str], tuple[pa.Array, int]] = OrderedDict()
        self._process = os.getpid()

    def read(self, entry: Entry) -> bytes:
        """See ``Reader``."""
        return image_bytes(*self._value(entry, "image"))

    def map(self, entry: Entry) -> np.ndarray | None:
        """See ``Reader``."""
        value, *known = self._value(entry, "mask") if self._has_maps else (None,)
        empty = value is None or (isinstance(value, dict) and not any(value.values()))
        return None if empty else read_map(image_bytes(value, *known))

    def _value(self, entry: Entry, what: str) -> tuple[Any, str, pa.DataType]:
        """Return a value of the column of images or masks, its folder, and the column's type."""
        if self._process != os.getpid():
            self._files, self._groups = OrderedDict(), OrderedDict()
            self._process = os.getpid()
        file = self._parts[entry.part]
        try:
            group = self._group(entry.part, entry.at >> DEPTH, what)
            value = group[entry.at & (1 << DEPTH) - 1].as_py()
        except (FileNotFoundError, PermissionError, DataError) as error:
            raise UnreadableError(f"cannot be read: {file}: {_reason(error)}") from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise UnreadableError(f"damaged: {file}: {_reason(error)}") from error
        except (pa.ArrowException, IndexError) as error:
            raise UnreadableError(f"damaged: {file}: {_reason(error)}") from error
        return value, os.path.dirname(file), group.type  # noqa: PTH120

    def _group(self, part: int, number: int, what: str) -> pa.Array:
        """Return the column of images or masks of a row group."""
        key = (part, number, what)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key][0]
        if part not in self._files:
            self._files[part] = self._open(self._parts[part])
        self._files.move_to_end(part)
        while len(self._files) > MOST_OPEN:
            self._files.popitem(last=False)
        columns, read = self._files[part]
        group = read(number, getattr(columns, what))
        self._groups[key] = (group, group.nbytes)
        while len(self._groups) > 1 and sum(size for _, size in self._groups.values()) > HELD:
            self._groups.popitem(last=False)
        return group

    def _open(self, file: str) -> Opened:
        """Return the columns, and what reads one of a row group."""
        raise NotImplementedError


class ParquetReader(_RowsReader):
    """Reads rows of Parquet files."""

    def _open(self, file: str) -> Opened:
        # No threads: a worker is forked, and there is one for each core anyway.
        opened = pq.ParquetFile(file, pre_buffer=False, memory_map=False)
        columns = find_columns(opened.schema_arrow, file)
        return columns, lambda n, name: opened.read_row_group(n, [name], use_threads=False).column(
            0
        )


class ArrowReader(_RowsReader):
    """Reads rows of Arrow files: IPC files (Feather), and the streams that `datasets` writes."""

    def _open(self, file: str) -> Opened:
        reader = _open_arrow(pa.memory_map(file))
        columns = find_columns(reader.schema, file)
        if isinstance(reader, pa.RecordBatchStreamReader):
            batches = list(reader)
            return columns, lambda n, name: batches[n].column(name)

        def read(number: int, name: str) -> pa.Array:
            if number >= reader.num_record_batches:
                raise IndexError("the file has fewer rows than it had")
            return reader.get_batch(number).column(name)

        return columns, read


def _open_arrow(mapped: pa.MemoryMappedFile) -> Any:
    if mapped.read_at(6, 0) == b"ARROW1":
        return pa.ipc.open_file(mapped)
    return pa.ipc.open_stream(mapped)


def _span(mapped: pa.MemoryMappedFile) -> range:
    """Return the addresses that a file is mapped to."""
    start = mapped.read_buffer(mapped.size()).address if mapped.size() else 0
    mapped.seek(0)
    return range(start, start + mapped.size())


def _is_copy(column: pa.Array, span: range) -> bool:
    """Tell whether values are elsewhere than in the mapped file: they were compressed in it."""
    buffers = [buffer for buffer in column.buffers() if buffer is not None and buffer.size]
    return any(buffer.address not in span for buffer in buffers)


def _folder(path: Path) -> Source | None:
    splits = _json(path / "dataset_dict.json").get("splits")
    if isinstance(splits, list) and splits:
        return _split(path, [str(name) for name in splits])
    saved = _saved(path)
    if saved is not None:
        return ColumnSource("arrow", str(path), path, saved)
    files = _files_below(path)
    for kind, endings in (("parquet", PARQUET), ("arrow", ARROW)):
        chosen = [file for file in files if file.suffix.lower() in endings]
        if chosen:
            return ColumnSource(kind, str(path), path, chosen)
    return None


def _split(path: Path, splits: list[str]) -> Source:
    """Return the split to train on of a saved dictionary of data sets."""
    chosen = "train" if "train" in splits else splits[0]
    files = _saved(path / chosen)
    if files is None:
        raise DataError(f"{path / 'dataset_dict.json'} names {chosen}, which is not there.")
    others = ", ".join(str(path / name) for name in splits if name != chosen)
    note = f"of its splits only {chosen} is used; to use another: {others}" if others else ""
    return ColumnSource("arrow", str(path), path, files, note)


def _saved(path: Path) -> list[Path] | None:
    """Return the files of a data set that `save_to_disk` of the library `datasets` wrote."""
    listed = _json(path / "state.json").get("_data_files")
    if not isinstance(listed, list):
        return None
    files = [path / str(each["filename"]) for each in listed if isinstance(each, dict)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{path / 'state.json'} names {missing[0].name}, which is not there.")
    return files


def _files_below(path: Path) -> list[Path]:
    """Return all Parquet and Arrow files below a folder, unless it is a folder of image files."""
    looked, found = 0, False
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            looked += 1
            if is_image(name):
                return []
            found = found or _is_table(name)
        if looked > LOOKED_AT and not found:
            return []
        if found and Path(folder) != path and looked > LOOKED_AT:
            break
    return sorted(file for file in path.rglob("*") if _is_table(file.name)) if found else []


def _is_table(name: str) -> bool:
    # Files called cache-… hold results of `map`, which `datasets` keeps beside its data.
    hidden = name.startswith((".", "_", "cache-"))
    return not hidden and name.lower().endswith((*PARQUET, *ARROW))


def _partition(name: str) -> str | None:
    for folder in name.split("/")[:-1]:
        for start in PARTITIONS:
            if folder.lower().startswith(start):
                value = folder[len(start) :]
                return None if value in ("", NOWHERE) else value
    return None


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:160] or type(error).__name__
