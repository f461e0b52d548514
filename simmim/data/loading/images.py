"""Images to load: which, how their values are read, and what is read beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from simmim.config.resolved import PixelFormat
from simmim.data.formats.decode import ImageFile, is_eight_bit
from simmim.data.loading.cache import ImageCache
from simmim.data.sources.listing import Listing

Annotation = Literal["maps", "boxes", "captions"]


@dataclass(frozen=True)
class ImageSet:
    """Which images, how their values are read, and what is read beside them.

    Attributes:
        paths: The images, by name.
        pixels: What every image is brought to.
        labels: Class index of each image, or None.
        cache: Where they are kept decoded, or None.
        annotations: What else of a source a batch carries; see ``Batch``.

    Raises:
        DataError: A source does not have these annotations.
    """

    paths: Listing
    pixels: PixelFormat
    labels: Sequence[int] | None = None
    cache: ImageCache | None = None
    annotations: frozenset[Annotation] = frozenset()

    def __post_init__(self) -> None:
        for annotation in sorted(self.annotations):
            self.paths.check_has(annotation)

    def __len__(self) -> int:
        return len(self.paths)

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
