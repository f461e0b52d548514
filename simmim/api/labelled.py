"""Images with labels: those to learn from, and those to measure on."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simmim.api.remarks import notes
from simmim.config.commands import ProbeConfig
from simmim.config.finetune import ClassifyConfig, MultiLabelConfig, RegressConfig
from simmim.config.resolved import PixelFormat
from simmim.data.label_table import NUMBER, SEVERAL_CLASSES, LabelForm
from simmim.data.labels import Labels, check_classes, known_values, needed_labels
from simmim.data.loading.images import ImageSet, split_by_class
from simmim.data.sources.find import find_images
from simmim.data.sources.index import in_order
from simmim.data.sources.listing import Listing
from simmim.errors import DataError
from simmim.evaluate.fewshot import draw_rows, draw_share


def labelled_parts(
    config: ProbeConfig | ClassifyConfig, share: float, pixels: PixelFormat
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
    drawn = images.select(rows)
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
    _check_known(paths, unknown)
    place = {index: names.index(name) for index, name in enumerate(labels.classes)}
    rows, found = zip(*labels.pairs(), strict=True)
    chosen = ImageSet(paths.select(rows), pixels, [place[label] for label in found])
    return chosen, labels


def tagged_parts(
    config: MultiLabelConfig, pixels: PixelFormat
) -> tuple[ImageSet, ImageSet, list[str], list[tuple[str, str]]]:
    """Return what ``labelled_parts`` does, of images that are of any number of classes.

    Raises:
        DataError: There is no class, or all images have the same ones.
    """
    paths, values, said = _known(config.data, config, SEVERAL_CLASSES)
    classes = in_order(list({name for names in values for name in names}))
    without = sum(not names for names in values)
    if without:
        said.append(("note", f"{without:,} of {len(paths):,} images are of none of the classes"))

    def tagged(listing: Listing, known: Sequence[tuple[str, ...]]) -> ImageSet:
        labels = [[int(name in names) for name in classes] for names in known]
        return ImageSet(listing, pixels, labels)

    if config.val is not None:
        others, more, notes_of_val = _known((config.val,), config, SEVERAL_CLASSES)
        unknown = in_order(list({name for names in more for name in names} - set(classes)))
        _check_known(others, unknown)
        train, val = tagged(paths, values), tagged(others, more)
        said += [(name, f"--val: {text}") for name, text in notes_of_val]
    else:
        train, val = _split(tagged(paths, values), _held_tags(paths, values, config.val_share))
    train, drawn = _draw_any(train, config)
    said += drawn
    counts = np.array([np.array(each.labels).sum(0) for each in (train, val)])
    for row, what in zip(counts, ("learn from", "measure on"), strict=True):
        lacking = [name for name, count in zip(classes, row, strict=True) if not count]
        if lacking:
            text = f"{len(lacking):,} of {len(classes):,} classes have no image to {what}, such as "
            said.append(("note", text + lacking[0]))
    check_differ(train, "are of the same classes")
    return train, val, classes, said


def numbered_parts(
    config: RegressConfig, pixels: PixelFormat
) -> tuple[ImageSet, ImageSet, list[tuple[str, str]]]:
    """Return images with numbers to learn from, those to measure on, and what should be known.

    Raises:
        DataError: A label is no number, or all are the same.
    """
    paths, values, said = _known(config.data, config, NUMBER)
    if config.val is not None:
        others, more, notes_of_val = _known((config.val,), config, NUMBER)
        train, val = ImageSet(paths, pixels, values), ImageSet(others, pixels, more)
        said += [(name, f"--val: {text}") for name, text in notes_of_val]
    else:
        held = _held_by_name(paths, config.val_share)
        train, val = _split(ImageSet(paths, pixels, values), held)
    train, drawn = _draw_any(train, config)
    check_differ(train, "have the same number")
    assert train.labels is not None
    low, high = f"{min(train.labels):g}", f"{max(train.labels):g}"
    return train, val, [*said, *drawn, ("numbers", f"{low} … {high}, to learn from")]


def _known(
    data: Sequence[str], config: MultiLabelConfig | RegressConfig, form: LabelForm
) -> tuple[Listing, list[Any], list[tuple[str, str]]]:
    """Find images with labels of a form, those labels, and what should be known of them."""
    paths = find_images(*data)
    rows, values, said = known_values(paths, config.labels, form, config.task.column)
    found = notes(paths) + [("note", text) for text in said]
    return paths.select(rows), values, found


def _held_tags(paths: Listing, values: Sequence[Sequence[str]], share: float) -> list[int]:
    """As ``_held_by_name``, but never the last image of a class."""
    wanted = _wanted(paths, share)
    left = Counter(name for names in values for name in names)
    held: list[int] = []
    for place in paths.lowest(len(paths)):
        names = values[place]
        if len(held) < wanted and all(left[name] > 1 for name in names):
            held.append(place)
            left.subtract(names)
    if not held:
        raise DataError(
            f"each image in {paths.where} is the only one of a class, so that none is left to "
            "measure on: name others by --val."
        )
    return sorted(held)


def _split(images: ImageSet, held: Sequence[int]) -> tuple[ImageSet, ImageSet]:
    """Split images into those that are learned from and those that are held out."""
    left = np.setdiff1d(np.arange(len(images)), held)
    return images.select(left), images.select(held)


def _draw_any(
    images: ImageSet, config: MultiLabelConfig | RegressConfig
) -> tuple[ImageSet, list[tuple[str, str]]]:
    """Return the share of the images that is learned from, as ``draw_labels`` does."""
    if config.label_fraction is None:
        return images, []
    share = draw_share(np.zeros(len(images)), config.label_fraction, 1, config.seed)
    how = f"{config.label_fraction:g} of them (--label-fraction), by --seed {config.seed}"
    drawn = images.select(np.sort(share))
    return drawn, [("drawn", f"{len(drawn):,} of {len(images):,} images are learned from: {how}")]


def check_differ(train: ImageSet, what: str) -> None:
    """Raise ``DataError`` where all labels are the same, from which nothing can be learned."""
    assert train.labels is not None
    if all(label == train.labels[0] for label in train.labels):
        raise DataError(
            f"all {len(train):,} images to learn from {what}, so that there is nothing to learn."
        )


def _check_known(paths: Listing, unknown: Sequence[str]) -> None:
    if unknown:
        raise DataError(
            f"{paths.where} has classes that the training images lack: {', '.join(unknown)}."
        )


def split_by_name(images: Listing, share: float) -> tuple[Listing, Listing]:
    """Split images, by a hash of their names: those to learn from, and a share to measure on.

    Raises:
        DataError: There is but one.
    """
    held = _held_by_name(images, share)
    return images.without(held), images.select(held)


def _held_by_name(images: Listing, share: float) -> list[int]:
    """Places of a share of the images, by a hash of their names, to measure on."""
    return sorted(images.lowest(_wanted(images, share)))


def _wanted(images: Listing, share: float) -> int:
    """How many images a share of them is: one at least, and not all."""
    if len(images) < 2:
        raise DataError(
            f"{images.where} has {len(images)} image to learn from, so that none is left to "
            "measure on: name others by --val."
        )
    return min(max(1, round(share * len(images))), len(images) - 1)
