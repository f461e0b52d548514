"""How well several classes of an image, or a number, were told: scikit-learn's measures."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score

SURE = 0.5
"""The probability from which on an image is said to be of a class."""


@dataclass(frozen=True)
class TagScore:
    """How well any number of classes were told; classes without an image are left out of means.

    Attributes:
        mean_ap: Mean over the classes of the average precision.
        f1: F1 over all images and classes together ("micro").
        f1_macro: Mean over the classes of F1.
        by_class: Average precision of each class; None where no image is of it.
    """

    mean_ap: float
    f1: float
    f1_macro: float
    by_class: list[float | None]


def score_tags(labels: np.ndarray, probabilities: np.ndarray) -> TagScore:
    """Compare ``labels`` (n, classes), 0 or 1, with ``probabilities`` (n, classes)."""
    present = labels.sum(0) > 0
    by_class = [
        float(average_precision_score(labels[:, k], probabilities[:, k])) if some else None
        for k, some in enumerate(present)
    ]
    known = [each for each in by_class if each is not None]
    said = (probabilities >= SURE).astype(int)
    none: Any = 0.0  # what the library's own types do not allow
    micro = f1_score(labels, said, average="micro", zero_division=none)
    macro = f1_score(labels[:, present], said[:, present], average="macro", zero_division=none)
    return TagScore(float(np.mean(known)), float(micro), float(macro), by_class)


@dataclass(frozen=True)
class NumberScore:
    """How well a number was told.

    Attributes:
        r2: Share of the variance that is explained; not a number for a single image.
        mae: Mean absolute error.
    """

    r2: float
    mae: float


def score_numbers(truth: np.ndarray, told: np.ndarray) -> NumberScore:
    """Compare true numbers (n,) with those that were told (n,)."""
    r2 = float(r2_score(truth, told)) if len(truth) > 1 else float("nan")
    return NumberScore(r2, float(mean_absolute_error(truth, told)))
