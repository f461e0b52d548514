"""The augmentation's config."""

from dataclasses import dataclass
from typing import Literal

from simmim.config.checks import check_positive
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


@dataclass(frozen=True, kw_only=True)
class LabelledAugmentConfig(AugmentConfig):
    """What else is done to images with labels; what is not given follows from their number."""

    rand_augment: int | None = None
    """Magnitude of RandAugment, 1 to 10, of 8-bit images; 0: none; default: 9 from 1,000 labels."""
    erasing: float | None = None
    """Chance that a rectangle of an image is erased; default: 0.25 from 1,000 labels."""
    mixup: float | None = None
    """How evenly two images are averaged, the α of a beta distribution; 0: never; default: 0.8 from
    1,000 labels."""
    cutmix: float | None = None
    """The same for a rectangle of one image in another; default: 1 from 1,000 labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rand_augment is not None and not 0 <= self.rand_augment <= 10:
            raise ConfigError(f"augment.rand_augment goes from 0 to 10, got {self.rand_augment}.")
        if self.erasing is not None and not 0 <= self.erasing <= 1:
            raise ConfigError(f"augment.erasing is a chance from 0 to 1, got {self.erasing:g}.")
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            if value is not None:
                check_positive(f"augment.{name}", value, zero=True)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return bool(self.mixup or self.cutmix)
