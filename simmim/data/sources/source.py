"""What a source of images is: something that lists them once, and reads any of them again."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from simmim.data.formats.decode import inspect
from simmim.data.formats.image_file import Opened
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
    """

    name: str
    part: int = 0
    at: int = 0
    size: int = -1
    label: str | None = None


@dataclass(frozen=True)
class SourceInfo:
    """What is needed to read a source again; it is kept in the index as JSON.

    Attributes:
        kind: A key of ``simmim.data.sources.open.KINDS``.
        where: The source as the user gave it; absolute where it is a path.
        parts: Its files: absolute paths or URLs.
        options: What else its reader wants; `classes` gives the order of the labels.
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

    Args:
        info: The source.
        part: See ``Entry``.
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


class Source(Protocol):
    """Lists images."""

    def state(self) -> Any:
        """Return JSON, quickly, that differs whenever the list may have changed."""
        ...

    def entries(self) -> Iterator[Entry]:
        """Yield all images in an order that depends on nothing but the source.

        Raises:
            DataError: The source cannot be listed.
        """
        ...

    def info(self) -> SourceInfo:
        """Return what a reader needs; asked for after ``entries`` came to its end."""
        ...


class Reader(Protocol):
    """Reads images of a source; made anew in each process from a ``SourceInfo``."""

    def read(self, entry: Entry) -> bytes:
        """Return the encoded image.

        Raises:
            UnreadableError: This image cannot be had.
            OSError: The storage fails, which says nothing about the image.
        """
        ...

    def open(self, entry: Entry) -> Opened:
        """Read the header of the image; the pixels follow when they are asked for.

        Raises:
            UnreadableError: This image cannot be had, or is none.
            OSError: The storage fails, which says nothing about the image.
        """
        ...


class BytesReader:
    """A reader whose images are read whole before they are opened."""

    def read(self, entry: Entry) -> bytes:
        """See ``Reader``."""
        raise NotImplementedError

    def open(self, entry: Entry) -> Opened:
        """See ``Reader``."""
        return inspect(self.read(entry))


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
