"""What a loader's worker does: fill the rows of a chunk with views, and report on the images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from typing import NamedTuple

import numpy as np
import torch

from simmim.config.augment import AugmentConfig
from simmim.data.formats.image_file import ImageFile, UnreadableError
from simmim.data.loading.augment import view
from simmim.data.loading.distort import distorted
from simmim.data.loading.geometry import (
    Geometry,
    Size,
    centre_geometry,
    is_alike,
    random_geometry,
)
from simmim.data.loading.images import ImageSet
from simmim.data.loading.order import Order
from simmim.data.loading.workers import Arrays, Shapes
from simmim.data.processes import Place
from simmim.data.sources.boxes import SHARES
from simmim.tensors.batch import IGNORE
from simmim.tensors.counter import Purpose

IMAGES, VIEW = "images", "view "
"""Names of the arrays of views: the first, and what those of further ones begin with."""

ATTEMPTS = 32
"""Images tried in the place of an unreadable one."""
REASON = 200
"""Longest reason that is passed on, in characters."""


@dataclass
class Report:
    """What a worker found out: images used, tried, unreadable; ``stop`` ends the run."""

    used: list[int] = field(default_factory=list)
    tried: list[int] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    stop: str = ""


def slot_shapes(images: ImageSet, rows: int, sizes: Sequence[Size]) -> Shapes:
    """Return the arrays of so many rows: a view of each size, and the annotations asked for."""
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for name, size in zip(_names(len(sizes)), sizes, strict=True):
        # As decoders give them, and patches want them.
        shapes[name] = (rows, *size, images.pixels.channels), images.dtype
    if "maps" in images.annotations:
        shapes["maps"] = (rows, *sizes[0]), torch.int32
    if "boxes" in images.annotations:
        most = images.paths.most_boxes
        shapes["boxes"] = (rows, most, 4), torch.float32
        shapes["categories"] = (rows, most), torch.int64
        shapes["crowd"] = shapes["valid"] = (rows, most), torch.bool
        if "masks" in images.annotations:
            height, width = sizes[0]
            shapes["masks"] = (rows, most, height, -(-width // 8)), torch.uint8
    return shapes


def _names(views: int) -> list[str]:
    return [IMAGES, *(f"{VIEW}{k}" for k in range(1, views))]


class _Drawn(NamedTuple):
    """A view that was drawn.

    Attributes:
        geometry: Where it lies.
        augment: How it is resized, and what else is done to it.
        key: What the random numbers of that follow from.
    """

    geometry: Geometry
    augment: AugmentConfig = AugmentConfig()
    key: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Fills chunks with views of images, and with what belongs to them."""

    images: ImageSet
    left_out: dict[int, str] = field(default_factory=dict)
    """Images that are not opened any more, and why."""

    def name(self, at: int) -> str:
        """See ``Fill``."""
        return self.images.paths[at]

    def leave_out(self, at: int, reason: str) -> None:
        """See ``Fill``."""
        self.left_out[at] = reason

    def _read(
        self,
        index: int,
        drawn: Callable[[ImageFile], list[_Drawn]],
        row: Arrays,
        report: Report,
        place: Place,
    ) -> None:
        """Write the views that are ``drawn`` of an image, or say why there are none."""
        place.at = index
        try:
            opened = self._open(index)
            self._fill(index, opened, drawn(opened), row)
        except UnreadableError as error:
            gone = self.images.paths.gone(index)
            if gone is None:
                report.bad.append((index, error.reason[:REASON]))
            else:  # which says nothing about the image
                report.stop = f"{gone} is not there any more. Put it back; is a disk not mounted?"
        except OSError as error:
            path = f"{self.images.paths[index]} in {self.images.paths.where}"
            report.stop = (
                f"reading {path} failed several times: {error}. It is the storage that fails, not "
                "the image."
            )
        else:
            report.used.append(index)

    def _open(self, index: int) -> ImageFile:
        if index in self.left_out:
            raise UnreadableError(self.left_out[index])
        return self.images.open(index)

    def _fill(self, index: int, opened: ImageFile, views: list[_Drawn], row: Arrays) -> None:
        """Write views of an image and what belongs to it; ``row`` has an array's row each."""
        pixels = self.images.pixels
        for name, drawn in zip(_names(len(views)), views, strict=True):
            seen = view(opened, pixels, drawn.geometry, drawn.augment.interpolation)
            seen = distorted(seen, drawn.augment, pixels, drawn.key)
            row[name].permute(2, 0, 1).copy_(seen)
        if "frames" in row:
            row["frames"].copy_(torch.tensor([opened.height, opened.width]))
        if "maps" in row:
            self._fill_map(index, views[0].geometry, row["maps"])
        if "boxes" in row:
            self._fill_boxes(index, views[0].geometry, row)

    def _fill_map(self, index: int, geometry: Geometry, out: torch.Tensor) -> None:
        try:
            values = self.images.paths.map(index)
        except UnreadableError as error:
            raise UnreadableError(f"its label map: {error.reason}") from error
        if values is None:
            out.fill_(IGNORE)
            return
        _check_frame("label map", geometry, (values.shape[0], values.shape[1]))
        out.copy_(torch.from_numpy(geometry.on_map(values)))

    def _fill_boxes(self, index: int, geometry: Geometry, row: Arrays) -> None:
        given = self.images.paths.boxes(index)
        frame = given.frame if math.prod(given.frame) else self.images.frame(index, geometry.image)
        if frame != SHARES:
            _check_frame("boxes", geometry, frame)
        seen = geometry.on_boxes(given.corners, frame)
        kept = (seen[:, 2] > seen[:, 0]) & (seen[:, 3] > seen[:, 1])
        valid = np.ones(int(kept.sum()), bool)
        for name, values, empty in (
            ("boxes", seen[kept], 0),
            ("categories", given.categories[kept], IGNORE),
            ("crowd", given.crowd[kept], False),
            ("valid", valid, False),
        ):
            row[name].fill_(empty)
            row[name][: len(valid)] = torch.from_numpy(values)
        if "masks" in row:
            size = self.images.frame(index, geometry.image) if frame == SHARES else frame
            self._fill_masks(index, geometry, size, kept, row["masks"])

    def _fill_masks(
        self, index: int, geometry: Geometry, size: Size, kept: np.ndarray, out: torch.Tensor
    ) -> None:
        """Write the masks of the boxes that are ``kept``, drawn in an image of ``size``."""
        masks = compress(self.images.paths.masks(index, size), kept)
        number = 0
        for number, mask in enumerate(masks, 1):
            bits = np.packbits(geometry.on_map(mask, blank=0), axis=1)
            out[number - 1].copy_(torch.from_numpy(bits))
        out[number:].zero_()


def _check_frame(what: str, geometry: Geometry, frame: Size) -> None:
    """Raise ``UnreadableError`` where what belongs to an image has another shape."""
    if not is_alike(geometry.image, frame):
        sizes = ["{}×{}".format(*size) for size in (frame, geometry.image)]
        raise UnreadableError(f"{what} of {sizes[0]} pixels for an image of {sizes[1]}")


@dataclass(frozen=True, kw_only=True)
class TrainRows(_Rows):
    """Fills one chunk of the rows that one rank has in one global batch."""

    views: Sequence[tuple[AugmentConfig, Size]]
    order: Order
    batch_size: int
    first_row: int
    chunks: list[tuple[int, int]]

    def places(self, task: int) -> range:
        """Return the places t in the run that a task is about."""
        step, chunk = divmod(task, len(self.chunks))
        begin, length = self.chunks[chunk]
        first = step * self.batch_size + self.first_row + begin
        return range(first, first + length)

    def __call__(self, task: int, out: Arrays, place: Place) -> Report:
        """See ``Fill``."""
        report = Report()
        if self.images.prefetches:
            self.images.prefetch([self.order.index(t) for t in self.places(task)])
        for row, t in enumerate(self.places(task)):
            if not self._one(t, {name: out[name][row] for name in out}, report, place):
                break
        return report

    def _one(self, t: int, row: Arrays, report: Report, place: Place) -> bool:
        for attempt in range(ATTEMPTS):
            index = self.order.replacement(t, attempt) if attempt else self.order.index(t)
            report.tried.append(index)
            used = len(report.used)
            self._read(index, partial(self._drawn, t, attempt), row, report, place)
            if report.stop or len(report.used) > used:
                return not report.stop
        index, reason = report.bad[-1]
        report.stop = (
            f"{ATTEMPTS} images tried one after the other could not be read, the last: "
            f"{self.images.paths[index]}: {reason}. quarantine.jsonl lists them."
        )
        return False

    def _drawn(self, t: int, attempt: int, opened: ImageFile) -> list[_Drawn]:
        """Draw where the views of place ``t`` lie, and what is done to them."""
        drawn: list[_Drawn] = []
        for k, (config, size) in enumerate(self.views):
            place = (t, attempt, *([k] if k else []))
            key = (self.order.seed, Purpose.AUGMENT, *place)
            geometry = random_geometry(opened.height, opened.width, config, size, key)
            drawn.append(_Drawn(geometry, config, (self.order.seed, Purpose.DISTORT, *place)))
        return drawn


@dataclass(frozen=True, kw_only=True)
class PlainRows(_Rows):
    """Fills one chunk of the plain views, of height and width ``size``, of an image set."""

    size: Size
    chunk: int
    place: Callable[[int, int, Size], Geometry] = centre_geometry
    """Where the view of an image lies, by its height, its width, and ``size``."""

    def __call__(self, task: int, out: Arrays, place: Place) -> Report:
        """See ``Fill``."""
        report = Report()
        begin = task * self.chunk
        chosen = range(begin, min(begin + self.chunk, len(self.images)))
        if self.images.prefetches:
            self.images.prefetch(chosen)
        for index in chosen:
            row = {name: out[name][len(report.used)] for name in out}
            self._read(index, self._placed, row, report, place)
            if report.stop:
                break
        return report

    def _placed(self, opened: ImageFile) -> list[_Drawn]:
        return [_Drawn(self.place(opened.height, opened.width, self.size))]
