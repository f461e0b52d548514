"""Data as Pascal VOC lays it out: images, and an .xml of boxes for each."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from simmim.data.formats.endings import is_image
from simmim.data.sources.boxes import NEGATIVE, is_sound
from simmim.data.sources.source import Entry, Source, SourceInfo
from simmim.data.sources.tally import Tally
from simmim.errors import DataError

IMAGES = ("JPEGImages", "images", "Images", ".")
ANNOTATIONS = ("Annotations", "annotations", ".")
"""Folders of each, in the folder of the data."""
LISTED = ("ImageSets", "Main")
"""Where lists of images are, in the folder of the data: a name, without its ending, a line."""

NO_FILE = "{n} image{s} without an .xml {are} left out, such as {such}"
NO_IMAGE = "{n} .xml of no image that is there {are} left out, such as {such}"
DIFFICULT = "{n} box{es} called difficult {are} neither learned from nor judged by, such as {such}"


def voc_source(where: str) -> "VocSource | None":
    """Return the source that a folder of Pascal VOC stands for, or one of its lists; else None."""
    path = Path(where).absolute()
    if path.suffix == ".txt" and path.parts[-3:-1] == LISTED:
        source = voc_source(str(path.parents[2]))
        return None if source is None else VocSource(source.root, source.images, source.xmls, path)
    if not path.is_dir():
        return None
    for folder in ANNOTATIONS:
        if next((path / folder).glob("*.xml"), None) is None:
            continue
        for images in IMAGES:
            if (path / images).is_dir() and any(map(is_image, os.listdir(path / images))):  # noqa: PTH208
                return VocSource(path, Path(images), Path(folder))
    return None


@dataclass
class VocSource(Source):
    """Lists the images that have an .xml of the same name, with their boxes.

    Corners are counted from 1, and the last row and column belong to a box, as VOC defines them;
    here they are counted from 0, and the right and bottom edges are told.
    """

    root: Path
    images: Path
    """Relative to the root."""
    xmls: Path
    """Relative to the root."""
    listed: Path | None = None
    """A list of names, one a line; None: all."""
    _tally: Tally = field(default_factory=Tally)
    _categories: list[str] = field(default_factory=list)

    def state(self) -> list[Any]:
        """See ``Source``; over the names of all images, and what their .xml were last."""
        digest = hashlib.sha256()
        files = [*self._xml_files.values(), *([self.listed] if self.listed else [])]
        for file in files:
            status = file.stat()
            told = f"\0{status.st_size} {status.st_mtime_ns}\0"
            digest.update(os.fsencode(file) + told.encode())
        for name in self._image_files.values():
            digest.update(os.fsencode(name) + b"\0")
        return [str(self.root), digest.hexdigest()]

    def info(self) -> SourceInfo:
        """See ``Source``."""
        options = {"categories": self._categories, "negative": self._tally.sentence(NEGATIVE)}
        where = str(self.listed or self.root)
        return SourceInfo("voc", where, [str(self.root)], options, self._tally.notes())

    def entries(self) -> Iterator[Entry]:
        """See ``Source``; categories are those of the whole folder, by name."""
        self._tally = Tally()
        chosen = self._chosen()
        found = {stem: self._objects(file) for stem, file in self._xml_files.items()}
        self._categories = sorted({each[0] for _, objects in found.values() for each in objects})
        place = {name: k for k, name in enumerate(self._categories)}
        for stem in sorted(chosen):
            name = self._image_files.get(stem)
            if name is None:
                self._tally.add(NO_IMAGE, f"{stem}.xml")
            elif stem not in found:
                self._tally.add(NO_FILE, name)
            else:
                frame, objects = found[stem]
                boxes: list[float] = []
                for number, (kind, difficult, corners) in enumerate(objects, 1):
                    such = f"object {number} of {stem}.xml"
                    if is_sound(corners, frame, self._tally, such):
                        boxes += (*corners, place[kind], difficult)
                        if difficult:
                            self._tally.add(DIFFICULT, such)
                yield Entry((self.images / name).as_posix(), at=1, boxes=(*frame, *boxes))

    def _chosen(self) -> set[str]:
        if self.listed is None:
            return set(self._image_files) | set(self._xml_files)
        try:
            lines = self.listed.read_text("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {self.listed}: {error}.") from error
        # The lists of one class, such as cat_train.txt, tell by a second word where it is in.
        return {line.split()[0] for line in lines if line.split()}

    @cached_property
    def _image_files(self) -> dict[str, str]:
        """The images, by their names without endings."""
        names = sorted(filter(is_image, os.listdir(self.root / self.images)))  # noqa: PTH208
        return {name.rpartition(".")[0]: name for name in names}

    @cached_property
    def _xml_files(self) -> dict[str, Path]:
        return {file.stem: file for file in sorted((self.root / self.xmls).glob("*.xml"))}

    def _objects(
        self, file: Path
    ) -> tuple[tuple[int, int], list[tuple[str, bool, tuple[float, ...]]]]:
        """Return height and width of an image, and category, difficulty and corners of objects.

        Raises:
            DataError: It is no .xml of VOC's.
        """
        try:
            tree = ElementTree.parse(file).getroot()
            frame = [int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width")]
            objects = [_object(each) for each in tree.iter("object")]
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}.") from error
        except (ElementTree.ParseError, ValueError) as error:
            raise DataError(
                f"{file} is no annotation of Pascal VOC's, which has objects with a name and a "
                f"bndbox of xmin, ymin, xmax and ymax: {error}."
            ) from error
        return (frame[0], frame[1]), objects


def _object(found: ElementTree.Element) -> tuple[str, bool, tuple[float, ...]]:
    name = (found.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    corners = [found.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if None in corners:
        raise ValueError(f"the object {name} has no whole bndbox")
    left, top, right, bottom = (float(each or "") for each in corners)
    return (
        name,
        (found.findtext("difficult") or "0").strip() == "1",
        (left - 1, top - 1, right, bottom),
    )
