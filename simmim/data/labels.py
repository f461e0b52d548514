"""Classes of images: from their folders, or from a table."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from simmim.data.sources.index import in_order
from simmim.data.sources.listing import Listing
from simmim.data.sources.rows import LABEL_COLUMNS, read_rows
from simmim.errors import DataError

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
        notes: What is left out or guessed, how many and why; see ``SourceInfo``.
    """

    classes: list[str]
    images: Listing
    rows: Sequence[int]
    of: Callable[[int], int | None]
    notes: list[str] = field(default_factory=list)

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

    # A name that is no UTF-8 could not be written to any file.
    names = [os.fsencode(name).decode(errors="backslashreplace") for name in classes]
    return Labels(names, images, range(len(images)), of)


def read_labels(file: Path, images: Listing) -> Labels:
    """Read a table with a column of paths and a column of labels.

    CSV with a header (commas, semicolons or tabs), or JSON lines (`.jsonl`, `.ndjson`). A path may
    be the name of an image, relative to the table's folder, absolute, or a bare file name where
    only one image has it. Rows about other images are passed over.

    Args:
        file: The table.
        images: The images; nothing of their number is kept in memory.

    A row without a label says nothing.

    Raises:
        DataError: No such file or column, a damaged row, two labels for one image, or no row about
            any of the images; the message names the line.
    """
    if not file.is_file():
        raise DataError(f"there is no table of labels {file}.")
    rows = list(read_rows(file))
    if not rows:
        raise DataError(f"{file} has no rows.")
    labelled = [(line, path, label) for line, path, label in rows if label is not None]
    if not labelled:
        raise DataError(
            f"{file} tells no labels: its column of labels is empty, or has another name than "
            f"{', '.join(LABEL_COLUMNS)}."
        )
    found = _find(file, rows := labelled, images)
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
