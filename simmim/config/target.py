"""Targets' configs: what is predicted for a masked patch, and how an error is measured."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from simmim.config.checks import check_once, check_positive
from simmim.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SingleTarget:
    """What every target has; it stands alone or beside others."""

    usual_weight: ClassVar[float] = 1.0
    """What its loss counts beside others, unless weights are given."""
    shown: ClassVar[bool] = False
    """Whether a prediction is an image."""

    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class PixelTarget(SingleTarget):
    """The pixels of the masked patches."""

    shown: ClassVar[bool] = True

    kind: Literal["pixels"] = "pixels"
    loss: Literal["l2", "l1"] = "l2"
    """Squared or absolute error, averaged over masked values."""
    norm_pix: bool = False
    """Normalise each patch to mean 0 and variance 1 before comparing (MAE sec. 3)."""


@dataclass(frozen=True, kw_only=True)
class HogTarget(SingleTarget):
    """Histograms of oriented gradients of the masked patches (MaskFeat)."""

    usual_weight: ClassVar[float] = 10.0

    kind: Literal["hog"] = "hog"
    cell: int | None = None
    """Side in pixels of the cells of a patch; default: the largest up to 8 that divides it."""
    bins: int = 9
    """Orientations of a histogram, over half a turn."""

    def __post_init__(self) -> None:
        if self.cell is not None:
            check_positive("hog: cell", self.cell)
        check_positive("hog: bins", self.bins)


TargetPart = PixelTarget | HogTarget
TARGETS: dict[str, type[SingleTarget]] = {"pixels": PixelTarget, "hog": HogTarget}


@dataclass(frozen=True, kw_only=True)
class CombinedTarget:
    """Several targets, predicted side by side by one decoder."""

    kind: Literal["combined"] = "combined"
    parts: tuple[TargetPart, ...]
    weights: tuple[float, ...] | None = None
    """What the loss of each part counts, such as 1,10; default: what is usual for its kind."""

    def __post_init__(self) -> None:
        check_once("target", [part.kind for part in self.parts])
        if len(self.parts) < 2:
            raise ConfigError("a combined target has two parts or more: --target pixels,hog.")
        if self.weights is not None and len(self.weights) != len(self.parts):
            raise ConfigError(
                f"--target.weights gives {len(self.weights)} weights for {len(self.parts)} targets "
                f"({', '.join(part.kind for part in self.parts)}); give one for each."
            )
        for weight in self.weights or ():
            check_positive("target.weights", weight)

    @property
    def shown(self) -> bool:
        """Whether a part of a prediction is an image."""
        return any(part.shown for part in self.parts)

    @property
    def weighed(self) -> dict[str, float]:
        """The weight of each part by its kind."""
        weights = self.weights or [part.usual_weight for part in self.parts]
        return {part.kind: weight for part, weight in zip(self.parts, weights, strict=True)}


TargetConfig = TargetPart | CombinedTarget
