"""A measured share with its interval of 95 %."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000
_AT_ONCE = 100
"""Resamples that are added up together."""


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
    def of_images(
        cls, each: np.ndarray, measure: Callable[[np.ndarray], np.ndarray], seed: int
    ) -> Self:
        """A measure of what images add up to, with the interval of the bootstrap over them.

        It is unknown for a single image.

        Args:
            each: (n, …) what each image adds.
            measure: From sums (draws, …) to shares (draws,).
            seed: Of the draws.
        """
        value, count = float(measure(each.sum(0)[None])[0]), len(each)
        if count < 2:
            return cls(value, math.nan, math.nan)
        rng = np.random.default_rng(seed)
        flat, shares = each.reshape(count, -1).astype(np.float64), []
        for first in range(0, RESAMPLES, _AT_ONCE):
            draws = min(_AT_ONCE, RESAMPLES - first)
            times = rng.multinomial(count, np.full(count, 1 / count), draws)
            shares.append(measure((times @ flat).reshape(draws, *each.shape[1:])))
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = np.percentile(np.concatenate(shares), [tail, 100 - tail])
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

    def beside(self, what: str, random: Self, whose: str = "a random encoder") -> str:
        """A line that tells it, and that of an encoder with random weights."""
        return f"  {what:17}  {self!s:22}  {whose}: {random}"

    def __str__(self) -> str:
        """In percent, as tables show it."""
        return f"{self.value:.1%} ({100 * self.low:.1f} … {100 * self.high:.1f})"
