"""``simmim scan``: look at images, and say what is wrong with them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from simmim.config.data import ScanConfig
from simmim.config.resolved import PixelFormat
from simmim.data.audit.facts import Examples, Facts, ImagePair, Images, facts
from simmim.data.audit.image_facts import read_facts
from simmim.data.audit.ranges import measured_range
from simmim.data.audit.survey import Survey, survey
from simmim.data.formats.decode import bring, inspect, read_pixels
from simmim.data.formats.image_file import ImageFile, UnreadableError
from simmim.data.loading.augment import random_view
from simmim.data.names import plain
from simmim.data.sources.find import find_images
from simmim.data.sources.listing import Listing
from simmim.errors import DataError
from simmim.machine import pick_workers
from simmim.masking.samplers import RandomSampler
from simmim.report import terminal
from simmim.report.pictures import write_whole
from simmim.report.scan_page import SIDE, Pictures, SheetRow, Shot, write_page
from simmim.report.scan_text import lines
from simmim.runs.files import check_can_write
from simmim.tensors.batch import Batch
from simmim.tensors.counter import Purpose

_MEASURED = 256
"""Images that mean and deviation are measured on."""
_SHEET, _PAIRS, _KINDS, _ODD, _BLANK = 8, 12, 8, 6, 12
"""Most pictures of each part of the page."""


def run_scan(config: ScanConfig) -> Path:
    """Look at all images; print what was found, and write the page; returns its path."""
    for file in (config.out, config.json):
        if file is not None:
            check_can_write(file)
    console = Console()
    stage = terminal.Stage(console)
    listings = [find_images(*config.data, found=lambda n: stage.update(0.0, f"{n:,} found"))]
    if config.val is not None:
        listings.append(find_images(config.val))
    total = sum(map(len, listings))
    if config.sample is not None:
        listings = [listing.sample(config.sample) for listing in listings]
    images = Images.of(listings, config.labels)
    workers = pick_workers(config.workers, alone=True)
    seen, before, some = [], 0, sum(map(len, listings))
    try:
        for listing in listings:

            def tell(done: int, of: int, before: int = before) -> None:  # noqa: ARG001
                stage.update((before + done) / some, f"{some:,} images")

            seen.append(read_facts(listing, workers, tell))
            before += len(listing)
        stage.update(1.0, "duplicates, and the page")
        measured = _survey(listings[0])
        pixels = None if measured is None else measured.pixels
        found, shown = facts(images, seen, total, measured)
        pictures = _pictures(config, images, found, shown, pixels)
    finally:
        stage.close()
    terminal.done(lines(found, config.out, config.data), console)  # whatever the disk says then
    write_page(config.out, found, pictures)
    if config.json is not None:
        write_whole(config.json, json.dumps(found.as_dict(), indent=1).encode())
    return config.out


def _survey(listing: Listing) -> Survey | None:
    """Measure how values become the encoder's input; None where no image of a sample is usable."""
    try:
        return survey(listing, channels=None, sample=_MEASURED)
    except DataError:
        return None


def _pictures(
    config: ScanConfig, images: Images, found: Facts, shown: Examples, pixels: PixelFormat | None
) -> Pictures:
    def shot(row: int) -> Shot:
        return Shot(_thumbnail(images, row, pixels), images.name(row))

    def pairs(
        likes: list[ImagePair], rows: list[tuple[int, int]]
    ) -> list[tuple[ImagePair, Shot, Shot]]:
        both = zip(likes[:_PAIRS], rows[:_PAIRS], strict=True)
        return [(like, shot(row), shot(other)) for like, (row, other) in both]

    most = sorted(found.odd.items(), key=lambda item: -item[1][0])[:_KINDS]
    return Pictures(
        sheet=list(_sheet(config, images.listings[0], pixels)) if pixels else [],
        masked=(
            f"The whole image, two views as training would draw them ({config.image_size} pixels), "
            f"and the second with {config.mask.ratio:.0%} of its patches masked."
        ),
        duplicates=pairs(found.duplicates, shown.duplicates),
        leaks=pairs(found.leaks, shown.leaks),
        odd=[
            (what, count, [shot(row) for row in shown.odd[what][:_ODD]])
            for what, (count, _) in most
        ],
        blank=[shot(row) for row in shown.blank[:_BLANK]],
    )


def _sheet(config: ScanConfig, listing: Listing, pixels: PixelFormat) -> Iterator[SheetRow]:
    """Yield a fixed sample of images with views and masks of them."""
    size = (config.image_size, config.image_size)
    side = config.image_size // config.patch_size
    grid = (side, side)
    sampler = RandomSampler(config.mask, grid, config.patch_size, config.seed)
    rows = 0
    for t, row in enumerate(listing.lowest(min(4 * _SHEET, len(listing)))):
        try:
            opened = inspect(listing.read(row))
            whole = _display(bring(_small(opened), pixels), pixels)
            views = [
                random_view(
                    opened, pixels, config.augment, size, (config.seed, Purpose.AUGMENT, epoch, t)
                )
                for epoch in range(2)
            ]
        except (UnreadableError, OSError):
            continue
        first, second = (_display(view.permute(1, 2, 0).numpy(), pixels) for view in views)
        batch = Batch(images=views[1][None], t=torch.tensor([t]))
        hidden = sampler.draw(batch).masked.view(grid).numpy()
        hidden = hidden.repeat(config.patch_size, 0).repeat(config.patch_size, 1)[..., None]
        names = ("image", "a view", "another", "masked")
        pictures = (whole, first, second, np.where(hidden, 0.5, second))
        shots = [Shot(picture, name) for picture, name in zip(pictures, names, strict=True)]
        yield SheetRow(plain(listing[row]), shots)
        rows += 1
        if rows == _SHEET:
            return


def _small(opened: ImageFile) -> np.ndarray:
    """Decode no more than a small picture needs, where the format allows."""
    short = min(opened.height, opened.width)
    shrink = max(s for s in opened.shrinks if s == 1 or short // s >= SIDE)
    array = read_pixels(opened, shrink)
    step = max(1, min(array.shape[:2]) // (2 * SIDE))
    return array[::step, ::step]


def _display(array: np.ndarray, pixels: PixelFormat) -> np.ndarray:
    """Values of a data set, (h, w, C), from 0 to 1."""
    low, high = (np.array(ends, np.float32) for ends in (pixels.low, pixels.high))
    return np.clip((array.astype(np.float32) - low) / (high - low), 0, 1)


def _thumbnail(images: Images, row: int, pixels: PixelFormat | None) -> np.ndarray | None:
    """A small picture; scaled by its own values where it does not fit its data set."""
    try:
        array = _small(inspect(images.read(row)))
    except (UnreadableError, OSError):
        return None
    if pixels is not None:
        try:
            return _display(bring(array, pixels), pixels)
        except UnreadableError:
            pass
    if array.dtype == np.uint8:
        return array
    low, high = measured_range(array)
    return np.clip((array.astype(np.float32) - low) / max(high - low, 1e-12), 0, 1)
