"""Detection data in COCO's json: its images, and their boxes."""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from simmim.data.sources.source import Entry, SourceInfo, stamps
from simmim.data.sources.tables.image_table import TRIED, TableReader, find_base, plain_path
from simmim.errors import DataError

CHUNK = 1 << 20
"""Bytes that are read at once."""
LONGEST = 1 << 26
"""Most characters of one image or annotation."""


@dataclass(frozen=True)
class Box:
    """An object in an image, in pixels of the stored image.

    Attributes:
        x: Left edge.
        y: Upper edge.
        width: Positive.
        height: Positive.
        category: Place in ``Coco.categories``.
        crowd: Whether the box holds a group that was not told apart.
    """

    x: float
    y: float
    width: float
    height: float
    category: int
    crowd: bool = False


@dataclass(frozen=True)
class CocoImage:
    """An image with its boxes; its name is that of its entry in a listing."""

    name: str
    height: int
    width: int
    boxes: list[Box] = field(default_factory=list)


@dataclass(frozen=True)
class Coco:
    """Images, boxes and the names of the categories, in the order of their numbers in the file.

    Attributes:
        images: In the order of the file.
        categories: Names; a box has a place in this list, whatever its number in the file.
        left_out: Boxes without area, or of an image or a category that is not there.
    """

    images: list[CocoImage]
    categories: list[str]
    left_out: int


def recognise(where: str) -> "CocoSource | None":
    """Return the source that a COCO json stands for; None for other files."""
    path = Path(where)
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    with path.open("rb") as stream:
        if not stream.read(CHUNK).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return None
    try:
        first = next(_objects(path, "images"), None)
    except DataError:
        return CocoSource(path)  # which tells what is wrong when it is listed
    return CocoSource(path) if first is not None and "file_name" in first else None


@dataclass
class CocoSource:
    """Lists the images of a COCO json. Boxes are no labels of images, and none are made of them."""

    file: Path
    _again: int = 0

    def state(self) -> list[Any]:
        """See ``Source``."""
        return [*stamps([self.file])[0], str(self._base[0])]

    def info(self) -> SourceInfo:
        """See ``Source``."""
        notes = [f"{self._again:,} entries name an image again"] if self._again else []
        return SourceInfo("coco", str(self.file), [str(self._base[0])], notes=notes)

    def entries(self) -> Iterator[Entry]:
        """See ``Source``."""
        seen: set[str] = set()
        for number, image in enumerate(_objects(self.file, "images")):
            name = self.name(image, number)
            if name in seen:
                self._again += 1
                continue
            seen.add(name)
            yield Entry(name, 0, number)

    def name(self, image: dict[str, Any], number: int) -> str:
        """Return the name of an image in the listing."""
        base, windows = self._base
        return plain_path(_file_name(self.file, image, number), base, windows=windows)

    @cached_property
    def _base(self) -> tuple[Path, bool]:
        first = islice(_objects(self.file, "images"), TRIED)
        rows = [_file_name(self.file, image, number) for number, image in enumerate(first)]
        if not rows:
            raise DataError(f'{self.file} lists no images under "images".')
        return find_base(rows, self.file, _candidates(self.file))


class CocoReader(TableReader):
    """Reads the images of a COCO json."""


def read_coco(file: str | Path) -> Coco:
    """Read a COCO json with its boxes.

    Raises:
        DataError: Not such a file, damaged, or its images are nowhere.
    """
    path = Path(file)
    source = CocoSource(path)
    categories = sorted(_objects(path, "categories"), key=lambda each: each.get("id", 0))
    place = {each.get("id"): i for i, each in enumerate(categories)}
    images: dict[Any, CocoImage] = {}
    for number, each in enumerate(_objects(path, "images")):
        height, width = (int(each.get(side) or 0) for side in ("height", "width"))
        images[each.get("id", number)] = CocoImage(source.name(each, number), height, width)
    left_out = 0
    for each in _objects(path, "annotations"):
        image, category = images.get(each.get("image_id")), place.get(each.get("category_id"))
        box = _box(each, category)
        if image is None or box is None:
            left_out += 1
        else:
            image.boxes.append(box)
    names = [str(each.get("name", each.get("id"))) for each in categories]
    return Coco(list(images.values()), names, left_out)


def _box(annotation: dict[str, Any], category: int | None) -> Box | None:
    try:
        x, y, width, height = map(float, annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        return None
    if category is None or not (width > 0 and height > 0):
        return None
    return Box(x, y, width, height, category, crowd=bool(annotation.get("iscrowd")))


def _file_name(file: Path, image: dict[str, Any], number: int) -> str:
    name = image.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise DataError(
            f'{file}: the image number {number} (id {image.get("id")!r}) has no "file_name".'
        )
    return name.strip()


def _candidates(file: Path) -> list[Path]:
    """Return the folders that images may be in, as COCO and its many relatives lay them out."""
    folder = file.absolute().parent
    words = [word for word in re.split(r"[_.\-]", file.stem) if word]
    names = ["images", *words, *(f"images/{word}" for word in words), "JPEGImages", "data"]
    parents = (folder, folder.parent)
    return [*parents, *(parent / name for name in names for parent in parents)]


def _objects(file: Path, key: str) -> Iterator[dict[str, Any]]:
    """Yield the objects in the list under a key, one by one: such files may have gigabytes."""
    decoder = json.JSONDecoder()
    try:
        with file.open("rb") as stream:
            start = _start(stream, key)
            if start is None:
                return
            stream.seek(start)
            decode = codecs.getincrementaldecoder("utf-8")()
            text, place = "", 0
            while True:
                place = _skip(text, place)
                if text[place : place + 1] == "]":
                    return
                try:
                    found, end = decoder.raw_decode(text, place)
                    if end == len(text):  # a number may go on
                        raise ValueError("cut off")  # noqa: TRY301
                except ValueError as error:
                    data = stream.read(CHUNK)
                    if not data or len(text) - place > LONGEST:
                        raise DataError(
                            f'{file} is damaged in its list of "{key}", before byte '
                            f"{stream.tell():,}: {error}."
                        ) from error
                    text, place = text[place:] + decode.decode(data), 0
                    continue
                place = end
                if not isinstance(found, dict):
                    raise DataError(f'{file}: the list "{key}" holds {found!r}, not objects.')
                yield found
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: {error}.") from error


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n,":
        place += 1
    return place


def _start(stream: Any, key: str) -> int | None:
    """Return the place after the bracket that opens the list under ``key``."""
    pattern = re.compile(rb'"' + key.encode() + rb'"\s*:\s*\[')
    kept, at = b"", 0
    while data := stream.read(CHUNK):
        match = pattern.search(kept + data)
        if match:
            return at - len(kept) + match.end()
        at += len(data)
        kept = data[-200:]
    return None
