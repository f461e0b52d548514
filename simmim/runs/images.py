"""Which images a run is on, as its folder keeps it: whatever is added later changes nothing."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simmim.config.resolved import PixelFormat
from simmim.config.seal import read_sealed
from simmim.data.loading.images import Annotation, ImageSet
from simmim.data.sources.index import Index
from simmim.data.sources.listing import Listing
from simmim.errors import CheckpointError, DataError
from simmim.runs.files import copy
from simmim.runs.folder import write_json

LISTS = "images.json"
FORMAT = 1

Pair = tuple[int, Any]
"""Place of an image, and its label, where it has one; see ``ImageSet``."""


@dataclass(frozen=True)
class RunImages:
    """The images of a run.

    Attributes:
        listing: All of them.
        held: Places in ``listing`` of those kept out of training.
        classes: Names of the classes, where there are any.
        labelled: The images of which something is known that is used: for a probe, or to learn it.
        others: Further images to measure on, from other sources: all of these, and those used.
        facts: What else the task knows of them.
    """

    listing: Listing
    held: list[int]
    classes: list[str]
    labelled: list[Pair]
    others: tuple[Listing, list[Pair]] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def train(self, pixels: PixelFormat, annotations: frozenset[Annotation]) -> ImageSet:
        """The labelled images that are learned from."""
        held = set(self.held)
        pairs = [pair for pair in self.labelled if pair[0] not in held]
        return image_set(self.listing, pairs, pixels, annotations)

    def val(self, pixels: PixelFormat, annotations: frozenset[Annotation]) -> ImageSet:
        """The labelled images that are measured on."""
        if self.others is not None:
            return image_set(*self.others, pixels, annotations)
        held = set(self.held)
        pairs = [pair for pair in self.labelled if pair[0] in held]
        return image_set(self.listing, pairs, pixels, annotations)


def image_set(
    listing: Listing,
    pairs: Sequence[Pair],
    pixels: PixelFormat,
    annotations: frozenset[Annotation] = frozenset(),
) -> ImageSet:
    """Images of a listing, with their classes where they have some."""
    known = [label for _, label in pairs if label is not None]
    rows = [row for row, _ in pairs]
    return ImageSet(listing.select(rows), pixels, known or None, annotations=annotations)


def save_images(
    run: Path,
    listing: Listing,
    held: Listing,
    classes: list[str],
    *,
    labelled: Sequence[ImageSet] = (),
    others: ImageSet | None = None,
    facts: Mapping[str, Any] | None = None,
) -> str:
    """Write images.json, and beside it the list of each source; returns the hash of images.json.

    Args:
        run: The run folder.
        listing: All images but ``others``.
        held: Those of them that are kept out of training.
        classes: Names of the classes.
        labelled: Images of ``listing`` of which something is known that is used.
        others: The same, from other sources to measure on.
        facts: What else the task knows of them, as JSON.
    """
    lists = {
        "format": FORMAT,
        "indexes": _copy_indexes(run, listing, "images"),
        "held": held.rows,
        "classes": classes,
        "labelled": [pair for images in labelled for pair in _pairs(images)],
        "facts": dict(facts or {}),
    }
    if others is not None:
        copied = _copy_indexes(run, others.paths, "val")
        lists["others"] = {"indexes": copied, "labelled": _pairs(others)}
    write_json(run / LISTS, lists)
    return read_sealed(run / LISTS, "").sha256


def _copy_indexes(run: Path, listing: Listing, name: str) -> dict[str, str]:
    """Copy the list of each source; returns the hash of each copy."""
    hashes = {}
    for number, index in enumerate(listing.indexes):
        file = f"{name}-{number}.arrow"
        copy(index.file, run / file)  # no link: what damages the cache must not reach the run
        hashes[file] = index.sha256
    return hashes


def _pairs(images: ImageSet) -> list[Pair]:
    labels = [None] * len(images) if images.labels is None else images.labels
    return list(zip(images.paths.rows, labels, strict=True))


def open_images(run: Path, sha256: str | None = None) -> RunImages:
    """Read what ``save_images`` wrote.

    Args:
        run: The run folder.
        sha256: What ``save_images`` returned; None: it is not known.

    Raises:
        CheckpointError: Something is missing, damaged, of another format or of another run.
        DataError: The images are gone.
    """
    advice = (
        "Put the file back as it was: without it the run cannot go on. A new run may begin with "
        f"its encoder, by `simmim pretrain DATA --from {shlex.quote(str(run))}`."
    )
    sealed = read_sealed(run / LISTS, advice)
    if sha256 not in (None, sealed.sha256):
        raise CheckpointError(f"{run / LISTS} is of another run. {advice}")
    lists = json.loads(sealed.text)
    if lists["format"] != FORMAT:
        raise CheckpointError(
            f"{run / LISTS} has format {lists['format']}; this version of simmim reads format "
            f"{FORMAT}. Use the version of simmim that wrote it."
        )
    listing = _open_indexes(run, lists["indexes"], advice)
    labelled, others = [(row, label) for row, label in lists["labelled"]], None
    if "others" in lists:
        further = _open_indexes(run, lists["others"]["indexes"], advice)
        others = further, [(row, label) for row, label in lists["others"]["labelled"]]
    return RunImages(listing, lists["held"], lists["classes"], labelled, others, lists["facts"])


def _open_indexes(run: Path, hashes: dict[str, str], advice: str) -> Listing:
    indexes = []
    for name, expected in hashes.items():
        try:
            indexes.append(Index(run / name))
        except DataError as error:
            raise CheckpointError(f"{error} {advice}") from error
        if indexes[-1].sha256 != expected:
            raise CheckpointError(f"{run / name} is the list of other images. {advice}")
    for index in indexes:
        part = index.info.parts[0] if index.info.parts else ""
        if Path(part).is_absolute() and not Path(part).exists():
            raise DataError(
                f"the images of this run were in {part}, which is gone. Put them back, or a link "
                "to where they are now."
            )
    return Listing(indexes)
