"""Objects in images: their boxes as a source tells them, and how an index keeps them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simmim.data.sources.tally import Tally

VALUES = 6
"""Numbers of a box: left, top, right, bottom, category, and 1 for a crowd."""
SHARES = (1, 1)
"""The frame of boxes that are told as shares of the sides of an image."""
ROUNDING = 1 / 512
"""Share of an image's side that a box may be out of it by rounding."""

NO_AREA = "{n} box{es} without area {are} left out, such as {such}"
NEGATIVE = "{n} box{es} {have} a negative width or height, such as {such}"
OUTSIDE = "{n} box{es} outside of the image {are} left out, such as {such}"
CLIPPED = "{n} box{es} {are} partly outside of the image, and cut off there, such as {such}"
UNKNOWN = "{n} box{es} of a category that is not listed {are} left out, such as {such}"


def is_sound(corners: Sequence[float], frame: tuple[int, int], tally: Tally, such: str) -> bool:
    """Tell whether there is anything to see of a box, and count what is wrong with it.

    Args:
        corners: Left, top, right and bottom in pixels of the frame.
        frame: Height and width of the image; 0 where that is not told.
        tally: Counts.
        such: Names the box.
    """
    left, top, right, bottom = corners
    if right < left or bottom < top:
        tally.add(NEGATIVE, such)
    elif not all(map(math.isfinite, corners)) or right == left or bottom == top:
        tally.add(NO_AREA, such)
    elif not all(frame):
        return True
    elif right <= 0 or bottom <= 0 or left >= frame[1] or top >= frame[0]:
        tally.add(OUTSIDE, such)
    else:
        more = max(-left, right - frame[1]) / frame[1], max(-top, bottom - frame[0]) / frame[0]
        if max(more) > ROUNDING:
            tally.add(CLIPPED, such)
        return True
    return False


@dataclass(frozen=True)
class Boxes:
    """The boxes of an image.

    Attributes:
        frame: Height and width of the image that they were drawn in; 0 where that is not told, and
            ``SHARES`` where corners are shares of its sides.
        corners: (n, 4) float64, left, top, right and bottom in pixels of that image; they may be
            beyond its edges.
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

    def within(self, size: tuple[int, int]) -> "Boxes":
        """Return them in pixels: of their frame, or of an image of ``size`` where none is told."""
        if all(self.frame) and self.frame != SHARES:
            return self
        scale = np.array(size[::-1] * 2) if self.frame == SHARES else 1
        return Boxes(size, self.corners * scale, self.categories, self.crowd)
