"""Mask samplers' configs: which patches are hidden from the encoder."""

import math
from dataclasses import dataclass
from typing import Literal

from simmim.config.checks import check_fraction, check_positive
from simmim.errors import ConfigError

Rounding = Literal["half-up", "ceil", "keep-floor"]


@dataclass(frozen=True, kw_only=True)
class MaskShare:
    """How many patches are masked, whatever the kind of mask."""

    kind: str = ""
    ratio: float = 0.4
    """Share of the patches to mask, between 0 and 1."""
    unit: int | None = None
    """Side in pixels of the square that is masked or shown as one; default: one patch."""
    rounding: Rounding = "half-up"
    """How the share becomes a count: floor(r·N + ½), ceil(r·N), or N - floor(N·(1 - r))."""

    def __post_init__(self) -> None:
        check_fraction(
            "mask ratio",
            self.ratio,
            "the share of the patches to mask",
            "The default recipe uses 0.4, SimMIM's paper 0.6, MAE 0.75.",
        )
        if self.unit is not None and self.unit < 1:
            raise ConfigError(f"mask unit must be at least 1 pixel, got {self.unit}.")

    def count(self, units: int) -> int:
        """Masked units among ``units``, always within 1 … ``units`` - 1."""
        # Decimal ratios are not exact in binary: 0.6 · 5 must give 3, not ceil(3.0000000000000004).
        share = round(self.ratio * units, 9)
        match self.rounding:
            case "half-up":
                masked = math.floor(share + 0.5)
            case "ceil":
                masked = math.ceil(share)
            case "keep-floor":
                masked = units - math.floor(round(units * (1 - self.ratio), 9))
        return min(max(masked, 1), units - 1)


@dataclass(frozen=True, kw_only=True)
class RandomMask(MaskShare):
    """Random patches, or square units of several patches, uniform over all subsets."""

    kind: Literal["random"] = "random"


@dataclass(frozen=True, kw_only=True)
class BlockMask(MaskShare):
    """Rectangles of patches until the share is masked; what is missing, at random (BEiT v2)."""

    kind: Literal["block"] = "block"
    least: int | None = None
    """Smallest area of a rectangle, in units; default: (shorter side of the grid // 3)²."""
    aspect: float = 0.3
    """Least height over width of a rectangle, and width over height; 1: squares."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least is not None:
            check_positive("mask.least", self.least)
        if not 0 < self.aspect <= 1:
            raise ConfigError(f"mask.aspect must lie above 0 and up to 1, got {self.aspect:g}.")


MaskConfig = RandomMask | BlockMask
MASKS = {"random": RandomMask, "block": BlockMask}
