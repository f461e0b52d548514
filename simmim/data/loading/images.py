"""Images to load: which, how their values are read, and perhaps their classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from simmim.config.resolved import PixelFormat
from simmim.data.formats.decode import Opened, is_eight_bit
from simmim.data.loading.cache import ImageCache
from simmim.data.sources.listing import Listing


@dataclass(frozen=True)
class ImageSet:
    """Which images, how their values are read, and perhaps their classes.

    Attributes:
        paths: The images, by name.
        pixels: What every image is brought to.
        labels: Class index of each image, or None.
        cache: Where they are kept decoded, or None.
    """

    paths: Listing
    pixels: PixelFormat
    labels: Sequence[int] | None = None
    cache: ImageCache | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, i: int) -> Opened:
        """Open an image; see ``Reader`` for what is raised."""
        return self.paths.open(i) if self.cache is None else self.cache.open(i)

    @property
    def prefetches(self) -> bool:
        """Whether it helps to tell what will be opened next."""
        return self.cache is None and self.paths.prefetches

    def prefetch(self, places: Sequence[int]) -> None:
        """Tell what will be opened next."""
        self.paths.prefetch(places)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images in a batch."""
        return torch.uint8 if is_eight_bit(self.pixels) else torch.float32
