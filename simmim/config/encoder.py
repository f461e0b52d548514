"""The encoder's config."""

from dataclasses import dataclass, field
from typing import Literal

from simmim.config.checks import check_positive
from simmim.errors import ConfigError

Size = tuple[int, int]
Arguments = dict[str, int | float | str | bool | list[int]]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The backbone, by its timm name, and how it starts."""

    model: str = "vit_small_patch16_224"
    """timm model name, of the ViT, DeiT, EVA or BEiT families (`simmim models` lists them)."""
    image_size: Size | None = None
    """Height and width in pixels, `224` or `192x256`; default: the model's own."""
    patch_size: int | None = None
    """Side of a patch in pixels; default: the model's own."""
    channels: int | None = None
    """Image channels; default: as found in the data (1 for all grey, else 3, or N)."""
    position: Literal["trained", "fixed", "none"] = "trained"
    """Absolute positions, started as 2-d sine-cosine: trained on, kept fixed, or left out."""
    init: Literal["xavier", "truncated", "timm"] = "xavier"
    """How the weights start: MAE's xavier-uniform, SimMIM's truncated normal, or timm's own."""
    drop_path: float | None = 0.0
    """Largest rate of stochastic depth, reached in the last block; 0 to 1."""
    arguments: Arguments = field(default_factory=dict)
    """Further arguments of `timm.create_model`, such as depth."""

    def __post_init__(self) -> None:
        if self.image_size is not None and min(self.image_size) < 1:
            raise ConfigError(f"image size must be at least 1 pixel, got {self.image_size}.")
        if self.patch_size is not None:
            check_positive("patch size", self.patch_size)
        if self.channels is not None:
            check_positive("channels", self.channels)
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path must lie in [0, 1), got {self.drop_path:g}.")
