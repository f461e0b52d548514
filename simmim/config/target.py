"""Targets' configs: what is predicted for a masked patch, and how an error is measured."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PixelTarget:
    """The pixels of the masked patches."""

    kind: Literal["pixels"] = "pixels"
    loss: Literal["l2", "l1"] = "l2"
    """Squared or absolute error, averaged over masked values."""
    norm_pix: bool = False
    """Normalise each patch to mean 0 and variance 1 before comparing (MAE sec. 3)."""


TargetConfig = PixelTarget
TARGETS = {"pixels": PixelTarget}
