"""A mask as COCO's json tells it, by polygons or by runs of pixels."""

import json
import math
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask

CORNERS = 3
"""Corners of a polygon that has an area, at least."""
FAR = 10
"""Sides of an image that a corner may be beyond it: edges are followed pixel by pixel."""


def decode_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Return a mask (h, w) of booleans, with the pixels that pycocotools gives it.

    It may be empty: polygons of fewer than three corners cover nothing.

    Args:
        segmentation: A list of polygons, each a list of x and y in turns; or a dictionary of
            ``size`` and ``counts``, the lengths of runs down the columns, as a list or compressed.
        size: Height and width of the image.

    Raises:
        ValueError: It is neither, or does not fit the image.
    """
    height, width = size
    if isinstance(segmentation, dict):
        if list(segmentation.get("size") or ()) != [height, width]:
            raise ValueError(f"runs of {segmentation.get('size')}, not of {[height, width]} pixels")
        return _decode_runs(segmentation.get("counts"), height, width)
    if not isinstance(segmentation, list):
        raise ValueError("neither polygons nor runs")  # noqa: TRY004
    polygons = [_checked(each, height, width) for each in segmentation]
    polygons = [each for each in polygons if len(each) >= 2 * CORNERS]
    if not polygons:
        return np.zeros(size, bool)
    runs = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))  # type: ignore[arg-type]
    return coco_mask.decode(runs).astype(bool)


def told_mask(segmentation: Any) -> str:
    """Return a segmentation as JSON; empty where it tells no pixel, or is none."""
    told = segmentation.get("counts") if isinstance(segmentation, dict) else segmentation
    if isinstance(segmentation, list):
        told = any(not isinstance(each, list) or len(each) >= 2 * CORNERS for each in segmentation)
    return json.dumps(segmentation, separators=(",", ":")) if told else ""


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask (h, w) as compressed runs, which JSON holds."""
    runs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    counts = runs["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    return {"size": list(mask.shape), "counts": text}


def _decode_runs(counts: Any, height: int, width: int) -> np.ndarray:
    if isinstance(counts, str):
        runs: Any = {"size": [height, width], "counts": counts}
        return coco_mask.decode(runs).astype(bool)  # which raises ValueError
    if not isinstance(counts, list) or not all(isinstance(n, int) and n >= 0 for n in counts):
        raise ValueError("the counts of its runs are no whole numbers")
    if sum(counts) != height * width:
        raise ValueError(f"runs of {sum(counts):,} pixels, not of {height * width:,}")
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(width, height).T


def _checked(polygon: Any, height: int, width: int) -> list[float]:
    """Return x and y in turns.

    Raises:
        ValueError: They are not pairs of numbers, or too far from the image.
    """
    numbers = isinstance(polygon, list) and all(isinstance(n, int | float) for n in polygon)
    if not numbers or len(polygon) % 2:
        raise ValueError("a polygon is a list of x and y in turns")
    if not all(map(math.isfinite, polygon)):
        raise ValueError("a corner is no number")
    for values, side in ((polygon[0::2], width), (polygon[1::2], height)):
        if any(not -FAR * side <= n <= (1 + FAR) * side for n in values):
            raise ValueError(f"a corner is farther than {FAR} sides of the image from it")
    return [float(n) for n in polygon]
