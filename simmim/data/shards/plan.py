"""What goes into which shard: a pure function of the images and the settings."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simmim.config.data import Dedupe, ShardFormat
from simmim.data.sources.listing import Listing
from simmim.errors import ConfigError, DataError

FORMAT = 1
WORK = ".work"
"""Folder beside the shards for all that is there only while they are made."""
PLAN = "plan.json"
SHARD_BYTES = 256_000_000
LEAST_SHARDS, LEAST_IMAGES = 16, 100
"""Where there are fewer images, shards are smaller, so that several processes have work."""
HASHED = 2000
"""Images whose hashes are one task's work."""
LOOKED_AT = 1000


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of the shards, with the images themselves.

    Attributes:
        size: Length of the shorter side in pixels; None: as it is.
        format: How images are encoded.
        quality: Of JPEG.
        per_shard: Images per shard.
        dedupe: Which duplicates are left out.
    """

    size: int | None
    format: ShardFormat
    quality: int
    per_shard: int
    dedupe: Dedupe


@dataclass(frozen=True)
class Job:
    """Everything that a process needs to make any of the shards.

    Attributes:
        listing: All images.
        settings: How they are prepared.
        out: Folder of the shards.
        classes: Names of the classes.
        labels: int32, the class of each image, -1 where it has none; None: no classes.
        notes: What should be known of the labels; see ``SourceInfo``.
    """

    listing: Listing
    settings: Settings
    out: Path
    classes: tuple[str, ...]
    labels: np.ndarray | None
    notes: tuple[str, ...] = ()

    @property
    def work(self) -> Path:
        """Folder of what is unfinished."""
        return self.out / WORK

    @property
    def blocks(self) -> int:
        """Number of the tasks that hash images; none without ``dedupe``."""
        return 0 if self.settings.dedupe == "none" else math.ceil(len(self.listing) / HASHED)

    def hashes_file(self, number: int) -> Path:
        """Where the hashes of a block are kept while the shards are made."""
        return self.work / f"hashes-{number:06d}.npz"

    @property
    def kept_file(self) -> Path:
        """Where the numbers of the images that stay are kept, once duplicates are known."""
        return self.work / "kept.npy"

    def kept(self) -> Sequence[int] | np.ndarray:
        """Return the numbers of the images that go into shards, in their order."""
        if self.settings.dedupe == "none":
            return range(len(self.listing))
        return np.load(self.kept_file, mmap_mode="r")

    def describe(self) -> dict[str, Any]:
        """Return what must be the same whenever shards of one folder are made."""
        labels = hashlib.sha256(repr(self.classes).encode())
        if self.labels is not None:
            labels.update(self.labels.tobytes())
        return {
            "format": FORMAT,
            "settings": asdict(self.settings),
            "source": {
                "where": [info.where for info in self.listing.infos],
                "images": len(self.listing),
                "fingerprint": self.listing.fingerprint(),
                "labels": labels.hexdigest()[:16],
            },
        }


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:06d}.tar"


def shards_of(images: int, per_shard: int) -> int:
    """The number of shards."""
    return math.ceil(images / per_shard)


def images_per_shard(listing: Listing, size: int | None, form: ShardFormat) -> int:
    """Choose how many images make about 256 MB, from their sizes; or fewer, where they are few."""
    count = len(listing)
    if size is None or form == "keep":
        rows = range(0, count, max(1, count // LOOKED_AT))
        sizes = [known for row in rows if (known := listing.entry(row).size) > 0]
        each = sum(sizes) / len(sizes) if sizes else 500_000
    else:
        # Measured on photos: a bit less than half a byte per pixel of JPEG, three as lossless.
        each = size * size * 4 / 3 * (0.5 if form == "auto" else 2.5)
    most = max(1, round(SHARD_BYTES / each))
    return min(most, max(LEAST_IMAGES, math.ceil(count / LEAST_SHARDS)))


def check_same(have: dict[str, Any], want: dict[str, Any], out: Path) -> None:
    """Compare what a folder was begun with and what is asked for now.

    Raises:
        ConfigError: Another setting.
        DataError: Other images.
    """
    if have.get("format") != FORMAT:
        raise ConfigError(
            f"{out} holds shards of format {have.get('format')}, this simmim writes {FORMAT}. "
            "Choose another --out."
        )
    for name, value in want["settings"].items():
        before = have["settings"].get(name)
        if before != value:
            raise ConfigError(
                f"{out} was begun with --{name.replace('_', '-')} {_flag(before)}, and now it is "
                f"{_flag(value)}. "
                "Give the same, or choose another --out."
            )
    for name, value in want["source"].items():
        if have["source"].get(name) != value:
            raise DataError(
                f"{out} was begun with other images or labels ({name}: {have['source'].get(name)}, "
                f"now {value}). Choose another --out, or delete that folder and begin anew."
            )


def _flag(value: Any) -> str:
    return "none" if value is None else str(value)


def read_json(file: Path) -> dict[str, Any] | None:
    """Read a file of our own; None where there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise DataError(f"{file} is damaged: {error}. Delete it and start again.") from error
