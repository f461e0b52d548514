"""Classes of images: from their folders, or from a table."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from simmim.data.find import folder_of
from simmim.errors import DataError

PATH_COLUMNS = ("path", "image_path", "file_name", "filename", "file", "image", "name")
LABEL_COLUMNS = ("label", "class", "category", "target", "class_name", "y")
PARTS = frozenset(
    {
        *("train", "training", "val", "valid", "validation", "test", "testing"),
        *("unlabeled", "unlabelled"),
    }
)
"""Names of folders that split a data set, and are no classes."""
IN_FOLDERS = 0.95
"""Share of the images that must lie in folders for these to be classes."""


@dataclass(frozen=True)
class Labels:
    """Classes, and which images have one.

    Attributes:
        classes: Names, in numeric order where all are numbers, else by letters.
        of: Relative path → index in ``classes``; images without a label are not in it.
    """

    classes: list[str]
    of: dict[str, int]


def class_folders(paths: list[str]) -> Labels | None:
    """Take the first folder of each path for its class.

    Returns:
        None unless nearly all images lie in one of at least two folders, of two images on
        average, and these are not the parts of a split such as train and val.
    """
    names = {path: path.split("/", 1)[0] for path in paths if "/" in path}
    folders = set(names.values())
    if len(folders) < 2 or 2 * len(folders) > len(names):
        return None
    if len(names) < IN_FOLDERS * len(paths) or {name.lower() for name in folders} <= PARTS:
        return None
    return _labels(names)


def read_labels(file: Path, root: Path, paths: list[str]) -> Labels:
    """Read a table with a column of paths and a column of labels.

    CSV with a header (commas, semicolons or tabs), or JSON lines (`.jsonl`, `.ndjson`). A path may
    be relative to ``root`` or to the table's folder, absolute, or a bare file name where only one
    image has it. Rows about other images are passed over.

    Args:
        file: The table.
        root: Folder that ``paths`` are relative to, or the one image.
        paths: Relative paths of the images.

    Raises:
        DataError: No such file or column, a damaged or empty value, two labels for one image, or
            no row about any of the images; the message names line and column.
    """
    if not file.is_file():
        raise DataError(f"there is no table of labels {file}.")
    find = _Finder(file, folder_of(root), paths)
    names: dict[str, str] = {}
    example = ""
    for line, given, label in _rows(file):
        path = find(given)
        example = example or given
        if path is None:
            continue
        if names.setdefault(path, label) != label:
            raise DataError(
                f"{file}, line {line}: {given} has the label {label!r} here and {names[path]!r} "
                f"before; an image has one label."
            )
    if not names:
        raise DataError(
            f"{file} says nothing about the images in {root}: its paths are like {example!r}, "
            f"those of the images like {paths[0] if paths else '(none)'!r}."
        )
    return _labels(names)


def _labels(names: dict[str, str]) -> Labels:
    classes = sorted(set(names.values()))
    if all(name.lstrip("-").isdecimal() for name in classes):
        classes.sort(key=int)
    index = {name: i for i, name in enumerate(classes)}
    return Labels(classes, {path: index[name] for path, name in names.items()})


class _Finder:
    """Finds the image that a table's path means."""

    def __init__(self, file: Path, folder: Path, paths: list[str]) -> None:
        self._table = file.absolute().parent
        self._folder = folder.absolute()
        self._paths = set(paths)
        self._by_name: dict[str, str | None] = {}
        for path in paths:
            name = path.rsplit("/", 1)[-1]
            self._by_name[name] = None if name in self._by_name else path

    def __call__(self, given: str) -> str | None:
        plain = PurePosixPath(given.replace("\\", "/"))
        if str(plain) in self._paths:
            return str(plain)
        for whole in (self._folder / plain, self._table / plain):
            if whole.is_relative_to(self._folder):
                path = whole.relative_to(self._folder).as_posix()
                if path in self._paths:
                    return path
        return self._by_name.get(str(plain))


def _rows(file: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, path and label of each row."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file} as UTF-8 text: {error}.") from error
    rows = _json_rows if file.suffix.lower() in (".jsonl", ".ndjson", ".json") else _csv_rows
    columns: tuple[str, str] | None = None
    for line, row in rows(file, text):
        if columns is None:
            columns = (
                _column(file, row, PATH_COLUMNS, "paths"),
                _column(file, row, LABEL_COLUMNS, "labels"),
            )
        values = [row.get(column) for column in columns]
        for column, value in zip(columns, values, strict=True):
            if value is None or isinstance(value, (dict, list)) or not str(value).strip():
                raise DataError(f"{file}, line {line}: nothing usable in column {column!r}.")
        yield line, str(values[0]).strip(), str(values[1]).strip()
    if columns is None:
        raise DataError(f"{file} has no rows.")


def _csv_rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}.") from error


def _json_rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    for line, content in enumerate(text.splitlines(), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except ValueError as error:
            raise DataError(f"{file}, line {line}: not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {line}: an object with a path and a label is needed.")
        yield line, row


def _column(file: Path, row: dict[str, object], known: tuple[str, ...], what: str) -> str:
    names = {str(name).strip().lower(): name for name in row if name is not None}
    for name in known:
        if name in names:
            return str(names[name])
    raise DataError(
        f"{file}, line 1: no column of {what}; it has {', '.join(map(repr, row))}, one of "
        f"{', '.join(known)} is needed."
    )
