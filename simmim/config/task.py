"""Tasks' configs: what the new head of a fine-tuning answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simmim.config.checks import check_positive
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
class Segmentation:
    """Tell the class of each pixel."""

    kind: Literal["segment"] = "segment"
    head: Literal["linear", "upernet", "dpt"] = "upernet"
    """One layer on the tokens, or UPerNet or DPT on four maps of them."""
    blocks: tuple[int, ...] = ()
    """Blocks that the head reads, from 0, the last one among them; default: those at 1/3, 1/2, 2/3
    and the end, of DPT at each quarter."""
    width: int | None = None
    """Channels of UPerNet or DPT; default: a third of the encoder's width, 64 to 512."""
    classes: Path | None = None
    """JSON or CSV with the names of the classes, and their colours where masks are in colour;
    default: classes.json, classes.csv or class_dict.csv beside the folders, or the values found."""
    ignore: int | None = None
    """A value of the masks that means no class, beside what the list of classes says."""
    dice: float = 1.0
    """Weight of the dice loss beside cross-entropy; 0: none."""
    balance: float = 0.0
    """How much more the pixels of rare classes weigh: 1 over their share to the power of this."""
    jitter: float = 0.4
    """Largest change of brightness, contrast and saturation in training, as a share; 0: none."""

    def __post_init__(self) -> None:
        if self.width is not None:
            check_positive("task.width", self.width)
        for name in ("dice", "balance", "jitter"):
            check_positive(f"task.{name}", getattr(self, name), zero=True)
        if self.jitter >= 1:
            raise ConfigError(f"task.jitter must be below 1, got {self.jitter:g}.")
        if self.head != "linear" and len(self.blocks) not in (0, 4):
            raise ConfigError(f"task.blocks of {self.head} are four, got {len(self.blocks)}.")


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Find objects: a box around each, its class, and its mask if asked for."""

    kind: Literal["detect"] = "detect"
    detector: Literal["faster-rcnn", "mask-rcnn", "retinanet", "fcos"] = "faster-rcnn"
    """What finds boxes in the maps: torchvision's, in two steps or one; `mask-rcnn` masks too."""

    window: int = 0
    """Side in patches of the windows that all blocks but four attend in, with relative positions,
    as ViTDet's (14) for large images; 0: all attend everywhere."""

    def __post_init__(self) -> None:
        check_positive("task.window", self.window, zero=True)

    @property
    def masks(self) -> bool:
        """Whether masks of objects are learned."""
        return self.detector == "mask-rcnn"


TaskConfig = Classification | MultiLabel | Regression | Segmentation | Detection
TASKS: dict[str, type] = {
    "classify": Classification,
    "multilabel": MultiLabel,
    "regress": Regression,
    "segment": Segmentation,
    "detect": Detection,
}
