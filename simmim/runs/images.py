"""Which images a run is on, as its folder keeps it: whatever is added later changes nothing."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from simmim.config.seal import read_sealed
from simmim.data.loading.images import ImageSet
from simmim.data.sources.index import Index
from simmim.data.sources.listing import Listing
from simmim.errors import CheckpointError, DataError
from simmim.runs.files import copy
from simmim.runs.folder import write_json

LISTS = "images.json"
FORMAT = 1


@dataclass(frozen=True)
class RunImages:
    """The images of a run.

    Attributes:
        listing: All of them.
        held: Places in ``listing`` of those kept out of training.
        classes: Names of the classes, for the probe.
        probe: Place and class of the images of the probe.
    """

    listing: Listing
    held: list[int]
    classes: list[str]
    probe: list[tuple[int, int]]


def save_images(
    run: Path, listing: Listing, held: Listing, classes: list[str], probe: ImageSet | None
) -> str:
    """Write images.json, and beside it the list of each source; returns the hash of images.json."""
    hashes = {}
    for number, index in enumerate(listing.indexes):
        name = f"images-{number}.arrow"
        copy(index.file, run / name)  # no link: what damages the cache must not reach the run
        hashes[name] = index.sha256
    pairs = []
    if probe is not None and probe.labels is not None:
        pairs = list(zip(probe.paths.rows, probe.labels, strict=True))
    lists = {"format": FORMAT, "indexes": hashes, "held": held.rows, "classes": classes}
    write_json(run / LISTS, {**lists, "probe": pairs})
    return read_sealed(run / LISTS, "").sha256


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
    indexes = []
    for name, expected in lists["indexes"].items():
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
    probe = [(row, label) for row, label in lists["probe"]]
    return RunImages(Listing(indexes), lists["held"], lists["classes"], probe)
