"""What a source of images is: something that lists them once, and reads any of them again."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simmim.data.formats.decode import inspect
from simmim.data.formats.image_file import ImageFile
from simmim.data.sources.places import is_elsewhere
from simmim.errors import DataError


class Entry(NamedTuple):
    """One image of a source.

    Attributes:
        name: Unique in its source, with slashes; what messages and the quarantine show.
        part: Which file of the source it is in: a place in ``SourceInfo.parts``.
        at: Where in that file; its meaning is the reader's business. 64 bits.
        size: Its bytes in that file; the reader's business too. 64 bits; -1: not known.
        label: Its class, where the source tells one.
        caption: What is said of it, where the source does.
        boxes: Where the source tells the objects in it: height and width of the image (0: not
            told), then left, top, right, bottom, category and crowd (0 or 1) of each.
        masks: Where the source tells outlines of these objects: a segmentation of COCO's for each,
            as JSON, in the units of its box; empty for one that has none.
        shapes: What its label map is drawn from, where it has to be: JSON, the reader's business.
    """

    name: str
    part: int = 0
    at: int = 0
    size: int = -1
    label: str | None = None
    caption: str | None = None
    boxes: tuple[float, ...] | None = None
    masks: tuple[str, ...] | None = None
    shapes: str | None = None


@dataclass(frozen=True)
class SourceInfo:
    """What is needed to read a source again; it is kept in the index as JSON.

    Attributes:
        kind: A key of ``simmim.data.sources.open.KINDS``.
        where: The source as the user gave it; absolute where it is a path.
        parts: Its files: absolute paths or URLs.
        options: What else its reader wants; `classes` gives the order of the labels, `maps` tells
            that it has label maps.
        notes: What the user should know: all that is left out, guessed or changed, how many
            and why; a sentence each, without a full stop.
    """

    kind: str
    where: str
    parts: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def missing(info: SourceInfo, part: int) -> str | None:
    """Return the folder or file of a source that is not there any more, as a whole.

    A folder without anything in it is what is left of one that is not mounted. Of what is not on
    this machine's disks nothing is known.
    """
    bases = [SourceInfo(**base) for base in info.options.get("bases", ())]  # of tiles
    places = [place for base in bases for place in base.parts] or info.parts[part : part + 1]
    for place in places:
        if is_elsewhere(place):
            continue
        path = Path(place)
        try:
            there = path.stat() and (not path.is_dir() or any(path.iterdir()))
        except OSError:
            there = False
        if not there:
            return place
    return None


class Source:
    """Lists images."""

    def state(self) -> Any:
        """Return JSON, quickly, that differs whenever the list may have changed."""
        raise NotImplementedError

    def entries(self) -> Iterator[Entry]:
        """Yield all images in an order that depends on nothing but the source.

        Raises:
            DataError: The source cannot be listed.
        """
        raise NotImplementedError

    def info(self) -> SourceInfo:
        """Return what a reader needs; asked for after ``entries`` came to its end."""
        raise NotImplementedError

    def unchanged(self, state: Any) -> bool:
        """Tell whether the list is still that of an earlier ``state``."""
        return json.loads(json.dumps(self.state())) == state

    @property
    def packed(self) -> str:
        """See ``Index``."""
        return ""

    @property
    def others(self) -> Counter[str]:
        """Files that are no images, by kind."""
        return Counter()

    @property
    def folders(self) -> Sequence[str]:
        """Names of the folders in the source, whether they hold images or not."""
        return ()


class Reader:
    """Reads images of a source; made anew in each process from a ``SourceInfo``."""

    def read(self, entry: Entry) -> bytes:
        """Return the encoded image.

        Raises:
            UnreadableError: This image cannot be had.
            OSError: The storage fails, which says nothing about the image.
        """
        raise NotImplementedError

    def open(self, entry: Entry) -> ImageFile:
        """Read the header of the image; the pixels follow when they are asked for.

        Raises:
            UnreadableError: This image cannot be had, or is none.
            OSError: The storage fails, which says nothing about the image.
        """
        return inspect(self.read(entry))

    def open_large(self, entry: Entry) -> ImageFile:
        """Open the image for reading parts of it, however large it is, where that can be."""
        return self.open(entry)

    def map(self, entry: Entry) -> np.ndarray | None:
        """Return the label map (h, w) of the image, int32; None where it has none; see ``open``."""
        del entry
        return None

    def stamp(self, entry: Entry) -> tuple[int, int] | None:
        """Return size and time of change of the image; None: only the source's state tells."""
        del entry
        return None

    def prefetch(self, entries: Sequence[Entry]) -> None:
        """Hear which images will be read next."""


def stamps(files: Iterable[Path]) -> list[list[Any]]:
    """Return path, size and time of change of each file: a state for ``Source``.

    Raises:
        DataError: One of them cannot be found.
    """
    found = []
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}.") from error
        found.append([str(file), status.st_size, status.st_mtime_ns])
    return found
