"""Images with labels: those to learn from, and those to measure on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from simmim.api.remarks import notes
from simmim.config.commands import ProbeConfig
from simmim.config.finetune import FinetuneConfig
from simmim.config.resolved import PixelFormat
from simmim.data.labels import Labels, check_classes, needed_labels
from simmim.data.loading.images import ImageSet
from simmim.data.sources.find import find_images
from simmim.errors import DataError


def labelled_parts(
    config: ProbeConfig | FinetuneConfig, share: float, pixels: PixelFormat
) -> tuple[ImageSet, ImageSet, list[str], list[tuple[str, str]]]:
    """Return images to learn from, those to measure on, the classes, and what should be known.

    Args:
        config: Names the images and their labels.
        share: Of the images, to measure on where no others are named for that.
        pixels: How they are read.
    """
    data = (config.data,) if isinstance(config.data, str) else config.data
    images, labels = _labelled(data, config.labels, pixels)
    said, classes = notes(images.paths, labels=labels), labels.classes
    if config.val is not None:
        others, labels = _labelled((config.val,), config.labels, pixels, classes)
        said += [(name, f"--val: {text}") for name, text in notes(others.paths, labels=labels)]
        return images, others, classes, said
    counts = np.bincount(images.labels or [], minlength=len(classes))
    single = [name for name, count in zip(classes, counts, strict=True) if count == 1]
    first, second = split(images, share, config.seed)
    if single:
        text = f"{len(single)} of {len(classes)} classes have 1 image, which is learned from and "
        said.append(("note", f"{text}not measured on, such as {single[0]}"))
    return first, second, classes, said


def split(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split a labelled set; ``share`` of each class goes to the second part.

    Of a class of several images at least one goes to each part, and a single image to the first.

    Raises:
        DataError: Nothing would be in the second part.
    """
    assert images.labels is not None
    labels = np.array(images.labels)
    rng = np.random.default_rng(seed)
    second: set[int] = set()
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            count = min(max(1, round(share * len(rows))), len(rows) - 1)
            second |= set(rows[:count].tolist())
    parts = [row for row in range(len(labels)) if row not in second], sorted(second)
    if not second:
        raise DataError(
            f"1 image per class ({len(labels)} classes), so that none is left to measure on: name "
            "other images by --val, or give the classes more images."
        )
    first, last = (
        replace(images, paths=images.paths.select(rows), labels=labels[rows].tolist())
        for rows in parts
    )
    return first, last


def _labelled(
    data: Sequence[str],
    table: Path | None,
    pixels: PixelFormat,
    classes: Sequence[str] | None = None,
) -> tuple[ImageSet, Labels]:
    """Find images with labels.

    Args:
        data: Where they are.
        table: What tells their labels; None: their source or their folders.
        pixels: How they are read.
        classes: Those that there may be; None: any two or more.
    """
    paths = find_images(*data)
    labels = needed_labels(paths, table)
    if classes is None:
        check_classes(labels)
    names = list(classes) if classes is not None else labels.classes
    unknown = [name for name in labels.classes if name not in names]
    if unknown:
        raise DataError(
            f"{paths.where} has classes that the training images lack: {', '.join(unknown)}."
        )
    place = {index: names.index(name) for index, name in enumerate(labels.classes)}
    rows, found = zip(*labels.pairs(), strict=True)
    chosen = ImageSet(paths.select(rows), pixels, [place[label] for label in found])
    return chosen, labels
