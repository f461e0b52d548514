"""Data as YOLO lays it out: a data.yaml, images, and a .txt of boxes for each."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from simmim.data.sources.boxes import NEGATIVE, SHARES, UNKNOWN, is_sound
from simmim.data.sources.folder import FolderSource
from simmim.data.sources.source import Entry, Source, SourceInfo, stamps
from simmim.data.sources.tables.image_table import plain_path
from simmim.data.sources.tally import Tally
from simmim.errors import DataError

ABOVE = 3
"""Folders above one of images in which its data.yaml may be."""
PIXELS = 2.0
"""A number in a box from which on it can be no share of an image."""


def yolo_source(where: str) -> "YoloSource | None":
    """Return the source that a data.yaml, its folder, or one of its folders of images stands for.

    The first two stand for the images that are trained on.

    Raises:
        DataError: The file is damaged, or names no folder that is there.
    """
    path = Path(where).absolute()
    if path.suffix.lower() in (".yaml", ".yml"):
        return _part(path, "train")
    if not path.is_dir():
        return None
    file = _yaml_in(path)
    if file is not None:
        return _part(file, "train")
    folder = path / "images" if (path / "images").is_dir() else path
    for above in list(folder.parents)[:ABOVE]:
        file = _yaml_in(above)
        if file is not None:
            return YoloSource(file, [folder], _read(file)[1])
    return None


def folders_to_measure_on(data: Sequence[str]) -> list[str]:
    """Return the images that the data.yaml, or those of a folder, names for measuring; or none."""
    found = []
    for where in data:
        path = Path(where).absolute()
        file = path if path.suffix.lower() in (".yaml", ".yml") else _yaml_in(path)
        source = None if file is None else _part(file, "val", needed=False)
        found += [] if source is None else [str(root) for root in source.roots]
    return found


def _yaml_in(folder: Path) -> Path | None:
    """Return the file of a folder that names classes and images, if there is one."""
    for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            told = yaml.safe_load(file.read_text("utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(told, dict) and "names" in told and "train" in told:
            return file
    return None


def _read(file: Path) -> tuple[dict[str, Any], list[str]]:
    """Return what a data.yaml says, and the names of its classes."""
    try:
        told = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"cannot read {file}: {error}.") from error
    names = told.get("names") if isinstance(told, dict) else None
    if isinstance(names, dict):
        if not all(isinstance(key, int) for key in names):
            raise DataError(f"{file}: the keys of its names are not all whole numbers.")
        names = [names.get(key, key) for key in range(max(names, default=-1) + 1)]
    if not isinstance(names, list) or not names:
        raise DataError(
            f"{file} gives no names of classes, as a data.yaml of YOLO does: train: a folder of "
            "images, and names: a list."
        )
    return told, [str(name) for name in names]


def _part(file: Path, part: str, *, needed: bool = True) -> "YoloSource | None":
    """Return the source of one of the parts that a data.yaml names."""
    told, names = _read(file)
    given = told.get(part) or []
    roots = [
        _found(file, told, str(each)) for each in ([given] if isinstance(given, str) else given)
    ]
    if not roots and needed:
        raise DataError(f"{file} names no folder of images as {part}.")
    return YoloSource(file, roots, names) if roots else None


def _found(file: Path, told: dict[str, Any], given: str) -> Path:
    """Return where a folder, or a list, of images is."""
    base = file.parent / str(told.get("path") or "")
    tried = [base / given, file.parent / given]
    # So Roboflow writes them, for a folder beside the file.
    tried += [file.parent / given.removeprefix("../")]
    for path in tried:
        if path.exists():
            return Path(os.path.normpath(path))
    raise DataError(
        f"{file} names {given}, and there is nothing at "
        f"{', '.join(dict.fromkeys(map(str, tried)))}."
    )


@dataclass
class YoloSource(Source):
    """Lists the images in some folders, with the boxes in the .txt of each; without one, none.

    The .txt of IMAGES/…/images/x.jpg is IMAGES/…/labels/x.txt; where no folder is called images,
    it lies beside the image. A line is a class and the centre and size of a box, or a class and the
    corners of a polygon, as shares of the sides of the image.
    """

    file: Path
    roots: list[Path]
    names: list[str]
    _tally: Tally = field(default_factory=Tally)

    @cached_property
    def _base(self) -> Path:
        return self.file.parent.absolute()

    def state(self) -> list[Any]:
        """See ``Source``; over all images' names and what their .txt were last."""
        digest = hashlib.sha256()
        for path in self._images():
            text = _text_of(path)
            try:
                status = text.stat()
                last = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:
                last = ""
            digest.update(os.fsencode(path) + f"\0{last}\0".encode())
        return [*stamps([self.file])[0], digest.hexdigest()]

    def info(self) -> SourceInfo:
        """See ``Source``."""
        options = {"categories": self.names, "negative": self._tally.sentence(NEGATIVE)}
        where = ", ".join(map(str, self.roots))
        return SourceInfo("yolo", where, [str(self._base)], options, self._tally.notes())

    def entries(self) -> Iterator[Entry]:
        """See ``Source``."""
        self._tally = Tally()
        for path in self._images():
            name = plain_path(str(path), self._base, windows=False)
            found = list(self._objects(_text_of(path)))
            boxes = (value for box, _ in found for value in box)
            masks = tuple(mask for _, mask in found)
            outlined = masks if any(masks) else None
            yield Entry(name, at=1, boxes=(*SHARES, *boxes), masks=outlined)

    def _images(self) -> Iterator[Path]:
        for root in self.roots:
            if root.is_dir():
                yield from (root / entry.name for entry in FolderSource(root).entries())
                continue
            try:
                lines = root.read_text("utf-8").splitlines()
            except (OSError, ValueError) as error:
                raise DataError(f"cannot read {root}: {error}.") from error
            named = (line.strip() for line in lines)
            yield from (Path(os.path.normpath(root.parent / line)) for line in named if line)

    def _objects(self, file: Path) -> Iterator[tuple[tuple[float, ...], str]]:
        """Yield the box of each object, and its polygon as JSON, where it has one."""
        try:
            lines = file.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {file}: {error}.") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            kind, corners, polygon = _line(line, f"{file}, line {number}")
            such = f"line {number} of {plain_path(str(file), self._base, windows=False)}"
            if not 0 <= kind < len(self.names):
                self._tally.add(UNKNOWN, such, f"class {kind:g}")
            elif is_sound(corners, SHARES, self._tally, such):
                yield (*corners, kind, 0), json.dumps([polygon]) if polygon else ""


def _line(text: str, where: str) -> tuple[float, tuple[float, ...], list[float]]:
    """Return class; left, top, right and bottom; and the polygon that they are of, if any.

    Raises:
        DataError: It is no line of YOLO's.
    """
    try:
        kind, *values = map(float, text.split())
    except ValueError:
        kind, values = 0.5, []
    if not kind.is_integer() or not (
        len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0)
    ):
        raise DataError(
            f"{where}: {text[:60]!r} is no box; YOLO's are a class number and four shares of the "
            "image: the centre, right and down, the width and the height."
        )
    if max(map(abs, values)) >= PIXELS:
        raise DataError(
            f"{where}: {text[:60]!r} is in pixels, it seems; YOLO's boxes are shares of the "
            "image's sides, from 0 to 1."
        )
    if len(values) > 4:
        x, y = values[0::2], values[1::2]
        return kind, (min(x), min(y), max(x), max(y)), values
    x, y, width, height = values
    return kind, (x - width / 2, y - height / 2, x + width / 2, y + height / 2), []


def _text_of(image: Path) -> Path:
    folders = list(image.parts[:-1])
    for place in range(len(folders) - 1, -1, -1):
        if folders[place] == "images":
            folders[place] = "labels"
            break
    return Path(*folders, image.stem + ".txt")
