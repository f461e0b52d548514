"""Images with labels: those to learn from, and those to measure on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from simmim.api.remarks import notes
from simmim.config.commands import ProbeConfig
from simmim.config.finetune import ClassifyConfig
from simmim.config.resolved import PixelFormat
from simmim.config.studies import LabelsConfig
from simmim.data.labels import Labels, check_classes, needed_labels
from simmim.data.loading.images import ImageSet, split_by_class
from simmim.data.sources.find import find_images
from simmim.errors import DataError
from simmim.evaluate.fewshot import draw_rows, draw_share


def labelled_parts(
    config: ProbeConfig | ClassifyConfig | LabelsConfig, share: float, pixels: PixelFormat
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
    first, second = split_by_class(images, share, config.seed)
    if single:
        text = f"{len(single)} of {len(classes)} classes have 1 image, which is learned from and "
        said.append(("note", f"{text}not measured on, such as {single[0]}"))
    return first, second, classes, said


def draw_labels(
    images: ImageSet, classes: Sequence[str], config: ClassifyConfig
) -> tuple[ImageSet, list[tuple[str, str]]]:
    """Return those of the images that are drawn to learn from, and what should be known of it.

    The draws of one seed are nested: the more images, the more are added to the same ones.
    """
    if config.shots is None and config.label_fraction is None:
        return images, []
    labels = np.array(images.labels)
    if config.shots is not None:
        rows = draw_rows(labels, config.shots, 1, config.seed)
        how = f"{config.shots:,} of each class (--shots)"
    else:
        assert config.label_fraction is not None
        rows = draw_share(labels, config.label_fraction, 1, config.seed)
        how = f"{config.label_fraction:g} of each class (--label-fraction), one at least"
    rows.sort()
    drawn = replace(images, paths=images.paths.select(rows), labels=labels[rows].tolist())
    text = f"{len(rows):,} of {len(images):,} images are learned from: {how}, by --seed"
    said = [("drawn", f"{text} {config.seed}")]
    counts = np.bincount(labels, minlength=len(classes))
    few = np.flatnonzero((counts > 0) & (counts < (config.shots or 0)))
    if len(few):
        text = f"{len(few):,} of {len(classes):,} classes have fewer than {config.shots:,} images"
        such = f"{classes[few[0]]} ({counts[few[0]]:,})"
        said.append(("note", f"{text}, and give all that they have, such as {such}"))
    return drawn, said


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
