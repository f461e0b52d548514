"""Classes of images: from their folders, or from a table."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from simmim.data.label_table import BARE, ONE_CLASS, UNCLEAR, LabelForm, LabelTable
from simmim.data.names import plain
from simmim.data.parts import Tree, repeated
from simmim.data.sources.index import Index, in_order
from simmim.data.sources.listing import Listing
from simmim.data.sources.tables.rows import LABEL_COLUMNS
from simmim.data.sources.tally import Tally
from simmim.errors import DataError

IN_FOLDERS = 0.95
"""Share of the images that must lie in folders for these to be classes."""
PACKED = ("zip", "tar")
"""Kinds of sources whose folders cannot be named as DATA."""
NAMED = 5
"""Folders or classes that a message names."""


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
    rows: Sequence[int] | np.ndarray
    of: Callable[[int], int | None]
    notes: list[str] = field(default_factory=list)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yield place and class of all labelled images."""
        for row in map(int, self.rows):
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
    return read_labels(table, images) if table is not None else _told(images, asked=False)


def needed_labels(images: Listing, table: Path | None = None) -> Labels:
    """Find the classes of images as ``labels_of`` does, where there must be some.

    Folders are classes here even if there is one of them only, or one image in each.

    Raises:
        DataError: There are none, and why; see ``read_labels`` too.
    """
    if table is not None:
        return read_labels(table, images)
    labels = _told(images, asked=True)
    if labels is None:
        raise DataError(_why_none(images))
    return labels


def check_classes(labels: Labels) -> None:
    """Raise ``DataError`` where all images are of one class, which nothing can be learned from."""
    used = {label for _, label in labels.pairs()}
    if len(used) > 1:
        return
    only = labels.classes[used.pop()]
    where, index = labels.images.where, labels.images.indexes[0]
    text = f"{where} has one class only, {only}, and two are needed at least"
    folders = Tree.of(index.inner or {}).folders
    packed = labels.images.infos[0].kind in PACKED
    if set(folders) == {only} and folders[only].folders and not packed:
        text += f"; if the folders in {only} are the classes, name {where}/{only} as DATA"
    raise DataError("; ".join([text, *labels.notes]) + ".")


def _told(images: Listing, *, asked: bool) -> Labels | None:
    """Find classes without a table that was named."""
    told = source_labels(images)
    if told is not None:
        return told
    table = images.infos[0].options.get("labels") if len(images.infos) == 1 else None
    if table is None:
        return class_folders(images, asked=asked)
    by_table = LabelTable(Path(table), images)
    if by_table.classes:
        return _by_table(by_table)
    labels = class_folders(images, asked=asked)
    if labels is not None:
        said = f"{table} gives no image a label, so that folders are the classes"
        labels.notes[:0] = [said, *by_table.notes()[:-1]]  # the last says the same again
    return labels


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

    notes = []
    without = sum(index.unlabelled for index in images.indexes)
    if without:
        notes.append(f"{without:,} of {sum(map(len, images.indexes)):,} images have no label")
    return Labels(classes, images, range(len(images)), of, notes)


def class_folders(images: Listing, *, asked: bool = False) -> Labels | None:
    """Take the first folder of each name for its class; in an archive, below what wraps it all.

    Args:
        images: The images.
        asked: Whether classes are needed: one folder will do then, and one image in each.

    Returns:
        None unless nearly all images lie in one of at least two folders, of two images on
        average, and these are not the parts of a split such as train and val.
    """
    index = images.indexes[0]
    if len(images.indexes) > 1 or index.folders is None or images.parts:
        return None
    first = index.folders
    if index.wrapper:
        folders = Tree.of(index.inner or {}).below(index.wrapper)
        first = {"": folders.loose} | {name: each.images for name, each in folders.folders.items()}
    counts = {name: count for name, count in first.items() if name and count}
    loose, within = first.get("", 0), sum(counts.values())
    if not counts or within < IN_FOLDERS * (within + loose):
        return None
    if not asked and (len(counts) < 2 or 2 * len(counts) > within):
        return None
    classes = in_order(list(counts))
    place = {name: i for i, name in enumerate(classes)}

    def of(row: int) -> int | None:
        path = index.inside(images[row]).removeprefix(index.wrapper)
        folder, slash, _ = path.partition("/")
        return place[folder] if slash else None

    names = [plain(name) for name in classes]  # which are written to files
    if index.packed:  # cat.tar beside dog.tar
        names = [re.sub(r"\.(tar|zip)$", "", name, flags=re.IGNORECASE) for name in names]
    return Labels(names, images, range(len(images)), of, _folder_notes(index))


def read_labels(file: Path, images: Listing) -> Labels:
    """Read a table with a column of paths and a column of labels.

    CSV with a header (commas, semicolons or tabs), or JSON lines (`.jsonl`, `.ndjson`). A path may
    be the name of an image, relative to the table's folder or to that of the images, absolute, or a
    bare file name where only one image has it. Rows about other images are passed over.

    Args:
        file: The table.
        images: The images; a few bytes are kept in memory for each, and nothing for each row.

    A row without a label says nothing.

    Raises:
        DataError: No such file or column, a damaged row, two labels for one image, or no row about
            any of the images; the message names the line.
    """
    return _by_table(_table(file, images, ONE_CLASS, None))


def known_values(
    images: Listing, table: Path | None, form: LabelForm, column: str | None
) -> tuple[list[int], list[Any], list[str]]:
    """Find what is known of images: places, the label of each, and what is left out or guessed.

    Args:
        images: The images.
        table: Tells their labels; None: their sources or folders do, by what these are called.
        form: What a label is.
        column: Name of the table's column of labels; None: one of the usual names.

    Raises:
        DataError: There are none, or not of this form; see ``read_labels`` too.
    """
    if table is not None:
        read = _table(table, images, form, column)
        rows = np.flatnonzero(read.numbers >= 0).tolist()
        return rows, [read.classes[read.numbers[row]] for row in rows], read.notes()
    if column is not None:
        raise DataError(f"--task.column {column} is a column of a table: name one by --labels.")
    labels, tally = needed_labels(images), Tally()
    values: list[Any] = []
    rows = []
    for row, label in labels.pairs():
        try:
            values.append(form.read(labels.classes[label], tally, images[row]))
        except ValueError as error:
            raise DataError(
                f"the label of {images[row]} is {error}. Name a table of labels by --labels."
            ) from error
        rows.append(row)
    return rows, values, [*labels.notes, *tally.notes()]


def _table(file: Path, images: Listing, form: LabelForm, column: str | None) -> LabelTable:
    """Read a table that labels some of the images; see ``read_labels``."""
    if not file.is_file():
        raise DataError(f"there is no table of labels {file}.")
    table = LabelTable(file, images, form, column)
    if table.classes:
        return table
    if not table.rows[""]:
        raise DataError(f"{file} has no rows.")
    if table.rows[BARE] == table.rows[""]:
        empty = "its column of labels is empty, or has another name than "
        why = table.tally.notes() or [empty + ", ".join(LABEL_COLUMNS)]
        raise DataError(f"{file} tells no labels: {'; '.join(why)}.")
    unclear = f", which {UNCLEAR}" if table.rows[UNCLEAR] else ""
    raise DataError(
        f"{file} says nothing about the images in {images.where}: its paths are like "
        f"{(table.such.get(UNCLEAR) or table.such[''])!r}{unclear}, those of the images like "
        f"{images[0] if len(images) else '(none)'!r}."
    )


def _by_table(table: LabelTable) -> Labels:
    numbers = table.numbers

    def of(row: int) -> int | None:
        return None if numbers[row] < 0 else int(numbers[row])

    rows = np.flatnonzero(numbers >= 0)
    return Labels(table.classes, table.images, rows, of, table.notes())


def _folder_notes(index: Index) -> list[str]:
    """What should be known where the first folders are classes."""
    counts = dict(index.folders or {})
    loose, notes = counts.pop("", 0), []
    if index.wrapper:
        notes.append(
            f"all images lie in {index.wrapper}, so that the folders in it are the classes"
        )
    empty = [name for name, count in counts.items() if not count]
    if loose:
        notes.append(f"{loose:,} of {len(index):,} images lie in no folder, and have no class")
    if empty:
        many = f"{len(empty):,} of {len(counts):,} folders hold no image, and are no classes"
        notes.append(f"{many}: {_listed(empty)}")
    often = repeated(index.inner or {})
    if often:
        notes.append(
            f"folders are the classes, though the same ones ({_listed(often)}) lie in them"
        )
    return notes


def _why_none(images: Listing) -> str:
    """Say why images have no labels, and what to do."""
    where, index = images.where, images.indexes[0]
    table = "name a CSV with a path and a label column by --labels"
    if all("maps" in each.annotations for each in images.indexes):
        return f"{where} has masks, which --task segment takes; for classes of images, {table}."
    if images.parts:
        return _in_parts(images)
    if index.folders is None:
        return f"the images in {where} lie in too many folders to be classes: {table}."
    loose, inside = index.folders.get("", 0), sorted(filter(None, index.folders))
    if loose == len(index):
        way = "put each class into a folder of its own"
        return f"the images in {where} have no labels: {way}, or {table}."
    return (
        f"{loose:,} of the {len(index):,} images in {where} lie in no folder, so that the folders "
        f"({_listed(inside)}) are not taken for classes: put each image into the folder of its "
        f"class, or {table}."
    )


def _in_parts(images: Listing) -> str:
    where, parts = images.where.rstrip("/"), images.parts
    text = f"{where} holds the parts of a split ({_listed(sorted(parts))})"
    if images.infos[0].kind in PACKED:
        return f"{text}: unpack it, and name one of them as DATA, and another by --val."
    return (
        f"{text}: name one of them as DATA, such as {where}/{parts[0]}, and another by --val, such "
        f"as {where}/{parts[1]}."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + ", …" * (len(names) > NAMED)
