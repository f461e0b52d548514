"""Rows of lists: CSV, tab-separated text and JSON lines, read one by one."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from simmim.data.sources.classes import CAPTIONS, Reader, one_class
from simmim.data.sources.tally import Tally
from simmim.errors import DataError

PATH_COLUMNS = (
    *("path", "image_path", "file_name", "filename", "file", "filepath", "file_path"),
    *("image", "img", "url", "image_url", "name"),
)
"""Names of a column of paths, the likeliest first."""
LABEL_COLUMNS = ("label", "class", "category", "target", "class_name", "y")
"""Names of a column of labels, the likeliest first."""
JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
OTHERS = "labels are taken from the column {such}"
HEADER = 1 << 16
"""Most characters of the first line of a table."""


class Row(NamedTuple):
    """A row of a list.

    Attributes:
        line: Its line in the file.
        path: As it is given.
        label: What the reader makes of it, or None.
        caption: What its column of captions holds.
    """

    line: int
    path: str
    label: Any
    caption: Any


def read_rows(
    file: Path,
    tally: Tally | None = None,
    read: Reader = one_class,
    labels: str | None = None,
) -> Iterator[Row]:
    """Yield the rows, without reading the whole file.

    CSV has a header, and commas, semicolons or tabs; JSON lines, or a JSON list, hold objects. A
    table without a column of labels has no labels; a row without one has None.

    Args:
        file: The table.
        tally: Told of labels that are none, and of further columns of them.
        read: Reads a label.
        labels: Name of their column; None: one of the usual names.

    Raises:
        DataError: No such file, no column of paths, or a damaged row; the message names the line.
    """
    tally = Tally() if tally is None else tally
    columns: tuple[str, str | None, str | None] | None = None
    for line, row in _rows(file):
        if columns is None:
            columns = _columns(file, line, row, tally, labels)
        path, label, caption = (None if name is None else row.get(name) for name in columns)
        if not isinstance(path, str) or not path.strip():
            raise DataError(
                f"{file}, line {line}: no path in column {columns[0]!r}, but {path!r}. Fill it in, "
                f"or take the row out."
            )
        try:
            found = read(label, tally, path.strip())
        except ValueError as error:
            raise DataError(
                f"{file}, line {line}: column {columns[1]!r} has {error}. Mend the row, take it "
                "out, or name the column otherwise."
            ) from error
        yield Row(line, path.strip(), found, caption)


def _columns(
    file: Path, line: int, row: dict[str, Any], tally: Tally, asked: str | None
) -> tuple[str, str | None, str | None]:
    path = next(named(row, PATH_COLUMNS), None)
    if path is None:
        raise DataError(
            f"{file}, line {1 if line <= 2 else line}: no column of paths; it has {_listed(row)}, "
            f"one of {', '.join(PATH_COLUMNS)} is needed."
        )
    if asked is not None and asked not in row:
        raise DataError(f"{file}: no column {asked!r}; it has {_listed(row)}.")
    known = [asked] if asked is not None else named(row, LABEL_COLUMNS)
    labels = [name for name in known if name != path]
    if len(labels) > 1:
        others = ", ".join(map(repr, labels[1:]))
        tally.add(OTHERS, f"{labels[0]!r}, and not from {others}")
    label = labels[0] if labels else None
    captions = (name for name in named(row, CAPTIONS) if name not in (path, label))
    return path, label, next(captions, None)


def _listed(row: dict[str, Any]) -> str:
    return ", ".join(repr(str(name))[:40] for name in list(row)[:12])


def named(columns: Iterable[Any], known: Iterable[str]) -> Iterator[str]:
    """Yield the columns of known names in whatever case, the likeliest first."""
    given = [name for name in columns if name is not None]
    names = {str(name).strip().lower(): name for name in reversed(given)}
    return (names[name] for name in known if name in names)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with file.open(encoding=_encoding(file), newline="") as stream:
            if file.suffix.lower() in JSON_ENDINGS:
                yield from _json_rows(file, stream)
            else:
                yield from _csv_rows(file, stream)
    except UnicodeError as error:
        raise DataError(
            f"{file} is not text in UTF-8 ({error}); save it as `CSV UTF-8`, or convert it with "
            f"iconv."
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}.") from error


def _encoding(file: Path) -> str:
    with file.open("rb") as stream:
        mark = stream.read(2)
    return "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _csv_rows(file: Path, stream: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    header = stream.readline(HEADER)
    stream.seek(0)
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(stream, delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num + 1}: {error}.") from error


def _json_rows(file: Path, stream: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    start = stream.readline(HEADER)
    stream.seek(0)
    if start.lstrip().startswith("["):
        yield from _json_list(file, stream)
        return
    for line, content in enumerate(stream, 1):
        if content.strip():
            yield line, _object(file, f"line {line}", _parsed(file, line, content))


def _json_list(file: Path, stream: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, each in enumerate(_parsed(file, 1, stream.read()), 1):
        yield number, _object(file, f"item {number}", each)


def _parsed(file: Path, line: int, content: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}, line {line}: not JSON ({error}).") from error


def _object(file: Path, where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{file}, {where}: an object with a path is needed, such as {{'path': …}}.")
    return row
