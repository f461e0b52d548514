"""What a fine-tuning is asked to be."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from simmim.config.augment import AugmentConfig, LabelledAugmentConfig
from simmim.config.checks import check_fraction, check_positive
from simmim.config.encoder import EncoderConfig, Size
from simmim.config.optim import OptimConfig
from simmim.config.run import TrainingConfig
from simmim.config.task import (
    Classification,
    Detection,
    MultiLabel,
    Regression,
    Segmentation,
    TaskConfig,
)
from simmim.errors import ConfigError

FEW = 1000
"""Below so many images to learn from, less is done to them."""


def _encoder() -> EncoderConfig:
    return EncoderConfig(drop_path=0.1)


def _open_encoder() -> EncoderConfig:
    return EncoderConfig(drop_path=None)


def _optim() -> OptimConfig:
    # SimMIM's settings for a ViT-B; the rate is BEiT's (4e-3 per 1,024), MAE's is half of it.
    return OptimConfig(
        lr=1e-3,
        betas=(0.9, 0.999),
        warmup_epochs=None,
        warmup_share=0.1,
        clip=5.0,
        layer_decay=0.65,
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """Train an encoder and a new head on labelled images; each task has its own usual numbers."""

    command: ClassVar[str] = "finetune"

    data: tuple[str, ...] = field()
    """Images: a folder with one folder per class, shards or a table; or any with `--labels`."""
    init_from: str = field()
    """Weights to begin with: a run, a file, a folder, timm:NAME, hf:REPO; `none`: from scratch."""
    task: TaskConfig = field(default_factory=Classification)
    labels: Path | None = None
    """CSV or JSONL with a path and a label column; default: the folder an image lies in."""
    val: str | None = None
    """Images to measure on; default: a share of DATA."""
    val_share: float = 0.2
    """Share of DATA kept for measuring where `--val` is not given; between 0 and 1."""
    out: Path | None = None
    """Run folder; default: runs/DATE-finetune-MODEL. Never overwritten."""
    freeze: str | None = None
    """Leave the encoder as it is, `all` of it, or its patch projection and so many first blocks."""
    lora: int | None = None
    """Train updates of such a rank of the blocks' matrices, and nothing else of the encoder."""

    encoder: EncoderConfig = field(default_factory=_encoder)
    optim: OptimConfig = field(default_factory=_optim)
    epochs: float | None = None
    """Passes over the images; default: 100, or 50 from 100 k images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("--val-share", self.val_share, "a share of the images", "The default: 0.2.")
        if self.optim.lr is None:
            raise ConfigError("--optim.lr of a fine-tuning follows from no rule; give a number.")
        if self.freeze not in (None, "all") and not re.fullmatch(r"[1-9]\d*", f"{self.freeze!s}"):
            raise ConfigError(
                f"--freeze takes `all` or a number of blocks from 1 up, got {self.freeze!r}."
            )
        if isinstance(self.freeze, int):
            raise ConfigError(f"freeze is text: freeze='{self.freeze}'.")
        if self.lora is not None:
            check_positive("--lora", self.lora)
            if self.freeze is not None:
                raise ConfigError("--lora freezes the encoder itself; leave --freeze out.")

    def usual_length(self, images: int, device: str) -> tuple[float | str, str]:  # noqa: ARG002
        """See ``TrainingConfig``."""
        if images >= 100_000:
            return 50.0, "from 100,000 images"
        return 100.0, "below 100,000 images"

    def usual_rate(self, width: int) -> float:  # noqa: ARG002
        """See ``TrainingConfig``."""
        return type(self)(data=self.data, init_from="none").optim.lr or 0.0

    def usual_size(self, own: Size, patch: int) -> Size:  # noqa: ARG002
        """Height and width of images where none are asked for.

        Args:
            own: Those that the encoder was made for.
            patch: Side of a patch in pixels.
        """
        return own

    @property
    def folder_name(self) -> str:
        """See ``TrainingConfig``."""
        return f"finetune-{self.start}"

    @property
    def sources(self) -> list[str]:
        """All images: those learned from, and others to measure on."""
        return [*self.data, *([] if self.val is None else [self.val])]


@dataclass(frozen=True, kw_only=True)
class WholeImageConfig(FinetuneConfig):
    """Train an encoder and a linear head on images of which something is known as a whole."""

    task: Classification | MultiLabel | Regression = field(default_factory=Classification)
    encoder: EncoderConfig = field(default_factory=_open_encoder)
    augment: LabelledAugmentConfig = field(default_factory=LabelledAugmentConfig)
    epochs: float | None = None
    """Passes over the images; default: 200 below 1,000 images, 50 from 100 k, else 100."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is measured and kept; 0: none."""
    label_fraction: float | None = None
    """Learn from such a share of the images alone, of each class where each has one, drawn by
    `--seed`; larger shares hold the smaller; above 0, below 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_fraction is not None:
            check_fraction("--label-fraction", self.label_fraction, "a share of the labels", "")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"--ema is a decay from 0 to 1, such as 0.9999, got {self.ema:g}.")
        if self.ema and self.lora is not None:
            raise ConfigError("--lora trains few weights, of which no average is kept; no --ema.")
        sizes = (self.batch_size, self.micro_batch)
        if self.augment.mixes and any(size is not None and size % 2 for size in sizes):
            raise ConfigError(
                "mixup and cutmix mix images in pairs, so that --batch-size and --micro-batch must "
                "be even. Without them: --augment.mixup 0 --augment.cutmix 0."
            )

    def usual_length(self, images: int, device: str) -> tuple[float | str, str]:
        """See ``TrainingConfig``."""
        if images < FEW:
            return 200.0, f"below {FEW:,} images"
        return super().usual_length(images, device)

    def fitted(self, images: int, *, plain: bool) -> Self:
        """The same, with what was left open chosen by the number of images to learn from.

        Args:
            images: How many.
            plain: Whether they are 8-bit, grey or colour, as RandAugment wants them.

        Raises:
            ConfigError: RandAugment was asked for, and they are not.
        """
        if self.augment.rand_augment and not plain:
            raise ConfigError(
                "RandAugment takes 8-bit images, grey or of three channels, and these are others: "
                "--augment.rand-augment 0."
            )
        chosen = self.usual_regularisation(images, plain=plain)
        drop_path = chosen.pop("drop_path")
        given = {name: getattr(self.augment, name) for name in chosen}
        augment = replace(
            self.augment, **{k: chosen[k] if given[k] is None else given[k] for k in chosen}
        )
        encoder = self.encoder
        if encoder.drop_path is None:
            encoder = replace(encoder, drop_path=drop_path)
        return replace(self, augment=augment, encoder=encoder)

    def usual_regularisation(self, images: int, *, plain: bool) -> dict[str, Any]:
        """Fields of ``augment``, and ``drop_path``, where none are asked for; see ``fitted``."""
        if images < FEW:
            return {
                "rand_augment": 0,
                "erasing": 0.0,
                "mixup": 0.0,
                "cutmix": 0.0,
                "drop_path": 0.0,
            }
        rand_augment = 9 if plain else 0
        return {
            "rand_augment": rand_augment, "erasing": 0.25, "mixup": 0.8, "cutmix": 1.0,
            "drop_path": 0.1,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(WholeImageConfig):
    """Train an encoder and a new head on images with classes."""

    task: Classification = field(default_factory=Classification)
    shots: int | None = None
    """Learn from so many images of each class alone, likewise drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shots is not None:
            check_positive("--shots", self.shots)
        if self.shots is not None and self.label_fraction is not None:
            raise ConfigError("--shots and --label-fraction both say what is drawn; give one.")


@dataclass(frozen=True, kw_only=True)
class MultiLabelConfig(WholeImageConfig):
    """Train an encoder and a new head on images that are of any number of classes."""

    task: MultiLabel = field(default_factory=MultiLabel)


@dataclass(frozen=True, kw_only=True)
class RegressConfig(WholeImageConfig):
    """Train an encoder and a new head on images with a number."""

    task: Regression = field(default_factory=Regression)

    def usual_regularisation(self, images: int, *, plain: bool) -> dict[str, Any]:  # noqa: ARG002
        """See ``WholeImageConfig``: what is done to an image may change its number, so nothing."""
        return super().usual_regularisation(0, plain=plain)


def _dense_encoder() -> EncoderConfig:
    return EncoderConfig(drop_path=0.05)


def _dense_optim() -> OptimConfig:
    # Few steps on few images want more than the published rates, and much of it in all blocks:
    # docs/segment.md has the figures.
    return replace(_optim(), lr=1e-2, layer_decay=0.9)


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(FinetuneConfig):
    """Train an encoder and a new head on images with masks of classes."""

    limits: ClassVar[tuple[int, int]] = (4, 64)

    data: tuple[str, ...] = field()
    """Images with masks: folders of both side by side, COCO's json, or a table with both."""
    task: Segmentation = field(default_factory=Segmentation)
    encoder: EncoderConfig = field(default_factory=_dense_encoder)
    optim: OptimConfig = field(default_factory=_dense_optim)
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(scale=(0.5, 1.0)))
    epochs: float | None = None
    """Passes over the images; default: 10,000 views on a CPU, else 40,000, in 20 to 200 passes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels is not None:
            raise ConfigError(
                "--labels gives classes of whole images; --task segment takes masks (masks/ beside "
                "images/, COCO's json, a table), and --task.classes names the classes."
            )

    def usual_length(self, images: int, device: str) -> tuple[float | str, str]:
        """See ``TrainingConfig``; masks tell more than classes do, and a step costs more."""
        views = 10_000 if device == "cpu" else 40_000
        epochs = float(min(max(round(views / images), 20), 200))
        return epochs, f"{views:,} views of the images, within 20 … 200 epochs"


def _detect_optim() -> OptimConfig:
    return replace(_optim(), lr=2e-3, layer_decay=0.9)


@dataclass(frozen=True, kw_only=True)
class DetectConfig(FinetuneConfig):
    """Train an encoder and a detector on images with boxes."""

    limits: ClassVar[tuple[int, int]] = (4, 64)

    data: tuple[str, ...] = field()
    """Images with boxes: COCO's json, YOLO's data.yaml, Pascal VOC's folder, or a part of these."""
    task: Detection = field(default_factory=Detection)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    optim: OptimConfig = field(default_factory=_detect_optim)
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(zoom=(0.5, 1.5)))
    epochs: float | None = None
    """Passes over the images; default: 50."""

    def usual_length(self, images: int, device: str) -> tuple[float | str, str]:  # noqa: ARG002
        """See ``TrainingConfig``."""
        return 50.0, "of images with boxes"

    def usual_size(self, own: Size, patch: int) -> Size:  # noqa: ARG002
        """See ``FinetuneConfig``: 20 patches, within 160 … 320 pixels."""
        side = min(max(20 * patch, 160), 320) // (2 * patch) * (2 * patch)
        return side, side


FINETUNINGS: dict[str, type[FinetuneConfig]] = {
    "classify": ClassifyConfig,
    "multilabel": MultiLabelConfig,
    "regress": RegressConfig,
    "segment": SegmentConfig,
    "detect": DetectConfig,
}
"""What may be learned from labels, by the kind of its task."""
