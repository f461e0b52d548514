"""Images decoded once, at 1.15 times the training size, in one file for all processes and runs.

A view is always computed from the kept picture, whether or not it was there already: crops are the
same for any number of workers, in any order, and when the disk is full.
"""

import contextlib
import hashlib
import json
import logging
import math
import secrets
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from simmim.config.resolved import PixelFormat
from simmim.data.formats.decode import is_eight_bit
from simmim.data.formats.image_file import ImageFile, UnreadableError, from_array
from simmim.data.loading.augment import Size, whole_view
from simmim.data.loading.cache_file import MARK, ROW, Slots
from simmim.data.sources.places import cache_root
from simmim.errors import ConfigError
from simmim.machine import total_memory

VERSION = 1
SPARE = 1.15
"""The short side of a kept picture over the longer one of the view."""
LONGEST = 2
"""Long over short side up to which the short one is kept at full; beyond, the area is."""
SAMPLE = 64
"""Headers that tell how large the cache becomes."""

log = logging.getLogger(__name__)


class Images(Protocol):
    """What is kept: a listing."""

    def __len__(self) -> int: ...
    def open(self, i: int, /) -> ImageFile:
        """Open an image."""
        ...

    def fingerprint(self) -> str:
        """Return what differs when the images do."""
        ...


def short_side(size: Size) -> int:
    """Return the short side of kept pictures, in pixels, for views of height and width ``size``."""
    return math.ceil(round(SPARE * max(size), 6))


def kept_size(height: int, width: int, short: int) -> Size:
    """Return height and width at which an image is kept; it is never enlarged.

    The short side becomes ``short``. An image more than twice as long as it is wide takes no more
    pixels than one of 2:1.
    """
    most = LONGEST * short * short
    scale = min(1.0, short / min(height, width))
    rows, columns = round(height * scale), round(width * scale)
    if rows * columns > most:
        scale = math.sqrt(most / (height * width))
        rows, columns = max(1, int(height * scale)), max(1, int(width * scale))
        rows, columns = min(rows, most // columns or 1), min(columns, most)
        columns = min(columns, most // rows)
    return rows, columns


class ImageCache:
    """The decoded images of a listing, in the units of an 8-bit set.

    It can be sent to other processes, forked or spawned; each fills what it needs first.
    """

    def __init__(
        self, images: Images, pixels: PixelFormat, size: Size, root: Path | None = None
    ) -> None:
        """Open the cache of these images, or make an empty one.

        Args:
            images: What is kept. The cache is found again by the listing's fingerprint.
            pixels: What each image is brought to; an 8-bit set.
            size: Height and width of the views in pixels.
            root: Where caches lie; None: ``images`` in the cache folder of simmim.
        """
        self.images = images
        self.pixels = pixels
        self.short = short_side(size)
        self.about = {
            "version": VERSION,
            "fingerprint": images.fingerprint(),
            "images": len(images),
            "short": self.short,
            "channels": pixels.channels,
            "range": [list(pixels.low), list(pixels.high)],
        }
        key = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:24]
        self.folder = (root or cache_root() / "images") / key
        self._run = secrets.token_bytes(MARK)
        self._full = False
        self._slots = self._attach()

    def __len__(self) -> int:
        return len(self.images)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_slots": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._slots = self._attach()

    def open(self, i: int) -> ImageFile:
        """Open image ``i`` at its kept size; if it is not kept yet, reading it keeps it.

        Raises:
            UnreadableError: The image cannot be had, or is none.
            OSError: The storage of the images fails.
        """
        kept = self._slots.find(i, self.pixels.channels) if self._slots else None
        if kept is not None:
            return from_array(kept)
        opened = self.images.open(i)
        height, width = kept_size(opened.height, opened.width, self.short)

        def read(_shrink: int) -> np.ndarray:
            array = whole_view(opened, self.pixels, (height, width))
            self._keep(i, array, (opened.height, opened.width))
            return array

        return ImageFile(opened.format, height, width, self.pixels.channels, "uint8", read)

    def filled(self) -> int:
        """Count the images that are kept."""
        slots = self._slots
        return sum(slots.row(i) is not None for i in range(len(self))) if slots else 0

    def _attach(self) -> Slots | None:
        size = LONGEST * self.short**2 * self.pixels.channels
        try:
            return Slots(self.folder, self.about, len(self.images), size)
        except (OSError, ValueError) as error:
            if not self._full:  # in a worker, it was said already
                self._full = True
                log.warning(
                    "the image cache %s: %s; images are decoded each time.", self.folder, error
                )
            return None

    def _keep(self, i: int, array: np.ndarray, original: Size) -> None:
        if self._slots is None or self._full:
            return
        try:
            self._slots.keep(i, array, original)
        except OSError as error:
            self._full = True
            if self._slots.mark(self._run):  # the first of all processes of this run says it
                log.warning(
                    "the image cache %s: %s; images that are not in it yet are decoded each time.",
                    self.folder,
                    error.strerror,
                )


def pick_cache(choice: str, images: Any, pixels: PixelFormat, size: Size) -> tuple[bool, str]:
    """Decide whether images are kept decoded, and say why in words.

    Args:
        choice: ``on``, ``off`` or ``auto``: where the file fits in a quarter of the free disk and
            in half of the memory.
        images: A listing; a sample of its headers tells how large the file becomes.
        pixels: What each image is brought to.
        size: Height and width of the views in pixels.

    Raises:
        ConfigError: ``on`` for images that are not of 8 bits.
    """
    if choice == "off":
        return False, "given"
    if not is_eight_bit(pixels):
        if choice == "on":
            raise ConfigError(
                f"--cache on keeps 8-bit images, and these are {pixels.depth}: leave it out."
            )
        return False, f"only 8-bit images are kept decoded, and these are {pixels.depth}"
    need = file_bytes(images, pixels, size)
    if choice == "on":
        return True, f"given; {in_words(need)} in {cache_root()}"
    disk, memory = _free(cache_root()) // 4, total_memory() // 2
    words = (
        f"decoded at {short_side(size)} pixels they take {in_words(need)}; a quarter of the free "
        f"disk is {in_words(disk)}, half of the memory {in_words(memory)}"
    )
    return need <= min(disk, memory), words


def file_bytes(images: Any, pixels: PixelFormat, size: Size) -> int:
    """Estimate the bytes that the images take when kept, from the headers of a sample."""
    short, areas = short_side(size), []
    sample = images.sample(SAMPLE)
    for i in range(len(sample)):
        with contextlib.suppress(UnreadableError, OSError):
            opened = sample.open(i)
            areas.append(math.prod(kept_size(opened.height, opened.width, short)))
    area = sum(areas) / len(areas) if areas else short * short * 4 / 3
    return int(len(images) * (area * pixels.channels + ROW.size))


def loss_in_words(size: Size, smallest: float) -> str:
    """Say what detail crops from the cache lack.

    ``smallest`` is the smallest share of an image's area that a crop takes.
    """
    short = short_side(size)
    share = (max(size) / short) ** 2
    text = (
        f"crops come from pictures of a short side of {short} pixels: those of more than "
        f"{share:.0%} of a square image lose nothing"
    )
    if smallest < share:
        factor = max(size) / (short * math.sqrt(smallest))
        text += f", smaller ones are enlarged, the smallest ({smallest:.0%}) {factor:.1f} times"
    return text


def in_words(size: int) -> str:
    """Write bytes as kB, MB or GB."""
    if size < 1e6:
        return f"{size / 1e3:,.0f} kB"
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def _free(folder: Path) -> int:
    """Return the free bytes of the disk that ``folder`` lies on or will lie on."""
    for place in (folder, *folder.parents):
        if place.exists():
            return shutil.disk_usage(place).free
    return 0
