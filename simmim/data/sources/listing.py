"""Chosen images of one or more sources: their names, and how each is read."""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, overload

import numpy as np

from simmim.data.formats.image_file import ImageFile, UnreadableError
from simmim.data.sources.boxes import SHARES, Boxes
from simmim.data.sources.index import Index
from simmim.data.sources.open import open_reader
from simmim.data.sources.segmentation import decode_mask
from simmim.data.sources.source import Entry, Reader, SourceInfo, missing
from simmim.errors import DataError

Rows = Sequence[int] | np.ndarray

ANNOTATED = {
    "maps": "folders of images and masks side by side, COCO's json with segmentations, and tables "
    "with a column of masks",
    "boxes": "COCO's json, YOLO's data.yaml and Pascal VOC's folders, asked for boxes,",
    "masks": "COCO's json whose objects have a segmentation, and YOLO's polygons,",
    "captions": "tables with a column of captions, and shards with .txt files,",
}
"""What has annotations of each kind, for a message."""


BACKGROUND = "background"
"""What is outside of all shapes of an image."""


class Without(Sequence[int]):
    """The numbers below ``count`` without a few: nothing of the size of ``count`` is stored."""

    def __init__(self, count: int, left_out: Iterable[int]) -> None:
        self._total = count
        self.left_out = np.array(sorted(set(left_out)), np.int64)
        self._shift = self.left_out - np.arange(len(self.left_out))

    def __len__(self) -> int:
        return self._total - len(self.left_out)

    def __getitem__(self, i: int) -> int:  # type: ignore[override]
        if not 0 <= i < len(self):
            raise IndexError(i)
        return i + int(np.searchsorted(self._shift, i, side="right"))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # noqa: FBT001
        return np.delete(np.arange(self._total), self.left_out).astype(dtype or np.int64)


class Listing(Sequence[str]):
    """Names of chosen images, which it also reads.

    Where there are several sources, each name begins with a short name of its source. A listing
    can be sent to another process, which opens the files anew.
    """

    def __init__(self, indexes: Sequence[Index], rows: Rows | None = None) -> None:
        """Choose images.

        Args:
            indexes: The sources.
            rows: Which of their images, counted over all sources; None: all of them.
        """
        self.indexes = list(indexes)
        self._starts = list(accumulate((len(index) for index in self.indexes), initial=0))
        self._rows: Rows = range(int(self._starts[-1])) if rows is None else rows
        self._readers: dict[int, Reader] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> "Listing": ...
    def __getitem__(self, i: int | slice) -> "str | Listing":
        """The name of an image, or a part of the listing."""
        if isinstance(i, slice):
            return self.select(range(*i.indices(len(self))))
        which, row = self._find(i)
        return self.prefixes[which] + self.indexes[which].name(row)

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """The same names in the same order, whether a listing or a list."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Listing({len(self):,} images of {self.where})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, ([(str(each.file), each.sha256) for each in self.indexes], self._rows)

    @property
    def infos(self) -> list[SourceInfo]:
        """The sources."""
        return [index.info for index in self.indexes]

    @property
    def rows(self) -> list[int]:
        """Places of the images among all of the sources."""
        return [int(row) for row in np.asarray(self._rows)]

    @property
    def where(self) -> str:
        """The sources in words."""
        return ", ".join(index.info.where for index in self.indexes)

    @property
    def parts(self) -> list[str]:
        """The folders of a source that are parts of a split; none where there are more sources."""
        return self.indexes[0].parts if len(self.indexes) == 1 else []

    def read(self, i: int) -> bytes:
        """Return an image as it is stored; see ``Reader`` for what is raised."""
        reader, entry = self._reader(i)
        return reader.read(entry)

    def open(self, i: int) -> ImageFile:
        """Open an image; see ``Reader`` for what is raised."""
        reader, entry = self._reader(i)
        return reader.open(entry)

    def gone(self, i: int) -> str | None:
        """Return the folder or file that image ``i`` is in, where all of that is gone."""
        which, row = self._find(i)
        return missing(self.indexes[which].info, self.indexes[which].entry(row).part)

    @property
    def prefetches(self) -> bool:
        """Whether it helps to tell what will be read next."""
        return any(info.kind == "remote" for info in self.infos)

    def prefetch(self, places: Sequence[int]) -> None:
        """Tell the sources what will be read next; those where it helps ask for it all at once."""
        wanted: dict[int, list[Entry]] = {}
        for i in places:
            which, row = self._find(i)
            wanted.setdefault(which, []).append(self.indexes[which].entry(row))
        for which, entries in wanted.items():
            self._reader_of(which).prefetch(entries)

    def entry(self, i: int) -> Entry:
        """All that the index knows of an image; the name is that within its source."""
        which, row = self._find(i)
        return self.indexes[which].entry(row)

    def source_of(self, i: int) -> int:
        """The number of the source that an image is of."""
        return self._find(i)[0]

    def label(self, i: int) -> str | None:
        """The class of an image, where its source tells it."""
        which, row = self._find(i)
        return self.indexes[which].label(row)

    def caption(self, i: int) -> str | None:
        """What is said of an image, where its source does."""
        which, row = self._find(i)
        return self.indexes[which].value("caption", row)

    def boxes(self, i: int) -> Boxes:
        """The objects in an image, where its source tells them; see ``categories``."""
        which, row = self._find(i)
        boxes = Boxes.of(self.indexes[which].value("boxes", row) or (0, 0))
        names = self._told_categories(which)
        if names == self.categories[: len(names)]:
            return boxes
        places = np.array([self.categories.index(name) for name in names], np.int64)
        return replace(boxes, categories=places[boxes.categories])

    def outlines(self, i: int) -> list[str]:
        """A segmentation of each object of ``boxes``, as ``Entry`` tells it."""
        which, row = self._find(i)
        return self.indexes[which].value("masks", row) or [""] * len(self.boxes(i).corners)

    def masks(self, i: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """Yield the mask (h, w) of each object of ``boxes``; an empty one where none is told.

        Args:
            i: The place of the image.
            size: Height and width that boxes are counted in; of the image, where these are shares.

        Raises:
            UnreadableError: A mask is damaged, or of another size.
        """
        sides = size[::-1] if self.boxes(i).frame == SHARES else (1, 1)
        for number, text in enumerate(self.outlines(i), 1):
            told = json.loads(text or "[]")
            if sides != (1, 1):
                told = [[x * sides[k % 2] for k, x in enumerate(polygon)] for polygon in told]
            try:
                yield decode_mask(told, size)
            except ValueError as error:
                raise UnreadableError(f"the mask of its object {number}: {error}") from error

    def map(self, i: int) -> np.ndarray | None:
        """The label map (h, w) of an image, int32; None where it has none.

        Raises:
            UnreadableError: It cannot be had, or is none.
            OSError: The storage fails, which says nothing about the image.
        """
        which, row = self._find(i)
        index = self.indexes[which]
        entry = index.entry(row)._replace(shapes=index.value("shapes", row))
        values = self._reader_of(which).map(entry)
        own = _map_names(self._told_categories(which)) if index.named else []
        if values is None or own == self.map_names[: len(own)]:
            return values
        places = np.array([self.map_names.index(name) for name in own], np.int32)
        return np.where(values < 0, values, places[values.clip(0)])

    @cached_property
    def map_names(self) -> list[str]:
        """Names of the values of label maps, from 0; [] where the sources name none."""
        named = any(index.named for index in self.indexes)
        return list(dict.fromkeys(_map_names(self.categories))) if named else []

    @cached_property
    def categories(self) -> list[str]:
        """Names of the categories of boxes, or of masks, of all sources."""
        every = [name for k in range(len(self.indexes)) for name in self._told_categories(k)]
        return list(dict.fromkeys(every))

    @cached_property
    def most_boxes(self) -> int:
        """The largest number of boxes in an image of the sources."""
        return max(index.most_boxes for index in self.indexes)

    def check_has(self, annotation: str) -> None:
        """Raise ``DataError`` where a source has no maps, boxes, masks or captions, as is asked.

        Nor may boxes have a negative width or height: nobody can tell what was meant.
        """
        for index in self.indexes:
            negative = index.info.options.get("negative") if annotation == "boxes" else ""
            if negative:
                raise DataError(f"{index.info.where}: {negative}. Correct them, or take them out.")
            if annotation not in index.annotations:
                raise DataError(
                    f"{index.info.where} has no {annotation}: {ANNOTATED[annotation]} do."
                )
        if annotation == "maps" and len({index.named for index in self.indexes}) > 1:
            raise DataError(
                f"of {self.where} some have masks of named categories (COCO's json), others masks "
                "of numbers, and nothing tells which is which. Learn from one kind at a time."
            )

    def select(self, rows: Sequence[int] | np.ndarray) -> "Listing":
        """Return the images at these places of this listing, in this order."""
        if self._whole:
            return Listing(self.indexes, rows)
        return Listing(self.indexes, np.asarray(self._rows)[np.asarray(rows, np.int64)])

    def without(self, places: Iterable[int]) -> "Listing":
        """Return the listing without the images at a few places."""
        left = Without(len(self), places)
        if self._whole:
            return Listing(self.indexes, left)
        return self.select(np.asarray(left))

    def lowest(self, count: int) -> list[int]:
        """Return the places of ``count`` images in the order of their ranks: a fixed sample."""
        best = np.empty(0, np.uint64), np.empty(0, np.int64)
        start = 0
        for chunk in self._ranks():
            ranks = np.concatenate([best[0], chunk])
            places = np.concatenate([best[1], np.arange(start, start + len(chunk))])
            start += len(chunk)
            if len(ranks) > count:
                chosen = np.argpartition(ranks, count - 1)[:count] if count else []
                ranks, places = ranks[chosen], places[chosen]
            best = ranks, places
        return best[1][np.lexsort((best[1], best[0]))].tolist()

    def sample(self, count: int) -> "Listing":
        """Return a sample of at most ``count`` images that hangs on their names alone."""
        return self.select(self.lowest(min(count, len(self))))

    def counts(self) -> list[int]:
        """Return how many of the images each source has; they must lie one source after another."""
        if self._whole:
            return [len(index) for index in self.indexes]
        if isinstance(self._rows, Without):
            out = np.searchsorted(self._rows.left_out, self._starts)
            return [int(n) for n in np.diff(self._starts) - np.diff(out)]
        which = np.searchsorted(self._starts, np.asarray(self._rows), side="right") - 1
        return [int(n) for n in np.bincount(which, minlength=len(self.indexes))]

    def fingerprint(self) -> str:
        """Return a hash over which images these are and when they last changed, in hexadecimal.

        It is the same on every machine. Where files tell their own times, those of their folders
        are left out, which hang on when one looks.
        """
        digest = hashlib.sha256()
        for which, index in enumerate(self.indexes):
            stamped = len(index) and self._reader_of(which).stamp(index.entry(0)) is not None
            state = None if stamped else index.state
            facts = {"info": vars(index.info), "state": state, "images": len(index)}
            digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
        for i in range(len(self)):
            reader, entry = self._reader(i)
            digest.update(os.fsencode(self[i]) + b"\0" + repr(reader.stamp(entry)).encode())
        return digest.hexdigest()

    def _ranks(self) -> Iterator[np.ndarray]:
        """Yield the ranks of the images of the listing, in pieces."""
        ranks = (chunk for index in self.indexes for chunk in index.ranks())
        yield from ranks if self._whole else [np.concatenate(list(ranks))[np.asarray(self._rows)]]

    @property
    def _whole(self) -> bool:
        return isinstance(self._rows, range) and self._rows == range(int(self._starts[-1]))

    def _find(self, i: int) -> tuple[int, int]:
        row = int(self._rows[i])
        which = bisect_right(self._starts, row) - 1
        return which, row - self._starts[which]

    def _reader(self, i: int) -> tuple[Reader, Entry]:
        which, row = self._find(i)
        return self._reader_of(which), self.indexes[which].entry(row)

    def _reader_of(self, which: int) -> Reader:
        if which not in self._readers:
            self._readers[which] = open_reader(self.indexes[which].info)
        return self._readers[which]

    def _told_categories(self, which: int) -> list[str]:
        return self.indexes[which].info.options.get("categories", [])

    @cached_property
    def prefixes(self) -> list[str]:
        """What each source's names begin with here."""
        if len(self.indexes) == 1:
            return [""]
        prefixes: list[str] = []
        for index in self.indexes:
            name = PurePosixPath(index.info.where).name or index.info.kind
            number = sum(prefix.split("/")[0].split("~")[0] == name for prefix in prefixes)
            prefixes.append(f"{name}~{number + 1}/" if number else f"{name}/")
        return prefixes


def _map_names(categories: Sequence[str]) -> list[str]:
    """Name the values of maps that are drawn of categories; one may be the background itself."""
    return [BACKGROUND, *(BACKGROUND if c.lower() == BACKGROUND else c for c in categories)]


def _again(files: list[tuple[str, str]], rows: Rows) -> Listing:
    return Listing([Index(Path(file), sha256) for file, sha256 in files], rows)
