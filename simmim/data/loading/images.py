"""Images to load: which, how their values are read, and what is read beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch

from simmim.config.resolved import PixelFormat
from simmim.data.formats.decode import ImageFile, is_eight_bit
from simmim.data.loading.cache import ImageCache
from simmim.data.sources.listing import Listing
from simmim.errors import DataError

Annotation = Literal["maps", "boxes", "masks", "captions"]


@dataclass(frozen=True)
class ImageSet:
    """Which images, how their values are read, and what is read beside them.

    Attributes:
        paths: The images, by name.
        pixels: What every image is brought to.
        labels: Class index of each image; 0 or 1 for each class; or a number; or None.
        cache: Where they are kept decoded, or None.
        annotations: What else of a source a batch carries; see ``Batch``.

    Raises:
        DataError: A source does not have these annotations.
    """

    paths: Listing
    pixels: PixelFormat
    labels: Sequence[Any] | None = None
    cache: ImageCache | None = None
    annotations: frozenset[Annotation] = frozenset()

    def __post_init__(self) -> None:
        for annotation in sorted(self.annotations):
            self.paths.check_has(annotation)

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: Sequence[int] | np.ndarray) -> Self:
        """Some of the images, by their places, in the order of these."""
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        return replace(self, paths=self.paths.select(rows), labels=labels)

    def open(self, i: int) -> ImageFile:
        """Open an image; see ``Reader`` for what is raised."""
        return self.paths.open(i) if self.cache is None else self.cache.open(i)

    @property
    def prefetches(self) -> bool:
        """Whether it helps to tell what will be opened next."""
        return self.cache is None and self.paths.prefetches

    def prefetch(self, places: Sequence[int]) -> None:
        """Tell what will be opened next."""
        self.paths.prefetch(places)

    def frame(self, i: int, kept: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of image ``i`` as it is stored, where it was opened as ``kept``.

        Raises:
            UnreadableError: This image cannot be had, or is none.
            OSError: The storage fails, which says nothing about the image.
        """
        if self.cache is None:
            return kept
        opened = self.paths.open(i)
        return opened.height, opened.width

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images in a batch."""
        return torch.uint8 if is_eight_bit(self.pixels) else torch.float32


def split_by_class(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split a labelled set; ``share`` of each class goes to the second part.

    Of a class of several images at least one goes to each part, and a single image to the first.

    Raises:
        DataError: Nothing would be in the second part.
    """
    assert images.labels is not None
    labels = np.array(images.labels)
    parts = split_rows(labels, share, seed)
    if not len(parts[1]):
        raise DataError(
            f"1 image per class ({len(labels)} classes), so that none is left to measure on: name "
            "other images by --val, or give the classes more images."
        )
    first, last = map(images.select, parts)
    return first, last


def by_class(images: ImageSet) -> ImageSet:
    """Return a labelled set with the images of each class one after another."""
    assert images.labels is not None
    return images.select(np.argsort(images.labels, kind="stable"))


def class_counts(images: ImageSet) -> tuple[int, ...]:
    """Return how many images there are of each class that has some."""
    counts = np.bincount(images.labels or [])
    return tuple(counts[counts > 0].tolist())


def split_rows(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split places of ``labels`` (n,) as ``split_by_class`` does; the second part may be empty."""
    rng = np.random.default_rng(seed)
    second = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            count = min(max(1, round(share * len(rows))), len(rows) - 1)
            second[rows[:count]] = True
    return np.flatnonzero(~second), np.flatnonzero(second)
