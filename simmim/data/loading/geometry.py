"""Where a view lies in its image: drawn once, and applied to all that belongs to the image."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from simmim.config.augment import AugmentConfig
from simmim.data.formats.image_file import Region
from simmim.tensors.batch import IGNORE
from simmim.tensors.counter import GOLDEN, WORD, hash64, mix64

Size = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """A part of an image, resized to a view and perhaps flipped.

    What belongs to the image may have other pixels, as long as it covers the same: an image may be
    kept smaller than it was labelled.

    Attributes:
        image: Height and width of the image.
        box: The part of it.
        size: Height and width of the view.
        flip: Whether left and right change places.
        filled: Rows and columns of the view, from the top and left before a flip, that the part is
            resized to; the rest is blank. None: all of them.
    """

    image: Size
    box: Region
    size: Size
    flip: bool = False
    filled: Size | None = None

    @property
    def part(self) -> Size:
        """Height and width that the part of the image is resized to."""
        return self.filled or self.size

    def on_map(self, values: np.ndarray, blank: int = IGNORE) -> np.ndarray:
        """Return a label map or a mask (h, w) as it is seen in the view: (H, W), nearest values.

        What is blank has the value ``blank``.
        """
        rows, columns = (_nearest(self, axis, values.shape[axis]) for axis in (0, 1))
        seen = np.full(self.size, blank, values.dtype)
        seen[: len(rows), : len(columns)] = values[rows[:, None], columns]
        return np.ascontiguousarray(seen[:, ::-1]) if self.flip else seen

    def on_boxes(self, boxes: np.ndarray, frame: Size) -> np.ndarray:
        """Return boxes as they are seen in the view, clipped; those outside it have no area.

        Args:
            boxes: (n, 4) left, top, right, bottom, in pixels of ``frame``.
            frame: Height and width of the image in which the boxes were drawn.
        """
        (top, left, height, width), (rows, columns) = self.box, self.part
        x = (boxes[:, 0::2] * (self.image[1] / frame[1]) - left) * (columns / width)
        y = (boxes[:, 1::2] * (self.image[0] / frame[0]) - top) * (rows / height)
        x, y = x.clip(0, columns), y.clip(0, rows)
        x = self.size[1] - x[:, ::-1] if self.flip else x
        return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)

    def from_view(self, boxes: np.ndarray, frame: Size) -> np.ndarray:
        """Return boxes of the view in pixels of ``frame``: ``on_boxes`` undone, not clipped."""
        (top, left, height, width), (rows, columns) = self.box, self.part
        x = self.size[1] - boxes[:, 2::-2] if self.flip else boxes[:, 0::2]
        x = (x * (width / columns) + left) * (frame[1] / self.image[1])
        y = (boxes[:, 1::2] * (height / rows) + top) * (frame[0] / self.image[0])
        return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)


def random_geometry(
    height: int, width: int, config: AugmentConfig, size: Size, key: tuple[int, ...]
) -> Geometry:
    """Draw a crop as torchvision's RandomResizedCrop does, perhaps flipped; or see ``zoom``.

    All its random numbers follow from ``key``; ``size`` is that of the view.
    """
    numbers = _uniform(key)
    if config.zoom is not None:
        low, high = config.zoom
        zoom, corner = low + (high - low) * next(numbers), (next(numbers), next(numbers))
        zoomed = _zoomed((height, width), size, zoom, corner)
        return replace(zoomed, flip=next(numbers) < config.flip)
    box = _crop(height, width, config, numbers)
    return Geometry((height, width), box, size, flip=next(numbers) < config.flip)


def centre_geometry(height: int, width: int, size: Size) -> Geometry:
    """Take the centre of an image: scaled so that it just covers ``size``, the rest cut off."""
    scale = max(size[0] / height, size[1] / width)
    rows = min(height, max(1, round(size[0] / scale)))
    columns = min(width, max(1, round(size[1] / scale)))
    box = (height - rows) // 2, (width - columns) // 2, rows, columns
    return Geometry((height, width), box, size)


def whole_geometry(height: int, width: int, size: Size) -> Geometry:
    """Take all of an image, as large as it fits into ``size``."""
    return _zoomed((height, width), size, 1.0, (0.0, 0.0))


def _zoomed(image: Size, size: Size, zoom: float, corner: tuple[float, float]) -> Geometry:
    """Take an image as large as it fits into ``size``, times ``zoom``.

    Of one that is larger then, a part is seen: ``corner`` tells which, from 0 to 1 on each side.
    """
    scale = zoom * min(size[0] / image[0], size[1] / image[1])
    part, filled = [], []
    for side, seen in zip(image, size, strict=True):
        shown = max(1, round(seen / scale))
        part.append(min(side, shown))
        filled.append(seen if shown < side else min(seen, max(1, round(side * scale))))
    top, left = (round(corner[k] * (image[k] - part[k])) for k in (0, 1))
    box = top, left, part[0], part[1]
    return Geometry(image, box, size, filled=(filled[0], filled[1]))


def is_alike(image: Size, frame: Size) -> bool:
    """Tell whether two sizes are of one shape, but for rounding to whole pixels."""
    return abs(image[0] * frame[1] - image[1] * frame[0]) <= max(sum(image), sum(frame))


def _nearest(geometry: Geometry, axis: int, count: int) -> np.ndarray:
    """Return which of ``count`` rows or columns lies at the middle of each of the view's."""
    start, length = geometry.box[axis], geometry.box[axis + 2]
    places = 2 * np.arange(geometry.part[axis]) + 1
    # In whole numbers, so that the same pixels are taken everywhere.
    twice = 2 * geometry.part[axis]
    return (start * twice + places * length) * count // (twice * geometry.image[axis])


def _uniform(key: tuple[int, ...]) -> Iterator[float]:
    """Yield uniform numbers in [0, 1), of 53 bits, by splitmix64 from a key."""
    state = hash64(*key)
    while True:
        state = (state + GOLDEN) & WORD
        yield (mix64(state) >> 11) * 2.0**-53


def _crop(height: int, width: int, config: AugmentConfig, numbers: Iterator[float]) -> Region:
    low, high = config.scale
    narrow, wide = math.log(config.ratio[0]), math.log(config.ratio[1])
    for _ in range(10):
        area = height * width * (low + (high - low) * next(numbers))
        ratio = math.exp(narrow + (wide - narrow) * next(numbers))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(next(numbers) * (height - h + 1)), int(next(numbers) * (width - w + 1)), h, w
    # A long, narrow image: its centre, of the nearest shape allowed.
    ratio = min(max(width / height, config.ratio[0]), config.ratio[1])
    w = min(width, max(1, round(height * ratio)))
    h = min(height, max(1, round(width / ratio)))
    return (height - h) // 2, (width - w) // 2, h, w
