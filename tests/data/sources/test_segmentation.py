"""Masks as COCO's json tells them."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as pycoco

from simmim.data.sources.segmentation import decode_mask, encode_mask

SIZE = (20, 30)


def test_polygons_have_the_pixels_of_pycocotools():
    rng = np.random.default_rng(0)
    for corners in (3, 4, 9):
        polygons = [(rng.uniform(-4, 34, 2 * corners)).tolist() for _ in range(3)]
        theirs = pycoco.decode(pycoco.merge(pycoco.frPyObjects(polygons, *SIZE)))
        assert np.array_equal(decode_mask(polygons, SIZE), theirs)
    square = decode_mask([[5, 4, 15, 4, 15, 14, 5, 14], [1, 1, 2, 2]], SIZE)
    assert square.dtype == bool
    assert square[4:14, 5:15].all()
    assert square.sum() == 100
    assert not decode_mask([[1, 1, 2, 2]], SIZE).any()
    assert not decode_mask([], SIZE).any()


def test_runs_go_down_the_columns_and_come_back():
    mask = np.random.default_rng(1).random(SIZE) < 0.3
    runs = encode_mask(mask)
    assert np.array_equal(pycoco.decode(runs), mask)
    assert np.array_equal(decode_mask(runs, SIZE), mask)
    flat = [0, *mask.T.ravel().tolist(), not mask[-1, -1]]
    ends = np.flatnonzero(np.diff(flat))
    counts = np.diff(ends, prepend=0).tolist()
    assert np.array_equal(decode_mask({"size": list(SIZE), "counts": counts}, SIZE), mask)


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        (None, "neither polygons nor runs"),
        ([1, 2, 3, 4, 5, 6], "x and y in turns"),
        ([[1, 2, 3, 4, 5, 6, 7]], "x and y in turns"),
        ([[1, 2, 3, "4", 5, 6]], "x and y in turns"),
        ([[1, 2, 3, 4, 5, float("nan")]], "no number"),
        ([[1e9, 1, 2, 2, 3, 3]], "farther than"),
        ({"counts": [600]}, "runs of None"),
        ({"size": [30, 20], "counts": [600]}, r"runs of \[30, 20\], not of \[20, 30\]"),
        ({"size": [20, 30], "counts": [5]}, "runs of 5 pixels, not of 600"),
        ({"size": [20, 30], "counts": [-600, 1200]}, "no whole numbers"),
        ({"size": [20, 30], "counts": "zz"}, "decoded 20 pixels"),
    ],
)
def test_what_is_no_mask_is_told(segmentation: Any, said: str):
    with pytest.raises(ValueError, match=said):
        decode_mask(segmentation, SIZE)
