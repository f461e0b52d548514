"""Masks in COCO's json: polygons and run-length codes, drawn into one label map for each image."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simmim.data.formats.image_file import UnreadableError
from simmim.data.sources.coco import NO_IMAGE, CocoSource, objects
from simmim.data.sources.segmentation import decode_mask
from simmim.data.sources.source import Entry, SourceInfo
from simmim.data.sources.tables.image_table import TableReader
from simmim.data.sources.tally import Tally
from simmim.errors import DataError
from simmim.tensors.batch import IGNORE

FARTHEST = 1e6
"""Pixels from the corner of an image, from which on a polygon is taken for nonsense."""

UNKNOWN = "{n} annotation{s} of a category that is not listed {are} left out, such as {such}"
NO_MASK = "{n} annotation{s} without a mask {are} left out, such as {such}"
UNSOUND = "{n} polygon{s} of fewer than three points, or beyond all bounds, {are} left out"
UNSOUND += ", such as one of {such}"
EMPTY = "{n} image{s} without a mask {are} background all over, such as {such}"

Shape = tuple[int, bool, Any]
"""Category, whether it is a crowd, and polygons or a run-length code."""


@dataclass
class CocoMasks(CocoSource):
    """Lists the images of a COCO json, with what is drawn into the label map of each."""

    def info(self) -> SourceInfo:
        """See ``Source``."""
        info = super().info()
        options = {"categories": self._names, "maps": True}
        return replace(info, kind="coco-masks", options=options)

    def entries(self) -> Iterator[Entry]:
        """See ``Source``."""
        self._tally = Tally()
        listed, of_id = self._images()
        shapes = self._shapes(of_id)
        if not shapes:
            raise DataError(
                f"{self.file} has no mask: none of its annotations of images that it lists has "
                'polygons or a run-length code under "segmentation".'
            )
        for place, (name, number, frame) in enumerate(listed):
            if place not in shapes:
                self._tally.add(EMPTY, name)
            shown = ",".join(shapes.pop(place, ()))
            yield Entry(name, 0, number, shapes=f"[{list(frame)},[{shown}]]")

    def _shapes(self, of_id: dict[Any, int]) -> dict[int, list[str]]:
        """Return what is drawn into each image, by its place: a ``Shape`` each, as JSON."""
        kinds, shapes = self._kinds, dict[int, list[str]]()
        for each in objects(self.file, "annotations"):
            such = f"annotation {each.get('id')}"
            place, kind = of_id.get(each.get("image_id")), kinds.get(each.get("category_id"))
            if place is None:
                self._tally.add(NO_IMAGE, such)
            elif kind is None:
                self._tally.add(UNKNOWN, such, f"category {each.get('category_id')}")
            elif (drawn := self._drawn(each.get("segmentation"), such)) is None:
                self._tally.add(NO_MASK, such)
            else:
                shape: Shape = (kind, bool(each.get("iscrowd")), drawn)
                shapes.setdefault(place, []).append(json.dumps(shape, separators=(",", ":")))
        return shapes

    def _drawn(self, told: Any, such: str) -> Any:
        """Return polygons, or a run-length code, as an annotation tells them; None: neither."""
        if isinstance(told, dict):
            return told if told.get("counts") and _is_size(told.get("size")) else None
        if not isinstance(told, list) or not told:
            return None
        polygons = told if isinstance(told[0], list) else [told]
        sound = [each for each in polygons if _is_polygon(each)]
        for _ in range(len(polygons) - len(sound)):
            self._tally.add(UNSOUND, such)
        return sound or None


class CocoMaskReader(TableReader):
    """Reads the images, and draws their masks."""

    def map(self, entry: Entry) -> np.ndarray:
        """See ``Reader``: 0 for the background, and the place of a category from 1."""
        frame, shapes = json.loads(entry.shapes or "[[0, 0], []]")
        coded = [tuple(told["size"]) for *_, told in shapes if isinstance(told, dict)]
        size = next(iter(coded), tuple(frame))
        if not all(size):
            opened = self.open(entry)
            size = opened.height, opened.width
        return draw(shapes, (int(size[0]), int(size[1])))


def draw(shapes: Sequence[Shape], size: tuple[int, int]) -> np.ndarray:
    """Return a label map (h, w), int32, with smaller shapes over larger ones, and over crowds.

    Args:
        shapes: Of equal ones the later lies above. What is of crowds alone is ``IGNORE``.
        size: Height and width.

    Raises:
        UnreadableError: A run-length code is damaged, or of another size.
    """
    drawn = [(crowd, kind, _filled(told, size)) for kind, crowd, told in shapes]
    drawn.sort(key=lambda each: (not each[0], -int(each[2].sum())))
    values = np.zeros(size, np.int32)
    for crowd, kind, inside in drawn:
        values[inside] = IGNORE if crowd else kind + 1
    return values


def _filled(told: Any, size: tuple[int, int]) -> np.ndarray:
    """Return where a shape is (h, w), bool."""
    try:
        return decode_mask(told, size)
    except ValueError as error:
        raise UnreadableError(f"its mask: {error}") from error


def _is_size(told: Any) -> bool:
    return (
        isinstance(told, list)
        and len(told) == 2
        and all(isinstance(side, int) and side > 0 for side in told)
    )


def _is_polygon(told: Any) -> bool:
    return (
        isinstance(told, list)
        and len(told) >= 6
        and len(told) % 2 == 0
        and all(isinstance(x, (int, float)) and abs(x) < FARTHEST for x in told)
    )
