"""Masks: a class for each pixel, as folders of masks, tables or COCO's json tell it."""

import contextlib
import os
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from simmim.api.labelled import split_by_name
from simmim.api.remarks import notes
from simmim.api.tasks.task import Labelled, LabelledTask, Results
from simmim.config.augment import AugmentConfig
from simmim.config.finetune import SegmentConfig
from simmim.config.resolved import PixelFormat
from simmim.data.formats.image_file import UnreadableError
from simmim.data.loading.images import Annotation, ImageSet
from simmim.data.map_classes import (
    FILES,
    ClassList,
    MapClasses,
    meaning,
    named_classes,
    read_classes,
)
from simmim.data.parts import is_held, place_of
from simmim.data.sources.boxed import not_there
from simmim.data.sources.find import find_images
from simmim.data.sources.listing import Listing
from simmim.errors import ConfigError, DataError
from simmim.evaluate.confusion import Confusion
from simmim.machine import pick_workers
from simmim.models.encoder import Encoder
from simmim.report.segmented import CONFUSION, PICTURE
from simmim.runs.folder import write_json
from simmim.tasks.masks import save_png
from simmim.tasks.scenes import SceneReader
from simmim.tasks.segment import SegmentTask, begin_task
from simmim.tasks.segmenter import SEGMENTER, Segmenter
from simmim.tensors.batch import IGNORE
from simmim.training.step import looking
from simmim.training.world import World

MAPS: frozenset[Annotation] = frozenset({"maps"})
SHOWN = 6
"""Images whose masks are shown at the end."""
_SIDE = 240
"""Longest side of each."""


FEW = 32
"""Images to learn from below which they are seen as they are; docs/segment.md has the figures."""


@dataclass
class Masks:
    """What is in the masks of images.

    Attributes:
        images: Those that have a mask, or whose mask cannot be read, which the loader judges.
        pixels: Of each value, how many.
        example: Of each value, an image that has it.
        notes: What was left out.
    """

    images: Listing
    pixels: dict[int, int] = field(default_factory=dict)
    example: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Segment(LabelledTask[SegmentConfig, SegmentTask]):
    """See ``LabelledTask``."""

    annotations = MAPS
    figure = ("miou", "mean IoU")

    def fit(
        self, config: SegmentConfig, size: tuple[int, int], labelled: Labelled
    ) -> SegmentConfig:
        """See ``LabelledTask``: few are seen as they are; crops have the view's shape or so."""
        if _few(config, len(labelled.train)):
            augment = replace(config.augment, scale=(1.0, 1.0), flip=0.0)
            config = replace(config, augment=augment, task=replace(config.task, jitter=0.0))
        if config.augment.ratio != AugmentConfig.ratio:
            return config
        low, high = ((side * size[1] / size[0]) for side in AugmentConfig.ratio)
        return replace(config, augment=replace(config.augment, ratio=(low, high)))

    def regularisation(self, config: SegmentConfig) -> list[tuple[str, str, str]]:
        """See ``LabelledTask``."""
        augment = config.augment
        if augment.scale != (1.0, 1.0) or augment.flip or config.task.jitter:
            return []
        flags = "--augment.scale, --augment.flip, --task.jitter"
        return [("augmentation", "none", f"{flags}; none below {FEW} images, unless asked for")]

    def gather(self, config: SegmentConfig, pixels: PixelFormat) -> Labelled:
        """See ``LabelledTask``."""
        images = find_images(*config.data, maps=True)
        train, val, said = _split(images, config)
        rows = [*notes(images, whole=not said), *(("note", text) for text in said)]
        learned = read_masks(train)
        if config.val is not None:
            val = find_images(config.val, maps=True)
            rows += [(name, f"--val: {text}") for name, text in notes(val)]
        measured = read_masks(val)
        for what, masks in (("", learned), ("to measure on: ", measured)):
            rows += [("note", f"{what}{text}") for text in masks.notes]
        listed, told = _class_list(config, images), images.map_names
        seen = learned.example | ({} if listed is None or told else measured.example)
        classes = replace(meaning(listed, seen, config.task.ignore, images.where), told=told)
        _check_measured(classes, learned, measured, strict=config.val is not None)
        rows += [("note", text) for text in classes.notes]
        shares = _shares(classes, learned)
        none = [name for name, share in zip(classes.names, shares, strict=True) if not share]
        if none:
            rows.append(("note", f"no pixel to learn from is {', '.join(none)}"))
        return Labelled(
            ImageSet(learned.images, pixels, annotations=MAPS),
            ImageSet(measured.images, pixels, annotations=MAPS),
            classes.names,
            facts={**classes.facts(), "shares": shares},
            rows=rows,
        )

    def begin(
        self,
        config: SegmentConfig,
        start: Encoder | None,
        size: tuple[int, int],
        labelled: Labelled,
        world: World,
    ) -> SegmentTask:
        """See ``LabelledTask``."""
        classes = MapClasses.of(labelled.classes, labelled.facts)
        images, shares = labelled.train, labelled.facts["shares"]
        return begin_task(config, start, size, images, classes=classes, shares=shares, world=world)

    def build(
        self, config: SegmentConfig, size: tuple[int, int], labelled: Labelled, world: World
    ) -> SegmentTask:
        """See ``LabelledTask``."""
        return self.begin(config, None, size, labelled, world)

    def measure(
        self,
        task: SegmentTask,
        images: ImageSet,
        *,
        world: World,
        workers: int = 0,
    ) -> dict[str, float]:
        """See ``LabelledTask``."""
        found = task.segmenter.measure(images, workers=workers, world=world)
        return {"miou": found.miou, "pixel_accuracy": found.accuracy}

    def present(self, labelled: Labelled) -> np.ndarray:
        """See ``LabelledTask``."""
        return _pixels(labelled) > 0

    def draw(self, labelled: Labelled, rows: np.ndarray) -> Labelled:
        """See ``LabelledTask``: with the shares of pixels that the classes have there."""
        drawn = super().draw(labelled, rows)
        counts = _pixels(drawn).sum(0)
        if np.count_nonzero(counts) < 2:
            raise DataError(
                f"the masks of {len(rows):,} of the images to learn from show fewer than two "
                "classes."
            )
        drawn.facts = {**drawn.facts, "shares": (counts / counts.sum()).tolist()}
        return drawn

    def without_looking(self, labelled: Labelled) -> str:
        """See ``LabelledTask``."""
        counts = _pixels(replace(labelled, train=labelled.val)).sum(0)
        return _without_looking(Confusion(np.diag(counts), labelled.classes))

    def finish(
        self,
        config: SegmentConfig,
        task: SegmentTask,
        labelled: Labelled,
        *,
        run: Path,
        world: World,
    ) -> Results | None:
        """See ``LabelledTask``."""
        workers = pick_workers(config.system.workers, world.ranks)
        found = task.segmenter.measure(labelled.val, workers=workers, world=world)
        if not world.leads:
            return None
        counts = {"classes": list(found.classes), "confusion": found.counts.tolist()}
        write_json(run / CONFUSION, {**counts, "images": len(labelled.val)})
        sheet = _samples(task.segmenter, labelled.val)
        if sheet is not None:
            save_png(run / PICTURE, sheet)
        told = ", ".join(
            f"{name} {'none' if iou is None else f'{iou:.0%}'}"
            for name, iou in zip(found.classes, found.iou, strict=True)
        )
        data = shlex.join([str(run), config.val or config.data[0]])
        return Results(
            scores=[
                f"mean IoU           {found.miou:.1%} on {len(labelled.val):,} images",
                f"pixel accuracy     {found.accuracy:.1%}",
                f"IoU                {told}",
                _without_looking(found),
            ],
            files=[("confusion", run / CONFUSION), ("segmenter", run / SEGMENTER)],
            next=[f"simmim predict {data} --out masks"],
        )


def _without_looking(found: Confusion) -> str:
    """What a mean IoU is to be compared with, from the pixels that each class truly has."""
    return (
        f"always the largest class would have a mean IoU of {found.trivial:.1%} and be right on "
        f"{found.largest:.1%} of the pixels"
    )


def _pixels(labelled: Labelled) -> np.ndarray:
    """How many pixels (n, classes) of each class the masks of the images to learn from have."""
    paths = labelled.train.paths
    classes = MapClasses.of(labelled.classes, labelled.facts).for_names(paths.map_names)
    counts = []
    for index in range(len(labelled.train)):
        values = paths.map(index)
        assert values is not None  # ``gather`` left those without a mask out
        places = classes.classes_of(values)
        counts.append(np.bincount(places[places != IGNORE], minlength=len(classes.names)))
    return np.array(counts)


def _few(config: SegmentConfig, images: int) -> bool:
    """Whether there are few images, and the config asks for no augmentation of its own."""
    usual = SegmentConfig(data=config.data, init_from=config.init_from)
    asked = config.augment != usual.augment or config.task.jitter != usual.task.jitter
    return images < FEW and not asked


def _split(images: Listing, config: SegmentConfig) -> tuple[Listing, Listing, list[str]]:
    """Images to learn from, to measure on, and what should be known: by parts, or by lot."""
    if config.val is not None:
        return images, images, []
    parts = images.parts
    held = [part for part in parts if is_held(part)]
    if held and len(held) < len(parts):
        names = [place_of(name, parts) for name in images]
        chosen = held[0]  # val before test
        train = [i for i, place in enumerate(names) if place < 0 or parts[place] not in held]
        val = [i for i, place in enumerate(names) if place >= 0 and parts[place] == chosen]
        said = [f"measured on {chosen}, a part of {images.where}"]
        left = len(images) - len(train) - len(val)
        if left:
            others = ", ".join(part for part in held if part != chosen)
            said.append(f"{left:,} images of {others} are left out, of a split that {chosen} is of")
        return images.select(train), images.select(val), said
    return *split_by_name(images, config.val_share), []


def read_masks(images: Listing) -> Masks:
    """Read all masks once, and compare their sizes with those of their images.

    Raises:
        DataError: The source has no masks, none of the images has one, or one has another size.
    """
    images.check_has("maps")
    gone, many = not_there(images) if images.map_names else [], len(images)
    such = images[gone[0]] if gone else ""
    images = images.without(gone)
    found = Masks(images)
    if gone:
        text = f"{len(gone):,} of {many:,} images are not there and are left out, such as {such}"
        found.notes.append(text)
    kept, without, wrong = [], [], []
    for index in range(len(images)):
        name = images[index]
        with contextlib.suppress(UnreadableError):
            values = images.map(index)
            if values is None:
                without.append(name)
                continue
            kept.append(index)
            opened = images.open(index)
            if values.shape != (opened.height, opened.width):
                sizes = ["{}×{}".format(*s) for s in (values.shape, (opened.height, opened.width))]
                wrong.append(f"{name}, of {sizes[0]} pixels for an image of {sizes[1]}")
                continue
            for value, count in zip(*np.unique(values, return_counts=True), strict=True):
                found.pixels[int(value)] = found.pixels.get(int(value), 0) + int(count)
                found.example.setdefault(int(value), name)
            continue
        if kept[-1:] != [index]:
            kept.append(index)  # unreadable: the loader says so, and judges
    if wrong:
        raise DataError(
            f"{len(wrong):,} of {len(images):,} masks in {images.where} have another size than "
            f"their image (height × width), such as that of {wrong[0]}. Bring them to its size "
            "with the nearest values (no smoothing)."
        )
    if without:
        text = f"{len(without):,} of {len(images):,} images have no mask and are left out"
        found.notes.append(f"{text}, such as {without[0]}")
    if not found.pixels:
        raise DataError(f"none of the {len(images):,} images in {images.where} has a mask.")
    found.images = images.select(kept)
    return found


def _check_measured(classes: MapClasses, learned: Masks, measured: Masks, *, strict: bool) -> None:
    """Raise ``DataError`` where there is a class to measure on that is not learned."""
    have = {classes.lookup[value] for value in learned.pixels}
    told = measured.images.map_names
    lookup = classes.for_names(told).lookup
    for value, name in measured.example.items():
        place = lookup.get(value)
        if place is None or (strict and place not in have | {IGNORE}):
            called = (told[value] if told else value) if place is None else classes.names[place]
            raise DataError(
                f"the masks to measure on have the class {called}, such as in {name}, which no "
                "mask to learn from has."
            )


def _shares(classes: MapClasses, learned: Masks) -> list[float]:
    """The share of the pixels that each class has.

    Raises:
        DataError: One of them has all.
    """
    counts = [0] * len(classes.names)
    for value, count in learned.pixels.items():
        if classes.lookup[value] != IGNORE:
            counts[classes.lookup[value]] += count
    if sum(map(bool, counts)) < 2:
        only = [name for name, count in zip(classes.names, counts, strict=True) if count]
        raise DataError(
            f"the masks to learn from have {len(only)} of the {len(counts)} classes"
            f"{''.join(f', {name}' for name in only)}; at least two are needed to learn to tell "
            "them apart."
        )
    return [count / sum(counts) for count in counts]


def _class_list(config: SegmentConfig, images: Listing) -> ClassList | None:
    """The list of classes: what the source tells, what is named, or lies beside the folders."""
    if config.task.classes is not None and images.map_names:
        raise ConfigError(f"a list of classes is not needed: {images.where} names its own.")
    if images.map_names:
        return named_classes(images.map_names)
    if config.task.classes is not None:
        return read_classes(config.task.classes)
    for info in images.infos:
        where = Path(info.where)
        for folder in dict.fromkeys((where, where.parent, Path(os.path.commonpath(info.parts)))):
            for name in FILES:
                if (folder / name).is_file():
                    return read_classes(folder / name)
    return None


def _samples(segmenter: Segmenter, val: ImageSet) -> np.ndarray | None:
    """Rows of image, mask and prediction, side by side (h, w, 3) uint8; None: none can be read."""
    from PIL import Image

    rows = []
    frames = [(val.pixels, segmenter.window)]
    reader = SceneReader(val, frames, segmenter.map_classes, shown=True)
    with looking(segmenter), contextlib.suppress(DataError):
        for _, scene in reader.read(sorted(val.paths.lowest(min(SHOWN, len(val))))):
            if scene is None:
                continue
            truth, photo = scene.truth, scene.shown
            assert truth is not None
            assert photo is not None
            clear = np.where((truth == IGNORE)[..., None], 0, segmenter.colours[truth.clip(0)])
            found = segmenter.segment(scene, frames)
            shown = [photo, clear.astype(np.uint8), segmenter.colours[found]]
            scale = _SIDE / max(truth.shape)
            size = max(1, round(truth.shape[1] * scale)), max(1, round(truth.shape[0] * scale))
            pictures = [np.asarray(Image.fromarray(each).resize(size)) for each in shown]
            rows.append(np.concatenate(pictures, 1))
    if not rows:
        return None
    widest = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, 4), (0, widest - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return np.concatenate(padded)
