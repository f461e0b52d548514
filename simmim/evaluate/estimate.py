"""A measured share with its interval of 95 %."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000


class Estimate(NamedTuple):
    """A share, and the interval that holds the true one with 95 %.

    Attributes:
        value: From 0 to 1.
        low: Not above it; not a number where nothing tells how far the share may be off.
        high: Not below it; like ``low``.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of_count(cls, right: int, of: int) -> Self:
        """``right`` of ``of``, with the exact binomial interval (Clopper and Pearson, 1934)."""
        tail = (1 - CONFIDENCE) / 2
        low = stats.beta.ppf(tail, right, of - right + 1) if right else 0.0
        high = stats.beta.ppf(1 - tail, right + 1, of - right) if right < of else 1.0
        return cls(right / of, float(low), float(high))

    @classmethod
    def of_classes(
        cls, labels: np.ndarray, predictions: np.ndarray, classes: int, seed: int
    ) -> Self:
        """The mean over classes of the share that was right, with the bootstrap's interval.

        Images are drawn anew, as many as there are; a class that no draw has is left out of it.

        Args:
            labels: (n,) class indices.
            predictions: (n,) class indices.
            classes: Number of classes.
            seed: Of the draws.
        """
        rows = np.bincount(labels, minlength=classes)
        right = np.bincount(labels[labels == predictions], minlength=classes)
        rng = np.random.default_rng(seed)
        # Drawn anew, images are told apart only by their class and whether they were right.
        kinds = np.concatenate([right, rows - right])
        drawn = rng.multinomial(len(labels), kinds / len(labels), RESAMPLES)
        hits, all_rows = drawn[:, :classes], drawn[:, :classes] + drawn[:, classes:]
        shares = np.where(all_rows > 0, hits / np.maximum(all_rows, 1), np.nan)
        means = np.nanmean(shares, axis=1)
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = np.percentile(means, [tail, 100 - tail])
        value = float((right[rows > 0] / rows[rows > 0]).mean())
        return cls(value, min(float(low), value), max(float(high), value))

    @classmethod
    def of_draws(cls, values: Sequence[float]) -> Self:
        """The mean of independent draws, with Student's interval; unknown for a single draw."""
        mean, count = float(np.mean(values)), len(values)
        if count < 2:
            return cls(mean, math.nan, math.nan)
        error = float(np.std(values, ddof=1)) / math.sqrt(count)
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
        return cls(mean, mean - reach, mean + reach)

    def __str__(self) -> str:
        """In percent, as tables show it."""
        return f"{self.value:.1%} ({100 * self.low:.1f} … {100 * self.high:.1f})"
