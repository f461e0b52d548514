"""The augmentation's config."""

from dataclasses import dataclass
from typing import Literal

from simmim.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """A random resized crop, or a zoom, and a flip, from the sample's own random numbers."""

    scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area that a crop takes."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of a crop."""
    zoom: tuple[float, float] | None = None
    """Instead of a crop: the image is as large as it fits, times a number between these; what is
    beyond the view is cut off at a random place, and what it does not fill is blank."""
    flip: float = 0.5
    """Chance of a horizontal flip; 0 where left and right differ in meaning."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How a crop is resized, always antialiased."""

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ConfigError(f"augment.scale needs 0 < low <= high <= 1, got {self.scale}.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"augment.ratio needs 0 < low <= high, got {self.ratio}.")
        if self.zoom is not None and not 0 < self.zoom[0] <= self.zoom[1]:
            raise ConfigError(f"augment.zoom needs 0 < low <= high, got {self.zoom}.")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"augment.flip is a chance from 0 to 1, got {self.flip:g}.")
