"""Classes of images: from their folders, or from a table."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from simmim.data.sources.index import in_order
from simmim.data.sources.listing import Listing
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
        classes: Names, in numeric order where all are numbers, else by letters; or in the order
            that the source gives.
        images: What is labelled.
        rows: Places in ``images`` of the images that may have a class.
        of: Place in ``images`` → index in ``classes``, or None.
    """

    classes: list[str]
    images: Listing
    rows: Sequence[int]
    of: Callable[[int], int | None]

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yield place and class of all labelled images."""
        for row in self.rows:
            label = self.of(row)
            if label is not None:
                yield row, label

    def sample(self, most: int) -> tuple[Listing, list[int]]:
        """Return at most so many labelled images, a sample that hangs on names, and classes."""
        rows = np.asarray(self.rows)
        chosen = (int(rows[k]) for k in self.images.select(rows).lowest(most))
        found = [(row, label) for row in chosen if (label := self.of(row)) is not None]
        return self.images.select([row for row, _ in found]), [label for _, label in found]


def labels_of(images: Listing, table: Path | None = None) -> Labels | None:
    """Find the classes of images: in a table, else where their sources tell them, else by folders.

    Raises:
        DataError: See ``read_labels``.
    """
    if table is not None:
        return read_labels(table, images)
    return source_labels(images) or class_folders(images)


def source_labels(images: Listing) -> Labels | None:
    """Return what the sources tell of classes; None where one of them tells nothing."""
    if not all(index.labelled for index in images.indexes):
        return None
    known = [name for index in images.indexes for name in index.classes]
    classes = list(dict.fromkeys(known)) if len(images.indexes) == 1 else in_order(list(set(known)))
    place = {name: i for i, name in enumerate(classes)}

    def of(row: int) -> int | None:
        label = images.label(row)
        return None if label is None else place[label]

    return Labels(classes, images, range(len(images)), of)


def class_folders(images: Listing) -> Labels | None:
    """Take the first folder of each name for its class.

    Returns:
        None unless nearly all images lie in one of at least two folders, of two images on
        average, and these are not the parts of a split such as train and val.
    """
    if len(images.indexes) > 1 or images.indexes[0].folders is None:
        return None
    counts = dict(images.indexes[0].folders)
    loose = counts.pop("", 0)
    within = sum(counts.values())
    if len(counts) < 2 or 2 * len(counts) > within:
        return None
    if within < IN_FOLDERS * (within + loose) or {name.lower() for name in counts} <= PARTS:
        return None
    classes = in_order(list(counts))
    place = {name: i for i, name in enumerate(classes)}

    def of(row: int) -> int | None:
        folder, slash, _ = images[row].partition("/")
        return place[folder] if slash else None

    return Labels(classes, images, range(len(images)), of)


def read_labels(file: Path, images: Listing) -> Labels:
    """Read a table with a column of paths and a column of labels.

    CSV with a header (commas, semicolons or tabs), or JSON lines (`.jsonl`, `.ndjson`). A path may
    be the name of an image, relative to the table's folder, absolute, or a bare file name where
    only one image has it. Rows about other images are passed over.

    Args:
        file: The table.
        images: The images; nothing of their number is kept in memory.

    Raises:
        DataError: No such file or column, a damaged or empty value, two labels for one image, or
            no row about any of the images; the message names line and column.
    """
    if not file.is_file():
        raise DataError(f"there is no table of labels {file}.")
    rows = list(_rows(file))
    found = _find(file, rows, images)
    if not found:
        raise DataError(
            f"{file} says nothing about the images in {images.where}: its paths are like "
            f"{rows[0][1]!r}, those of the images like {images[0] if len(images) else '(none)'!r}."
        )
    names: dict[int, str] = {}
    for at, place in sorted(found.items()):
        line, given, label = rows[at]
        if names.setdefault(place, label) != label:
            raise DataError(
                f"{file}, line {line}: {given} has the label {label!r} here and {names[place]!r} "
                f"before; an image has one label."
            )
    classes = in_order(list(set(names.values())))
    number = {name: i for i, name in enumerate(classes)}
    numbers = {place: number[name] for place, name in names.items()}
    return Labels(classes, images, sorted(numbers), numbers.get)


def _find(file: Path, rows: list[tuple[int, str, str]], images: Listing) -> dict[int, int]:
    """Return the place of the image that each row of a table means, for those that mean one."""
    whole, bare = _wanted(file, rows, images)
    exact: dict[int, list[int]] = {}
    by_name: dict[str, int | None] = {}
    for place, name in enumerate(images):
        if name in whole:
            exact[place] = whole[name]
        last = name.rpartition("/")[2]
        if last in bare:
            by_name[last] = None if last in by_name else place
    found = {row: place for place, means in exact.items() for row in means}
    for name, place in by_name.items():
        if place is not None:
            found |= {row: place for row in bare[name] if row not in found}
    return found


def _wanted(
    file: Path, rows: list[tuple[int, str, str]], images: Listing
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Return the names that the rows of a table may mean: whole ones, and those of bare files."""
    table = file.absolute().parent
    info = images.infos[0]
    folder = Path(info.parts[0]) if info.kind == "folder" and len(images.infos) == 1 else None
    whole: dict[str, list[int]] = {}
    bare: dict[str, list[int]] = {}
    for row, (_, given, _) in enumerate(rows):
        plain = PurePosixPath(given.replace("\\", "/"))
        names = {str(plain)}
        if folder is not None:
            names |= {
                path.relative_to(folder).as_posix()
                for path in (folder / plain, table / plain)
                if path.is_relative_to(folder)
            }
        for name in names:
            whole.setdefault(name, []).append(row)
        if len(plain.parts) == 1:
            bare.setdefault(str(plain), []).append(row)
    return whole, bare


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
