"""What the commands that look at images and prepare them are asked to do."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simmim.config.augment import AugmentConfig
from simmim.config.checks import check_positive
from simmim.config.encoder import EncoderConfig
from simmim.config.mask import RandomMask
from simmim.errors import ConfigError

ShardFormat = Literal["auto", "lossless", "keep"]
Dedupe = Literal["none", "exact", "near"]


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """Resize images once and pack them into shards that are read fast."""

    data: tuple[str, ...]
    """Folders, archives, tables or URLs of images."""
    out: Path
    """Folder for the shards. An unfinished one is gone on with, another never overwritten."""
    size: int | None = 256
    """Length in pixels of the shorter side; smaller images stay as they are, `none`: all do."""
    format: ShardFormat = "auto"
    """JPEG for 8-bit images of 1 or 3 channels, else lossless; all lossless; or the files as is."""
    quality: int = 90
    """JPEG quality, 1 to 100."""
    per_shard: int | None = None
    """Images per shard; default: about 256 MB, and at least 16 shards where they are many."""
    dedupe: Dedupe = "none"
    """Leave out images whose pixels are those of an earlier one, or that look nearly the same."""
    labels: Path | None = None
    """CSV or JSONL with a path and a label column; default: what DATA says."""
    part: str | None = None
    """`3/16` makes the third of sixteen parts, here; the others elsewhere at the same time."""
    engine: Literal["local", "ray"] = "local"
    """What runs the work: processes of this machine, or a Ray cluster."""
    workers: int | None = None
    """Processes; default: by the number of cores."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("DATA is missing: name a folder, an archive, a table or a URL.")
        for name, value in (("--size", self.size), ("--per-shard", self.per_shard)):
            if value is not None:
                check_positive(name, value)
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"--quality of JPEG lies within 1 to 100, got {self.quality}.")
        if self.workers is not None:
            check_positive("--workers", self.workers, zero=True)
        if self.format == "keep" and self.size not in (None, ShardConfig.size):
            raise ConfigError(
                f"--format keep leaves the files as they are, and --size {self.size} would change "
                "them. Leave one of the two out."
            )
        if self.format in ("keep", "lossless") and self.quality != ShardConfig.quality:
            raise ConfigError(
                f"--quality is that of JPEG, which --format {self.format} does not write; leave it "
                "out."
            )
        self.parts()
        if self.part is not None and self.engine == "ray":
            raise ConfigError("--engine ray spreads the work itself; leave --part out.")

    def parts(self) -> tuple[int, int]:
        """The part to make, from 0 on, and the number of parts."""
        if self.part is None:
            return 0, 1
        match = re.fullmatch(r"(\d+)/(\d+)", self.part)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"--part is like 3/16, the first is 1/16; got {self.part!r}.")
        return int(match[1]) - 1, int(match[2])


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """Look at images: what they are like, and what is wrong with them."""

    data: tuple[str, ...]
    """Folders, archives, tables or URLs of images."""
    val: str | None = None
    """Images to measure on later: what of them is in DATA too is told."""
    labels: Path | None = None
    """CSV or JSONL with a path and a label column; default: what DATA says."""
    out: Path = Path("scan.html")
    """Page to write. An earlier one is replaced."""
    json: Path | None = None
    """File for the same facts as JSON; default: only inside the page."""
    sample: int | None = None
    """Look at so many images only, chosen by their names; default: at every one."""
    image_size: int = 224
    """Side in pixels of the views on the contact sheet."""
    patch_size: int = 16
    """Side in pixels of the patches that are masked there."""
    mask: RandomMask = RandomMask()  # noqa: RUF009  (it is frozen)
    augment: AugmentConfig = AugmentConfig()  # noqa: RUF009
    seed: int = 0
    """Seed of the crops and masks on the contact sheet."""
    workers: int | None = None
    """Processes; default: by the number of cores."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("DATA is missing: name a folder, an archive, a table or a URL.")
        if self.out.suffix != ".html":
            raise ConfigError(f"--out must end in .html, got {self.out}.")
        if self.json is not None and self.json.suffix != ".json":
            raise ConfigError(f"--json must end in .json, got {self.json}.")
        if self.sample is not None:
            check_positive("--sample", self.sample)
        for name, value in (("--seed", self.seed), ("--workers", self.workers or 0)):
            check_positive(name, value, zero=True)
        if self.patch_size < 1 or self.image_size < 2 * self.patch_size:
            raise ConfigError(
                f"--image-size {self.image_size} needs at least two patches of --patch-size "
                f"{self.patch_size} on a side."
            )
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"--image-size {self.image_size} is no multiple of --patch-size {self.patch_size}."
            )


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Measure how fast images come, beside how fast a model takes them; or an encoder's cost."""

    data: tuple[str, ...]
    """Folders, archives, tables or URLs of images; or a run or other weights, to time."""
    model: str = EncoderConfig.model
    """timm model name of the encoder whose training step is timed; `none`: only the loader."""
    image_size: int | None = None
    """Side in pixels of the views; default: 224, and of a run its own."""
    workers: int | None = None
    """Loader processes, as in a run; default: by the number of cores."""
    seconds: float = 4.0
    """How long each way of loading, or each batch size, is timed."""
    augment: AugmentConfig = AugmentConfig()  # noqa: RUF009
    out: Path | None = None
    """File for the same figures as JSON."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("DATA is missing: name a folder, an archive, a table or a URL.")
        if self.image_size is not None:
            check_positive("--image-size", self.image_size)
        check_positive("--seconds", self.seconds)
        if self.workers is not None:
            check_positive("--workers", self.workers, zero=True)
        if self.out is not None and self.out.suffix != ".json":
            raise ConfigError(f"--out must end in .json, got {self.out}.")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the views in pixels."""
        side = self.image_size or 224
        return side, side
