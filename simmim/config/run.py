"""What every training is asked to be, and what a pretraining is."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from simmim.config.augment import AugmentConfig
from simmim.config.checks import check_once, check_positive, check_text
from simmim.config.decoder import DecoderConfig, TransformerDecoder
from simmim.config.encoder import EncoderConfig
from simmim.config.extra import ExtraConfig
from simmim.config.mask import MaskConfig, RandomMask
from simmim.config.optim import OptimConfig
from simmim.config.target import PixelTarget, TargetConfig
from simmim.errors import ConfigError

FORMAT = 1
"""Version of config.yaml, state.json and encoder.json."""

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """What does not affect the result: it may differ on a resume."""

    workers: int | None = None
    """Loader processes per training process; default: by the number of cores."""
    log_every: float = 0.0
    """Least seconds between two rows of metrics.jsonl; 0 writes every step."""
    save_minutes: float = 10.0
    """Longest time between two checkpoints; a tenth of the run is the other limit."""
    keep: int = 3
    """Checkpoints to keep."""
    picture_every: float = 0.1
    """Share of the run between two pictures and probes; 0 turns them off."""
    tensorboard: bool = True
    """Write TensorBoard events beside metrics.jsonl."""
    timeout_minutes: float = 2.0
    """How long one of several processes that does not answer is waited for."""

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_positive("workers", self.workers, zero=True)
        check_positive("keep", self.keep)
        check_positive("save_minutes", self.save_minutes)
        check_positive("timeout_minutes", self.timeout_minutes)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every training is asked to be, whatever its task."""

    command: ClassVar[str] = ""
    """The command that trains it."""
    limits: ClassVar[tuple[int, int]] = (16, 2048)
    """Fewest and most images of a step, where no number is asked for."""

    data: tuple[str, ...] = ()
    """Images: folders, zip or tar files, shards, tables, URLs; one or several of them."""
    labels: Path | None = None
    """CSV or JSONL with a path and a label column."""
    out: Path | None = None
    """Run folder; never overwritten."""
    init_from: str | None = None
    """Weights to begin with: a run, a file, a folder, timm:NAME or hf:REPO; default: random."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    epochs: float | None = None
    """Passes over the images; default: by their number."""
    budget: str | None = None
    """Time to train for, such as 90m or 2h, instead of epochs."""
    batch_size: int | None = None
    """Images per step over all processes; default: by the number of images, 16 to 2048."""
    micro_batch: int | None = None
    """Images per forward pass and process; default: what fits; the result does not depend on it."""
    precision: Precision = "auto"
    """Arithmetic of the forward and backward passes; weights stay float32."""
    threads: int | None = None
    """CPU threads; bits depend on it. Default: the cores of this machine."""
    seed: int = 0
    """Seed of every random number of the run."""
    max_bad: float = 0.05
    """Largest share of unreadable images before the run stops."""

    system: SystemConfig = field(default_factory=SystemConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "micro_batch", "threads"):
            value = getattr(self, name)
            if value is not None:
                check_positive(name.replace("_", "-"), value)
        check_text(*self.data, self.out, self.labels)
        if self.budget is not None:
            budget_seconds(self.budget)
        if self.budget is not None and self.epochs is not None:
            raise ConfigError("--epochs and --budget both set the length; give one of them.")
        check_positive("seed", self.seed, zero=True)
        if not 0 <= self.max_bad <= 1:
            raise ConfigError(f"--max-bad is a share from 0 to 1, got {self.max_bad:g}.")

    def usual_length(self, images: int, device: str) -> tuple[float | str, str]:
        """Epochs, or a budget, where neither was asked for, and the rule.

        Args:
            images: Images trained on.
            device: Such as ``cpu``.
        """
        raise NotImplementedError

    def usual_rate(self, width: int) -> float:
        """The peak rate per 256 images where none is asked for, for an encoder of ``width``."""
        return replace(self.optim, lr=None).base(width)

    @property
    def folder_name(self) -> str:
        """The last part of the name of the run folder, where ``out`` gives none."""
        raise NotImplementedError

    @property
    def start(self) -> str:
        """What the training starts from, as a part of a name."""
        if self.init_from in (None, "none"):
            return self.encoder.model
        end = self.init_from.rstrip("/").replace(":", "/").split("/")[-1]
        end = end.removesuffix(".pth").removesuffix(".safetensors")
        return "from-" + re.sub(r"[^A-Za-z0-9_.-]", "-", end)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    """One pretraining run."""

    command: ClassVar[str] = "pretrain"

    recipe: str = "simmim"
    """The recipe that the run began with."""
    labels: Path | None = None
    """CSV or JSONL with a path and a label column, for the probes during the run."""
    out: Path | None = None
    """Run folder; default: runs/DATE-RECIPE-MODEL. Never overwritten."""
    weights: tuple[float, ...] = ()
    """Shares of several sources, such as 3,1; default: every image comes once in an epoch."""
    tile: int | None = None
    """Cut images into tiles of this side in pixels, at their own scale; default: whole images."""
    cache: Literal["auto", "on", "off"] = "auto"
    """Keep images decoded, at 1.15 times the training size; `auto`: where they fit."""

    mask: MaskConfig = field(default_factory=RandomMask)
    decoder: DecoderConfig = field(default_factory=TransformerDecoder)
    target: TargetConfig = field(default_factory=PixelTarget)
    extras: tuple[ExtraConfig, ...] = ()

    epochs: float | None = None
    """Passes over the images; default: 100 from 1 M images, 400 from 100 k, 800 below."""
    budget: str | None = None
    """Time to train for, such as 90m or 2h, instead of epochs; on a CPU the default is 1h."""
    holdout: int | None = None
    """Images kept out of training to measure progress; default: min(64, 5 %) from 200 images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_once("extra", [extra.kind for extra in self.extras])
        if self.tile is not None:
            check_positive("tile", self.tile)
        if self.weights and len(self.weights) != len(self.data):
            raise ConfigError(
                f"--weights gives {len(self.weights)} shares for {len(self.data)} sources of "
                "images; give one for each."
            )
        for weight in self.weights:
            check_positive("weights", weight)
        if self.holdout is not None:
            check_positive("holdout", self.holdout, zero=True)

    def usual_length(self, images: int, device: str) -> tuple[float | str, str]:
        """See ``TrainingConfig``."""
        if device == "cpu":
            return "1h", "on a CPU, unless --epochs or --budget says otherwise"
        if images >= 1_000_000:
            return 100.0, "from 1 M images"
        if images >= 100_000:
            return 400.0, "from 100,000 images"
        return 800.0, "below 100,000 images"

    @property
    def folder_name(self) -> str:
        """See ``TrainingConfig``."""
        return f"{self.recipe}-{self.start}"


def check_grid(size: tuple[int, int], patch: int | None, unit: int | None) -> None:
    """Raise ``ConfigError`` where patch or mask unit do not divide the image, or each other.

    Args:
        size: Height and width in pixels.
        patch: Side of a patch in pixels; None where it is not known yet.
        unit: Side of a mask unit in pixels; None where it is one patch.
    """
    for name, side in (("patch size", patch), ("mask unit", unit)):
        if side is None:
            continue
        for what, pixels in zip(("height", "width"), size, strict=True):
            if pixels % side:
                near = max(side, side * round(pixels / side))
                raise ConfigError(
                    f"image {what} {pixels} is not a multiple of the {name} {side}; "
                    f"the nearest that is: {near} (--image-size {near})."
                )
    if patch and unit and unit % patch:
        raise ConfigError(
            f"mask unit {unit} is not a multiple of the patch size {patch}, so a mask could not "
            f"follow the patches' borders. Use --mask.unit {patch * max(1, round(unit / patch))}."
        )
    area = size[0] * size[1]
    side = unit or patch
    if side and area // side**2 < 2:
        raise ConfigError(
            f"an image of {size[0]}×{size[1]} pixels has one {'mask unit' if unit else 'patch'} of "
            f"{side} pixels, so nothing could be both masked and visible. Use a larger "
            f"--image-size or a smaller {'--mask.unit' if unit else '--patch-size'}."
        )


def budget_seconds(text: str) -> float:
    """Seconds in ``text``, such as ``90s``, ``45m``, ``2h``, ``1.5d`` or ``1h30m``."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    parts = re.fullmatch(r"((?:\d+(?:\.\d+)?[smhd])+)", text.strip().lower())
    if not parts:
        raise ConfigError(f"budget {text!r} is not a time; write it as 90s, 45m, 2h or 1h30m.")
    found = re.findall(r"(\d+(?:\.\d+)?)([smhd])", parts[1])
    total = sum(float(number) * units[unit] for number, unit in found)
    check_positive("budget", total)
    return total
