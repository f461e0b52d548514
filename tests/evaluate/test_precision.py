"""Average precision against pycocotools, on the same predictions."""

import contextlib
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from simmim.data.sources.boxes import Boxes
from simmim.data.sources.segmentation import decode_mask, encode_mask
from simmim.errors import DataError
from simmim.evaluate.precision import Found, average_precision

CLASSES = ["cell", "platelet", "none of these"]


def scene(rng: np.random.Generator) -> tuple[list[Boxes], list[Found]]:
    """Images with boxes, some of them crowds or beyond the edges; near and wrong finds."""
    truth, found = [], []
    for image in range(12):
        count = 0 if image == 3 else int(rng.integers(1, 9))
        corners = rng.uniform(-5, 80, (count, 2))
        corners = np.hstack([corners, corners + rng.uniform(4, 60, (count, 2))])
        kinds = rng.integers(0, 2, count)
        truth.append(Boxes((100, 100), corners, kinds, rng.random(count) < 0.15))
        near = corners + rng.normal(0, 3, corners.shape)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        wrong = rng.uniform((0, 0, 50, 50), (50, 50, 100, 100), (4, 4))
        boxes, labels = np.vstack([near, wrong]), np.concatenate([kinds, rng.integers(0, 3, 4)])
        scores = rng.random(len(boxes)).astype(np.float32)
        if image != 5:
            found.append(Found((100, 100), boxes, labels, scores))
        else:
            found.append(Found((100, 100), boxes[:0], labels[:0], scores[:0]))
    return truth, found


def diamond(corners: list[float]) -> list[list[float]]:
    """A polygon of COCO's that a box is around."""
    left, top, right, bottom = corners
    x, y = (left + right) / 2, (top + bottom) / 2
    return [[left, y, x, top, right, y, x, bottom]]


def runs(corners: np.ndarray) -> list[dict[str, Any]]:
    return [encode_mask(decode_mask(diamond(each), (100, 100))) for each in corners.tolist()]


def by_pycocotools(truth: list[Boxes], found: list[Found], kind: str = "bbox") -> list[float]:
    annotations = [
        {
            "image_id": image,
            "category_id": int(label),
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": diamond([left, top, right, bottom]),
            "area": (right - left) * (bottom - top),
            "iscrowd": int(crowd),
        }
        for image, each in enumerate(truth)
        for label, crowd, (left, top, right, bottom) in zip(
            each.categories, each.crowd, each.corners.tolist(), strict=True
        )
    ]
    known = COCO()
    known.dataset = {
        "info": {},
        "images": [{"id": image, "height": 100, "width": 100} for image in range(len(truth))],
        "annotations": [{**each, "id": number} for number, each in enumerate(annotations, 1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES)],
    }
    results = [
        {
            "image_id": image,
            "category_id": int(label),
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": mask,
            "score": float(score),
        }
        for image, each in enumerate(found)
        for label, score, (left, top, right, bottom), mask in zip(
            each.labels, each.scores, each.corners.tolist(), runs(each.corners), strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        measure = COCOeval(known, known.loadRes(results), kind)
        measure.evaluate()
        measure.accumulate()
        measure.summarize()
    return measure.stats.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_it_is_that_of_pycocotools(seed: int):
    truth, found = scene(np.random.default_rng(seed))
    ours, theirs = average_precision(truth, found, CLASSES), by_pycocotools(truth, found)
    assert 0.05 < ours.ap < ours.ap50 < 1
    assert (ours.ap, ours.ap50) == pytest.approx(theirs[:2], abs=1e-12)
    assert ours.by_class[2] is None
    assert np.mean(ours.by_class[:2]) == pytest.approx(ours.ap50, abs=1e-12)


def test_that_of_masks_is_too():
    truth, found = scene(np.random.default_rng(3))
    found = [replace(each, masks=runs(each.corners)) for each in found]
    ours = average_precision(truth, found, CLASSES, [runs(each.corners) for each in truth])
    theirs = by_pycocotools(truth, found, "segm")
    assert 0.05 < ours.ap < ours.ap50 < 1
    assert (ours.ap, ours.ap50) == pytest.approx(theirs[:2], abs=1e-12)
    assert theirs[0] != pytest.approx(by_pycocotools(truth, found)[0], abs=1e-3)


def test_all_and_nothing():
    truth, _ = scene(np.random.default_rng(0))
    whole = [
        Found(each.frame, each.corners, each.categories, np.ones(len(each.corners), np.float32))
        for each in truth
    ]
    assert average_precision(truth, whole, CLASSES).ap == 1
    none = [Found(each.frame, np.empty((0, 4)), np.empty(0, int), np.empty(0)) for each in truth]
    found = average_precision(truth, none, CLASSES)
    assert (found.ap, found.ap50, found.by_class) == (0, 0, [0, 0, None])
    empty = [
        Boxes(each.frame, each.corners[:0], each.categories[:0], each.crowd[:0]) for each in truth
    ]
    with pytest.raises(DataError, match="no box in the images to measure on"):
        average_precision(empty, whole, CLASSES)
