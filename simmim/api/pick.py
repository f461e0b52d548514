"""`simmim pick`: which images to label next."""

import csv
import io
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from simmim.api.encoders import features, open_encoder
from simmim.api.remarks import notes
from simmim.config.commands import PickConfig
from simmim.config.resolved import PixelFormat
from simmim.data.formats.endings import ARCHIVES
from simmim.data.formats.image_file import UnreadableError
from simmim.data.labels import labels_of, read_labels
from simmim.data.loading.augment import whole_view
from simmim.data.loading.images import ImageSet
from simmim.data.loading.quarantine import unreadable
from simmim.data.names import plain
from simmim.data.sources.find import find_images
from simmim.data.sources.listing import Listing
from simmim.errors import DataError, SimmimError
from simmim.evaluate.features import FeatureTable, run_over
from simmim.evaluate.pick import MOST, ReconstructionError, diverse, doubts
from simmim.interop.load import LoadedEncoder, model_from
from simmim.interop.open import open_source
from simmim.report import terminal
from simmim.report.pictures import Photo, contact_sheet, save_png
from simmim.runs.files import write_text
from simmim.tasks.classifier import CLASSIFIER, load_classifier

HARDEST = 4
"""With `--hardest`, the choice is among so many times as many images as are asked for."""
_SIDE = 112
"""Least pixels of an image's shorter side on the contact sheet."""


@dataclass(frozen=True)
class Labelled:
    """What has labels already.

    Attributes:
        of: Classes of images of DATA, by their places.
        others: Other images, with their classes; -1: not told.
        classes: Number of classes.
    """

    of: dict[int, int]
    others: tuple[Listing, list[int]] | None = None
    classes: int = 0


def run_pick(config: PickConfig) -> Path:
    """Write the list of the images to label next, and the contact sheet."""
    console = Console()
    paths = find_images(config.data)
    labelled, said = _labelled(config, paths)
    sources = [config.data, *([] if labelled.others is None else [str(config.labels)])]
    encoder = open_encoder(config.init_from, console, sources)
    terminal.facts(console, [*notes(paths), *(("note", text) for text in said)])

    def table_of(listing: Listing, labels: Sequence[int] | None = None) -> FeatureTable:
        images = ImageSet(listing, encoder.pixels, labels)
        return features(console, encoder, images, config.batch_size, config.workers)

    table = table_of(paths)
    read = np.array([row for row in range(len(paths)) if paths[row] not in table.skipped])
    labels = np.array([labelled.of.get(row, -1) for row in read.tolist()])
    known, classes = table.features[labels >= 0], labels[labels >= 0]
    if labelled.others is not None:
        others = table_of(*labelled.others)
        assert others.labels is not None
        known, classes = others.features, others.labels
        if others.skipped:
            bad = unreadable(others.skipped, len(labelled.others[0]), "labelled images")
            terminal.facts(console, [("unreadable", bad)])
    pool, values, how = np.flatnonzero(labels < 0), None, ""
    if config.hardest:
        listing = paths.select(read[pool])
        values, how = _difficulty(config, encoder, ImageSet(listing, encoder.pixels))
        kept = np.argsort(-values, kind="stable")[: HARDEST * config.n]
        pool, values = pool[kept], values[kept]
        weights = None
    else:
        weights = doubts(table.features[pool], known, classes, labelled.classes)
    n = min(config.n, len(pool))
    if not n:
        raise DataError(f"none of the images in {config.data} without a label can be read.")
    if len(pool) > max(MOST, n):
        said = f"chosen among a sample of {max(MOST, n):,} of {len(pool):,} images, by --seed"
        terminal.facts(console, [("note", said)])
    chosen, stands_for = diverse(table.features[pool], known, n, config.seed, weights)
    listing = paths.select(read[pool[chosen]])
    columns: dict[str, list] = {"stands_for": stands_for.tolist()}
    if values is not None:
        columns[how] = [round(float(value), 4) for value in values[chosen]]
    _write(config.out, listing, columns)
    files = (plain(path).rpartition("/")[2] for path in listing)
    names = [f"{number} {name}"[:18] for number, name in enumerate(files, 1)]
    save_png(contact_sheet(_photos(listing, encoder.pixels), names), config.sheet)
    _close(console, config, table, n, len(known))
    return config.out


def _labelled(config: PickConfig, paths: Listing) -> tuple[Labelled, list[str]]:
    """What has labels already, and what to know of that.

    Raises:
        DataError: There are fewer images without labels than are asked for.
    """
    given, said = config.labels, []
    if given is not None and (given.is_dir() or given.suffix.lower() in ARCHIVES):
        listing = find_images(given)
        labels = labels_of(listing)
        of = [None if labels is None else labels.of(row) for row in range(len(listing))]
        told = [-1 if label is None else label for label in of]
        found = Labelled({}, (listing, told), 0 if labels is None else len(labels.classes))
        said.append(f"the {len(listing):,} images in {given} count as labelled")
    else:
        labels = labels_of(paths) if given is None else read_labels(given, paths)
        found = Labelled({}) if labels is None else Labelled(
            dict(labels.pairs()), classes=len(labels.classes)
        )  # fmt: skip
        said += [] if labels is None else labels.notes
        if given is None and len(found.of) == len(paths):
            said.append(
                f"all {len(paths):,} images have a label, by their folders or their source: that "
                "is left out of account, and any of them may be chosen"
            )
            found = Labelled({})
        elif found.of:
            said.append(f"{len(found.of):,} of {len(paths):,} images have a label already")
    left = len(paths) - len(found.of)
    if left < config.n:
        raise DataError(
            f"{config.data} has {left:,} images without a label, and --n asks for {config.n:,}."
        )
    return found, said


def _difficulty(
    config: PickConfig, encoder: LoadedEncoder, images: ImageSet
) -> tuple[np.ndarray, str]:
    """How hard each image is (n,), higher is harder, and the name of that measure."""
    run = Path(config.init_from)
    if (run / CLASSIFIER).is_file():
        classifier = load_classifier(run)
        classifier.pixels = encoder.pixels
        device = next(encoder.parameters()).device
        found = classifier.to(device).predict(images, batch=config.batch_size)
        return 1 - found.probabilities.max(1), "uncertainty"
    whole = replace(open_source(config.init_from, whole=True), pixels=encoder.pixels)
    module = ReconstructionError(model_from(whole, config.seed).eval())
    module.to(next(encoder.parameters()).device)
    errors = run_over(module, images, encoder.image_size, batch=config.batch_size)
    return errors.features[:, 0], "reconstruction_error"


def _write(out: Path, listing: Listing, columns: dict[str, list]) -> None:
    """Write a row for each image: its path, an empty label, and the further columns."""
    rows = [
        {"path": plain(path), "label": None, **dict(zip(columns, values, strict=True))}
        for path, *values in zip(listing, *columns.values(), strict=True)
    ]
    text = io.StringIO()
    if out.suffix == ".jsonl":
        text.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(text, ["path", "label", *columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_text(out, text.getvalue())


def _photos(listing: Listing, pixels: PixelFormat) -> Iterator[Photo]:
    """Each image, small; grey where it has gone since."""
    low, high = np.array(pixels.low), np.array(pixels.high)
    for row in range(len(listing)):
        try:
            opened = listing.open(row)
            scale = _SIDE / min(opened.height, opened.width)
            size = (round(scale * opened.height), round(scale * opened.width))
            yield (whole_view(opened, pixels, size) - low) / (high - low)
        except (UnreadableError, SimmimError, OSError):
            yield np.full((_SIDE, _SIDE, 1), 0.5)


def _close(
    console: Console, config: PickConfig, table: FeatureTable, chosen: int, known: int
) -> None:
    total = len(table.paths) + len(table.skipped)
    among = f", beside {known:,} that have labels" if known else ""
    hard = f" among the {HARDEST * chosen:,} hardest" if config.hardest else ""
    lines = [
        f"{chosen:,} of {total:,} images to label next{hard}{among}",
        f"list           {config.out}",
        f"contact sheet  {config.sheet}",
    ]
    if table.skipped:
        lines.append(f"left out       {unreadable(table.skipped, total)}")
    data, run = shlex.quote(config.data), shlex.quote(config.init_from)
    out = shlex.quote(str(config.out))
    lines += [
        "next: fill in its column of labels, then",
        f"  simmim finetune {data} --labels {out} --from {run}",
    ]
    terminal.done(lines, console)
