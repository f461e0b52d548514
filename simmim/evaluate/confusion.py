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
    """

    counts: np.ndarray
    classes: Sequence[str]

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
        return float(np.mean([each for each in self.iou if each is not None] or [0.0]))

    @property
    def largest(self) -> float:
        """The share of pixels that always saying the largest class would be right on."""
        return float(self.counts.sum(1).max() / max(1, self.counts.sum()))

    @property
    def trivial(self) -> float:
        """The mean IoU of always saying the largest class."""
        present = int((self.counts.sum(1) > 0).sum())
        return self.largest / max(1, present)
