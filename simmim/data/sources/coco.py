"""Data in COCO's json: its images, their boxes and masks, and their captions."""

import codecs
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from simmim.data.sources.boxes import NEGATIVE, UNKNOWN, is_sound
from simmim.data.sources.classes import caption_text
from simmim.data.sources.segmentation import told_mask
from simmim.data.sources.source import Entry, Source, SourceInfo, stamps
from simmim.data.sources.tables.image_table import TRIED, find_base, plain_path
from simmim.data.sources.tally import Tally
from simmim.errors import DataError

CHUNK = 1 << 20
"""Bytes that are read at once."""
LONGEST = 1 << 26
"""Most characters of one image or annotation."""


AGAIN = "{n} entries name an image again"
NO_IMAGE = "{n} annotation{s} of no image that is listed {are} left out, such as {such}"
NO_BOX = "{n} annotation{s} without a box {are} left out, such as {such}"


def coco_source(where: str) -> "CocoSource | None":
    """Return the source that a COCO json stands for; None for other files."""
    path = Path(where)
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    with path.open("rb") as stream:
        if not stream.read(CHUNK).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return None
    try:
        first = next(objects(path, "images"), None)
    except DataError:
        return CocoSource(path)  # which tells what is wrong when it is listed
    return CocoSource(path) if first is not None and "file_name" in first else None


class Listed(NamedTuple):
    """An image: its name, its place in the file's list, and height and width (0: not told)."""

    name: str
    number: int
    frame: tuple[int, int]


@dataclass
class CocoSource(Source):
    """Lists the images of a COCO json, with their boxes, of which no labels are made.

    A box has the place of its category among all, by their numbers in the file.
    """

    file: Path
    _tally: Tally = field(default_factory=Tally)

    def state(self) -> list[Any]:
        """See ``Source``."""
        return [*stamps([self.file])[0], str(self._base[0])]

    def info(self) -> SourceInfo:
        """See ``Source``."""
        where, base = str(self.file), str(self._base[0])
        options = {"categories": self._names, "negative": self._tally.sentence(NEGATIVE)}
        return SourceInfo("coco", where, [base], options, self._tally.notes())

    def entries(self) -> Iterator[Entry]:
        """See ``Source``."""
        self._tally = Tally()
        listed, of_id = self._images()
        boxes, masks, captions = self._annotations(of_id, [each.frame for each in listed])
        for place, (name, number, frame) in enumerate(listed):
            told = (*frame, *boxes.get(place, ())) if boxes else None
            caption = caption_text(captions.get(place), self._tally, name)
            outlines = tuple(masks.get(place, ()))
            outlined = outlines if any(outlines) else None
            yield Entry(name, 0, number, caption=caption, boxes=told, masks=outlined)

    def _images(self) -> tuple[list[Listed], dict[Any, int]]:
        """Return the images, and their places by the numbers that the file gives them."""
        places: dict[str, int] = {}
        of_id: dict[Any, int] = {}
        listed: list[Listed] = []
        for number, image in enumerate(objects(self.file, "images")):
            name = self.name(image, number)
            of_id[image.get("id", number)] = places.setdefault(name, len(places))
            if len(places) == len(listed):
                self._tally.add(AGAIN, name)
            else:
                height, width = (int(image.get(side) or 0) for side in ("height", "width"))
                listed.append(Listed(name, number, (height, width)))
        return listed, of_id

    def _annotations(
        self, of_id: dict[Any, int], frames: Sequence[tuple[int, int]]
    ) -> tuple[dict[int, "array[float]"], dict[int, list[str]], dict[int, list[str]]]:
        """Return the boxes, their masks, and the captions of images, by their places."""
        category = self._kinds
        boxes: dict[int, array[float]] = {}
        masks: dict[int, list[str]] = {}
        captions: dict[int, list[str]] = {}
        for each in objects(self.file, "annotations"):
            such = f"annotation {each.get('id')}"
            place, text = of_id.get(each.get("image_id")), each.get("caption")
            if place is None:
                self._tally.add(NO_IMAGE, such)
            elif isinstance(text, str):
                captions.setdefault(place, []).append(text)
            elif (box := _corners(each)) is None:
                self._tally.add(NO_BOX, such)
            elif (kind := category.get(each.get("category_id"))) is None:
                self._tally.add(UNKNOWN, such, f"category {each.get('category_id')}")
            elif is_sound(box, frames[place], self._tally, such):
                told = (*box, kind, bool(each.get("iscrowd")))
                boxes.setdefault(place, array("f")).extend(told)
                masks.setdefault(place, []).append(told_mask(each.get("segmentation")))
        return boxes, masks, captions

    def ids(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the numbers that the file gives to images and to categories, by their names."""
        images: dict[str, Any] = {}
        for number, image in enumerate(objects(self.file, "images")):
            images.setdefault(self.name(image, number), image.get("id", number))
        return images, {
            str(each.get("name", each.get("id"))): each.get("id") for each in self._categories
        }

    @cached_property
    def _categories(self) -> list[dict[str, Any]]:
        return sorted(objects(self.file, "categories"), key=lambda each: each.get("id", 0))

    @property
    def _kinds(self) -> dict[Any, int]:
        """The place of each category among all, by its number in the file."""
        return {each.get("id"): i for i, each in enumerate(self._categories)}

    @property
    def _names(self) -> list[str]:
        return [str(each.get("name", each.get("id"))) for each in self._categories]

    def name(self, image: dict[str, Any], number: int) -> str:
        """Return the name of an image in the listing."""
        base, windows = self._base
        return plain_path(_file_name(self.file, image, number), base, windows=windows)

    @cached_property
    def _base(self) -> tuple[Path, bool]:
        first = islice(objects(self.file, "images"), TRIED)
        rows = [_file_name(self.file, image, number) for number, image in enumerate(first)]
        if not rows:
            raise DataError(f'{self.file} lists no images under "images".')
        return find_base(rows, self.file, _candidates(self.file))


def _corners(annotation: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """Return left, top, right and bottom of a box; None where there is none."""
    try:
        x, y, width, height = map(float, annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        return None
    return x, y, x + width, y + height


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


def objects(file: Path, key: str) -> Iterator[dict[str, Any]]:
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
