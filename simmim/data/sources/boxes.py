"""Objects in images: their boxes as a source tells them, and how an index keeps them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

VALUES = 6
"""Numbers of a box: left, top, right, bottom, category, and 1 for a crowd."""


@dataclass(frozen=True)
class Boxes:
    """The boxes of an image.

    Attributes:
        frame: Height and width of the image that they were drawn in; 0 where that is not told.
        corners: (n, 4) float64, left, top, right and bottom in pixels of that image.
        categories: (n,) int64, places in the names of the categories.
        crowd: (n,) bool, whether a box holds a group that was not told apart.
    """

    frame: tuple[int, int]
    corners: np.ndarray
    categories: np.ndarray
    crowd: np.ndarray

    @classmethod
    def of(cls, packed: Sequence[float] | np.ndarray) -> "Boxes":
        """Read what ``Entry.boxes`` holds."""
        values = np.asarray(packed, np.float64)
        boxes = values[2:].reshape(-1, VALUES)
        categories, crowd = boxes[:, 4].astype(np.int64), boxes[:, 5] > 0
        return cls((int(values[0]), int(values[1])), boxes[:, :4], categories, crowd)
