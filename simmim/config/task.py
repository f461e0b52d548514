"""Tasks' configs: what the new head of a fine-tuning answers."""

from dataclasses import dataclass
from typing import Literal

from simmim.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Tell which class an image is of."""

    kind: Literal["classify"] = "classify"
    smoothing: float = 0.1
    """Label smoothing: the share of certainty spread over all classes; 0 to 1."""
    weights: Literal["equal", "balanced"] = "equal"
    """How much an image counts in the loss: `balanced`, as if all classes had as many images."""
    sampling: Literal["once", "balanced"] = "once"
    """How often an image comes in an epoch: once, or such that all classes come as often."""

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"task.smoothing is a share from 0 to 1, got {self.smoothing:g}.")


@dataclass(frozen=True, kw_only=True)
class MultiLabel:
    """Tell which of the classes an image is of: any number of them."""

    kind: Literal["multilabel"] = "multilabel"
    column: str | None = None
    """The column of `--labels` that holds the names; default: label, class, category, …"""
    weights: Literal["equal", "balanced"] = "equal"
    """How much images of a class count: `balanced`, together as much as those without it."""


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Tell a number."""

    kind: Literal["regress"] = "regress"
    column: str | None = None
    """The column of `--labels` that holds the number; default: label, class, category, …"""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Find objects: a box around each, and its class."""

    kind: Literal["detect"] = "detect"
    detector: Literal["faster-rcnn", "retinanet", "fcos"] = "faster-rcnn"
    """What finds boxes in the maps: torchvision's, in two steps or in one."""


TaskConfig = Classification | MultiLabel | Regression | Detection
TASKS: dict[str, type] = {
    "classify": Classification,
    "multilabel": MultiLabel,
    "regress": Regression,
    "detect": Detection,
}
