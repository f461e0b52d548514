"""Objects: boxes in images, as COCO, YOLO or Pascal VOC tell them."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path

import numpy as np

from simmim.api.labelled import split_by_name
from simmim.api.remarks import notes
from simmim.api.tasks.task import Labelled, LabelledTask, Results
from simmim.config.finetune import DetectConfig
from simmim.config.resolved import PixelFormat
from simmim.data.formats.image_file import UnreadableError
from simmim.data.loading.images import Annotation, ImageSet
from simmim.data.sources.boxed import not_there
from simmim.data.sources.find import find_images
from simmim.data.sources.listing import Listing
from simmim.data.sources.yolo import folders_to_measure_on
from simmim.errors import ConfigError, DataError
from simmim.machine import pick_workers
from simmim.models.encoder import Encoder
from simmim.report.boxes import overlay, sheet
from simmim.report.detected import PICTURE, PRECISION, PREDICTIONS, TITLES
from simmim.report.words import count
from simmim.runs.files import replacing, write_text
from simmim.tasks.detect import DetectTask, begin_task, scores_of
from simmim.tasks.detections import Detections
from simmim.tasks.detector import DETECTOR
from simmim.training.world import World

SHOWN = 8
"""Images whose finds are drawn at the end."""
BOXES: frozenset[Annotation] = frozenset({"boxes"})
MASKS: frozenset[Annotation] = frozenset({"boxes", "masks"})

Rows = list[tuple[str, str]]
"""What should be known, name and value."""


class Detect(LabelledTask[DetectConfig, DetectTask]):
    """See ``LabelledTask``."""

    annotations = BOXES
    figure = ("ap50", "AP50")

    def gather(self, config: DetectConfig, pixels: PixelFormat) -> Labelled:
        """See ``LabelledTask``."""
        if config.labels is not None:
            raise ConfigError(
                "--labels tells classes of images; --task detect reads boxes of DATA."
            )
        train, said = self._images(config.data, pixels)
        classes = train.paths.categories
        others = [config.val] if config.val else folders_to_measure_on(config.data)
        if others:
            val, more = self._images(others, pixels)
            said += [(name, f"to measure on: {text}") for name, text in more]
            _check_known(val, classes)
        else:
            paths = split_by_name(train.paths, config.val_share)
            train, val = (replace(train, paths=each) for each in paths)
        counts = np.bincount(_kinds(train), minlength=len(classes))
        lacking = [name for name, count in zip(classes, counts, strict=True) if not count]
        if len(lacking) == len(classes):
            raise DataError(f"{train.paths.where} has no box to learn from.")
        if not len(_kinds(val)):
            raise DataError(f"{val.paths.where} has no box among those to measure on.")
        if lacking:
            text = f"{len(lacking)} of {len(classes)} classes have no box to learn from, such as "
            said.append(("note", text + lacking[0]))
        return Labelled(train, val, classes, rows=said)

    def _images(self, data: Sequence[str], pixels: PixelFormat) -> tuple[ImageSet, Rows]:
        """Find images with boxes, and with masks if these are asked for; see ``_boxed``."""
        paths, said = _boxed(data)
        if "masks" in self.annotations:
            said += _unmasked(paths)
        return ImageSet(paths, pixels, annotations=self.annotations), said

    def begin(
        self,
        config: DetectConfig,
        start: Encoder | None,
        size: tuple[int, int],
        labelled: Labelled,
        world: World,
    ) -> DetectTask:
        """See ``LabelledTask``."""
        images, classes = labelled.train, labelled.classes
        return begin_task(config, start, size, images, classes=classes, world=world)

    def build(
        self, config: DetectConfig, size: tuple[int, int], labelled: Labelled, world: World
    ) -> DetectTask:
        """See ``LabelledTask``."""
        return self.begin(config, None, size, labelled, world)

    def measure(
        self, task: DetectTask, images: ImageSet, *, world: World, workers: int = 0
    ) -> dict[str, float]:
        """See ``LabelledTask``."""
        found = task.detector.predict(images, world=world, workers=workers)
        return scores_of(found, found.score())

    def present(self, labelled: Labelled) -> np.ndarray:
        """See ``LabelledTask``: crowds are not learned from."""
        found = np.zeros((len(labelled.train), len(labelled.classes)), bool)
        for row in range(len(found)):
            boxes = labelled.train.paths.boxes(row)
            found[row, boxes.categories[~boxes.crowd]] = True
        return found

    def draw(self, labelled: Labelled, rows: np.ndarray) -> Labelled:
        """See ``LabelledTask``."""
        drawn = super().draw(labelled, rows)
        if not len(_kinds(drawn.train)):
            raise DataError(f"{len(rows):,} of the images to learn from show no object.")
        return drawn

    def finish(
        self,
        config: DetectConfig,
        task: DetectTask,
        labelled: Labelled,
        *,
        run: Path,
        world: World,
    ) -> Results | None:
        """See ``LabelledTask``."""
        workers = pick_workers(config.system.workers, world.ranks)
        found = task.detector.predict(labelled.val, world=world, workers=workers)
        if not world.leads:
            return None
        score = found.score()
        scores = scores_of(found, score)
        left_out = found.write(run / PREDICTIONS)
        by_class = dict(zip(found.classes, score.by_class, strict=True))
        write_text(run / PRECISION, json.dumps({**scores, "classes": by_class}))
        _draw(found, run / PICTURE)
        data = shlex.join([str(run), config.val or config.data[0]])
        return Results(
            scores=[
                f"measured on        {count(len(found.images), 'image')}",
                *(f"{TITLES[name]:<18} {value:.1%}" for name, value in scores.items()),
                *(f"note               {each}" for each in left_out),
            ],
            files=[("predictions", run / PREDICTIONS), ("detector", run / DETECTOR)],
            next=[f"simmim predict {data} --out found"],
        )


class DetectMasks(Detect):
    """The same, with masks."""

    annotations = MASKS


def _boxed(data: Sequence[str]) -> tuple[Listing, Rows]:
    """Find images with boxes, those that are there, and what should be known of them."""
    paths = find_images(*data, boxes=True)
    said = list(notes(paths))
    paths.check_has("boxes")
    gone = not_there(paths)
    if gone:
        text = f"images that are not there: {len(gone):,} of {len(paths):,}, such as "
        said.append(("note", text + paths[gone[0]]))
        paths = paths.without(gone)
    crowds, only, empty = 0, [], 0
    for row in range(len(paths)):
        crowd = paths.boxes(row).crowd
        crowds += int(crowd.sum())
        empty += not len(crowd)
        if len(crowd) and crowd.all():
            only.append(row)
    if crowds:
        text = f"boxes of crowds, neither learned from nor judged by: {crowds:,}"
        said.append(("note", text))
    if only:
        text = f"{count(len(only), 'image')} with boxes of crowds alone left out, such as "
        said.append(("note", text + paths[only[0]]))
        paths = paths.without(only)
    if empty:
        text = f"images without a box, which count as background: {empty:,} of {len(paths):,}"
        said.append(("note", text))
    return paths, said


def _unmasked(paths: Listing) -> Rows:
    """What should be known of objects without a mask."""
    paths.check_has("masks")
    lacking, objects, such = 0, 0, ""
    for row in range(len(paths)):
        single = ~paths.boxes(row).crowd
        without = sum(not text for text in compress(paths.outlines(row), single))
        objects += int(single.sum())
        lacking += without
        such = such or (paths[row] if without else "")
    if not lacking:
        return []
    text = "objects without a mask, neither learned from nor judged by their masks: "
    return [("note", f"{text}{lacking:,} of {objects:,}, such as in {such}")]


def _kinds(images: ImageSet) -> np.ndarray:
    """The class of every box that is no crowd."""
    boxes = [images.paths.boxes(row) for row in range(len(images))]
    return np.concatenate([np.empty(0, np.int64), *(b.categories[~b.crowd] for b in boxes)])


def _check_known(val: ImageSet, classes: Sequence[str]) -> None:
    """Raise ``DataError`` where there are boxes of a class that is not learned."""
    used = {val.paths.categories[kind] for kind in _kinds(val).tolist()}
    unknown = sorted(used - set(classes))
    if unknown:
        raise DataError(
            f"{val.paths.where} has classes that the training images lack: {', '.join(unknown)}."
        )


def _draw(found: Detections, file: Path) -> None:
    """Draw what was found in a few images."""
    pictures = []
    for row in found.images.lowest(SHOWN):
        try:
            photo = found.photo(row)
        except (UnreadableError, OSError):
            continue
        pictures.append(overlay(photo, found.found[row], found.classes))
    if pictures:
        file.parent.mkdir(exist_ok=True)
        with replacing(file) as temporary:
            sheet(pictures).save(temporary, "PNG")
