"""Which class pixels were taken for, over a whole data set, and what follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Confusion:
    """Counts of pixels.

    Attributes:
        counts: (classes, classes): of true class [row] that were given class [column].
        classes: Names.
        images: (n, 3, classes), ``overlaps`` of each image; None: not known.
    """

    counts: np.ndarray
    classes: Sequence[str]
    images: np.ndarray | None = None

    @property
    def accuracy(self) -> float:
        """The share of pixels that is right."""
        return float(np.trace(self.counts) / max(1, self.counts.sum()))

    @property
    def iou(self) -> list[float | None]:
        """Of each class: what is right, over what is it or was taken for it; None: nothing is."""
        right = np.diag(self.counts)
        either = self.counts.sum(0) + self.counts.sum(1) - right
        pairs = zip(right, either, strict=True)
        return [float(hit / whole) if whole else None for hit, whole in pairs]

    @property
    def miou(self) -> float:
        """The mean over the classes that occur."""
        return float(miou_of(overlaps(self.counts)))

    @property
    def largest(self) -> float:
        """The share of pixels that always saying the largest class would be right on."""
        return float(self.counts.sum(1).max() / max(1, self.counts.sum()))

    @property
    def trivial(self) -> float:
        """The mean IoU of always saying the largest class."""
        present = int((self.counts.sum(1) > 0).sum())
        return self.largest / max(1, present)


def overlaps(counts: np.ndarray) -> np.ndarray:
    """The pixels of each class that are right, that are of it, and that were given it: 3 rows.

    Args:
        counts: (classes, classes), as of ``Confusion``.
    """
    return np.stack([np.diag(counts), counts.sum(1), counts.sum(0)])


def largest_everywhere(images: np.ndarray) -> np.ndarray:
    """What ``overlaps`` of images (n, 3, classes) are where all get the class of most pixels."""
    true = images[:, 1]
    best = true.sum(0).argmax()
    said = np.zeros_like(images)
    said[:, 0, best], said[:, 1], said[:, 2, best] = true[:, best], true, true.sum(1)
    return said


def miou_of(sums: np.ndarray) -> np.ndarray:
    """The mean IoU over the classes that occur, of sums (…, 3, classes) of ``overlaps``."""
    right, true, given = np.moveaxis(sums, -2, 0)
    either = true + given - right
    present = np.maximum(1, (either > 0).sum(-1))
    return (right / np.maximum(1, either)).sum(-1) / present


def accuracy_of(sums: np.ndarray) -> np.ndarray:
    """The share of pixels that is right, of sums (…, 3, classes) of ``overlaps``."""
    return sums[..., 0, :].sum(-1) / np.maximum(1, sums[..., 1, :].sum(-1))
