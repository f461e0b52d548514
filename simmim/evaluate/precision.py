"""How well objects are found: COCO's average precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from simmim.data.sources.boxes import Boxes
from simmim.errors import DataError


@dataclass(frozen=True)
class Precision:
    """Average precision of what was found.

    Attributes:
        ap: The mean over the overlaps 0.5, 0.55, …, 0.95 that count as found, and over classes.
        ap50: With the overlap 0.5 alone.
        by_class: ``ap50`` of each class; None for one of which there is no object.
    """

    ap: float
    ap50: float
    by_class: list[float | None]


@dataclass(frozen=True)
class Found:
    """What was found in an image.

    Attributes:
        frame: Height and width that the corners are counted in.
        corners: (n, 4) float64, left, top, right and bottom in pixels, the surest first.
        labels: (n,) int64 classes.
        scores: (n,) float32, 0 to 1.
        masks: A mask of each, by runs of pixels (see ``encode_mask``); None: it was
            not asked for.
    """

    frame: tuple[int, int]
    corners: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: list[dict[str, Any]] | None = None


def average_precision(
    truth: Sequence[Boxes],
    found: Sequence[Found],
    classes: Sequence[str],
    masks: Sequence[Sequence[dict[str, Any]]] | None = None,
) -> Precision:
    """Compare what was found in images with what is there, as pycocotools does.

    Boxes are compared as they were told, though some may be beyond the edges of their image. What
    is found within a crowd counts neither for nor against.

    Args:
        truth: The boxes of each image, in pixels of the frame in which ``found`` is.
        found: What was found in each of these images.
        classes: Names of the classes.
        masks: The masks of the boxes of ``truth``, as those of ``found``, where masks are compared.

    Raises:
        DataError: There is nothing in any of the images.
    """
    name, kind = ("bbox", "bbox") if masks is None else ("segmentation", "segm")
    shapes = masks or [_sides(each.corners) for each in truth]
    theirs = [_sides(each.corners) if masks is None else each.masks or [] for each in found]
    objects: list[dict[str, Any]] = [
        {"image_id": image, "category_id": int(category), "iscrowd": int(crowd), name: shape}
        for image, (each, own) in enumerate(zip(truth, shapes, strict=True), 1)
        for category, crowd, shape in zip(each.categories, each.crowd, own, strict=True)
    ]
    if not any(not each["iscrowd"] for each in objects):
        what = "box" if masks is None else "mask"
        raise DataError(
            f"there is no {what} in the images to measure on, so nothing can be measured."
        )
    # Only sizes that are measured apart would ask for the true area.
    numbered = [{**each, "id": number, "area": 1} for number, each in enumerate(objects, 1)]
    told = {
        "images": [
            {"id": image, "height": each.frame[0], "width": each.frame[1]}
            for image, each in enumerate(found, 1)
        ],
        "annotations": numbered,
        "categories": [{"id": k, "name": title} for k, title in enumerate(classes)],
    }
    results = [
        {"image_id": image, "category_id": int(category), "score": float(score), name: shape}
        for image, (each, own) in enumerate(zip(found, theirs, strict=True), 1)
        for category, score, shape in zip(each.labels, each.scores, own, strict=True)
    ]
    known = COCO(told)
    measure = COCOeval_faster(known, known.loadRes(results), kind, print_function=_silent)
    measure.evaluate()
    measure.accumulate()
    # overlap, recall, class, area, detections: all areas, 100 detections; −1 where nothing is known
    precision = np.asarray(measure.eval["precision"])[:, :, :, 0, -1]
    seen = precision[0].mean(0)
    return Precision(
        _mean(precision), _mean(precision[0]), [float(each) if each >= 0 else None for each in seen]
    )


def _mean(values: np.ndarray) -> float:
    return float(values[values >= 0].mean())


def _sides(corners: np.ndarray) -> list[list[float]]:
    """Left, top, width and height."""
    return np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]).tolist()


def _silent(*_: object) -> None:
    """For what would be printed."""
