"""Lists of images as data: each row names a file, and perhaps its label."""

import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from simmim.data.formats.decode import MAX_FILE
from simmim.data.formats.image_file import ImageFile
from simmim.data.sources.classes import caption_text
from simmim.data.sources.folder import FolderReader
from simmim.data.sources.remote.transfer import read_whole, scheme_of
from simmim.data.sources.source import Entry, Source, SourceInfo, stamps
from simmim.data.sources.tables.rows import JSON_ENDINGS, read_rows
from simmim.data.sources.tally import Tally
from simmim.errors import DataError

ENDINGS = (".csv", ".tsv", *JSON_ENDINGS)
METADATA = ("metadata.csv", "metadata.jsonl")
"""Lists that Hugging Face's folders of images have beside them."""
TRIED = 100
"""Rows whose files are looked for, to tell what the paths are relative to."""
RECENT = 1 << 17
"""Names that are held as they are before they join the sorted ones."""


def table_source(where: str) -> "TableSource | None":
    """Return the source that a list of images stands for; None for other files."""
    path = Path(where)
    return TableSource(path) if path.suffix.lower() in ENDINGS and path.is_file() else None


def find_metadata(folder: Path) -> Path | None:
    """Return the list of images that lies in a folder and says more of them, if there is one."""
    file = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    try:  # it may be anything's
        return file if file is not None and next(read_rows(file), None) else None
    except DataError:
        return None


@dataclass
class TableSource(Source):
    """Lists the images that a table names; rows that name one again are passed over.

    Paths are absolute, URLs, or relative to the table's folder, to `images` in it, to the folder
    above, or to the folder that the command runs in: the first where one of the first hundred
    files is. Files that are missing are found unreadable when they are read.
    """

    file: Path
    _again: int = 0
    _tally: Tally = field(default_factory=Tally)

    def state(self) -> list[Any]:
        """See ``Source``."""
        return [*stamps([self.file])[0], str(self._base[0])]

    def info(self) -> SourceInfo:
        """See ``Source``."""
        notes = [f"{self._again:,} rows name an image again"] if self._again else []
        notes += self._tally.notes()
        return SourceInfo("table", str(self.file), [str(self._base[0])], notes=notes)

    def entries(self) -> Iterator[Entry]:
        """See ``Source``."""
        base, windows = self._base
        self._again, self._tally = 0, Tally()
        names, pairs = _NameSet(), _NameSet()
        for line, given, label, caption in read_rows(self.file, self._tally):
            name = plain_path(given, base, windows=windows)
            same = pairs.add(f"{label}\0{name}")
            if names.add(name):
                self._again += 1
                if not same:
                    raise DataError(
                        f"{self.file}, line {line}: {given} has the label {label!r} here and "
                        f"another before; an image has one label."
                    )
                continue
            # The line, so that the index keeps labels even if the first rows have none.
            yield Entry(name, 0, line, -1, label, caption_text(caption, self._tally, name))

    @cached_property
    def _base(self) -> tuple[Path, bool]:
        """What paths are relative to, and whether backslashes in them mean folders."""
        rows = [row.path for row in islice(read_rows(self.file), TRIED)]
        if not rows:
            raise DataError(f"{self.file} has no rows.")
        return find_base(rows, self.file, candidates(self.file))


class TableReader(FolderReader):
    """Reads files by their paths, relative or absolute, or their URLs."""

    def read(self, entry: Entry) -> bytes:
        """See ``Reader``."""
        if scheme_of(entry.name):
            return read_whole(entry.name, MAX_FILE)
        return super().read(entry)

    def open_large(self, entry: Entry) -> ImageFile:
        """See ``FolderReader``; what a URL names is read whole."""
        return self.open(entry) if scheme_of(entry.name) else super().open_large(entry)

    def stamp(self, entry: Entry) -> tuple[int, int]:
        """See ``FolderReader``; nothing is known of what a URL names."""
        return (0, 0) if scheme_of(entry.name) else super().stamp(entry)


def candidates(file: Path) -> list[Path]:
    """Return the folders that the paths in a table may be relative to, the likeliest first."""
    folder = file.absolute().parent
    return list(dict.fromkeys([folder, folder / "images", folder.parent, Path.cwd()]))


def find_base(rows: list[str], file: Path, folders: list[Path]) -> tuple[Path, bool]:
    """Find what paths are relative to: where most of them are.

    Args:
        rows: Some of the paths.
        file: Where they come from, for the message.
        folders: The folders that they may be relative to; the first of equals is taken.

    Returns:
        The folder, and whether backslashes mean folders.

    Raises:
        DataError: None of the files is anywhere.
    """
    paths = [row for row in rows if not scheme_of(row) or row.startswith("file://")]
    counts: Counter[tuple[Path, bool]] = Counter()
    kinds = [False, True] if any("\\" in path for path in paths) else [False]
    for windows in kinds:
        for folder in folders:
            there = sum(_exists(folder / plain_path(p, folder, windows=windows)) for p in paths)
            counts[folder, windows] = there
    (best, count), *_ = sorted(counts.items(), key=lambda item: -item[1])
    if paths and not count:
        tried = ", ".join(str(folder) for folder in folders)
        raise DataError(
            f"none of the first {len(paths)} files that {file} names is there, such as "
            f"{paths[0]!r}; tried: as absolute paths, and relative to {tried}. Move the list to "
            f"the folder that its paths are relative to, or correct them."
        )
    return best


def plain_path(given: str, base: Path, *, windows: bool) -> str:
    """Return a path as it is listed: relative to ``base`` where it is below it; URLs stay."""
    if scheme_of(given) == "file":
        given = given.partition("://")[2]
    elif scheme_of(given):
        return given
    if windows:
        given = given.replace("\\", "/")
    # Not resolved: what links point to is nobody's business here. Two slashes mean one.
    return posixpath.normpath(given).replace("//", "/").removeprefix(f"{base}/")


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


@dataclass
class _NameSet:
    """Remembers texts by 64 bits of each: eight bytes, however many there are."""

    _recent: set[int] = field(default_factory=set)
    _sorted: list[np.ndarray] = field(default_factory=list)

    def add(self, text: str) -> bool:
        """Remember a text; tell whether it was here before."""
        key = hash(text) & (1 << 64) - 1
        if key in self._recent or any(_has(keys, key) for keys in self._sorted):
            return True
        self._recent.add(key)
        if len(self._recent) >= RECENT:
            self._join()
        return False

    def _join(self) -> None:
        keys = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
        self._recent = set()
        while self._sorted and len(self._sorted[-1]) <= len(keys):
            keys = np.sort(np.concatenate([self._sorted.pop(), keys]))
        self._sorted.append(keys)


def _has(keys: np.ndarray, key: int) -> bool:
    place = int(np.searchsorted(keys, np.uint64(key)))
    return place < len(keys) and int(keys[place]) == key
