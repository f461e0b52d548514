"""Which images a run is on, as its folder keeps it: whatever is added later changes nothing."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from simmim.data.find import load_listing
from simmim.data.loader import ImageSet
from simmim.data.sources.folder import PathsSource
from simmim.data.sources.index import build
from simmim.data.sources.listing import Listing
from simmim.errors import CheckpointError, DataError
from simmim.training.run import write_json

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
) -> None:
    """Write images.json, and beside it the list of each source."""
    names = []
    for number, index in enumerate(listing.indexes):
        names.append(f"images-{number}.arrow")
        _copy(index.file, run / names[-1])
    pairs = []
    if probe is not None and probe.labels is not None:
        pairs = list(zip(probe.paths.rows, probe.labels, strict=True))
    lists = {"format": FORMAT, "indexes": names, "held": held.rows, "classes": classes}
    write_json(run / LISTS, {**lists, "probe": pairs})


def open_images(run: Path) -> RunImages:
    """Read what ``save_images`` wrote.

    Raises:
        CheckpointError: It is missing, damaged, or of another format.
        DataError: The images are gone.
    """
    try:
        lists = json.loads((run / LISTS).read_text(encoding="utf-8"))
        if "indexes" not in lists:
            return _older(run, lists)
        if lists["format"] != FORMAT:
            raise CheckpointError(
                f"{run / LISTS} has format {lists['format']}; this version of simmim reads format "
                f"{FORMAT}. Use the version of simmim that wrote it."
            )
        listing = load_listing([run / name for name in lists["indexes"]])
        probe = [(int(row), int(label)) for row, label in lists["probe"]]
        found = RunImages(listing, [int(row) for row in lists["held"]], lists["classes"], probe)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run / LISTS} is missing or damaged: {error}.") from error
    for info in listing.infos:
        part = info.parts[0] if info.parts else ""
        if Path(part).is_absolute() and not Path(part).exists():
            raise DataError(
                f"the images of this run were in {part}, which is gone. Put them back, or a link "
                "to where they are now."
            )
    return found


def _older(run: Path, lists: dict) -> RunImages:
    """Lists of paths, as runs had them before there were other sources than folders."""
    folder = Path(lists["root"])
    if not folder.is_dir():
        raise DataError(f"the images of this run were in {folder}, which is gone.")
    names = sorted({*lists["train"], *lists["held"]})
    place = {name: i for i, name in enumerate(names)}
    index = build(PathsSource(folder, names), run / "images-0.arrow")
    probe = [(place[name], int(label)) for name, label in lists["probe"]]
    held = [place[name] for name in lists["held"]]
    return RunImages(Listing([index]), held, lists["classes"], probe)


def _copy(file: Path, to: Path) -> None:
    """Link where the disk allows it: a list of millions is large, and is never changed."""
    to.unlink(missing_ok=True)
    try:
        to.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, to)
