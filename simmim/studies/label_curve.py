"""How many labels a start is worth: paired draws at growing numbers of labels.

The engine knows nothing of the task: a `Trial` trains from a start on some labelled images, and
says how good that is.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import fmean
from typing import Protocol

import numpy as np
from sklearn.isotonic import isotonic_regression

from simmim.report.words import count
from simmim.studies.raw_rows import RawRows, Row
from simmim.tensors.counter import Purpose, hash64

SCRATCH = "scratch"
"""The start with random weights."""
TUNING = 0
"""The number of the draw on which rates are chosen, measured on other images than the rest."""
RESAMPLES = 2000
"""Of draws, for an interval."""
TAILS = (0.025, 0.975)
"""Ends of an interval."""
_ROUNDING = 1e-9


class Trial(Protocol):
    """Trains once."""

    @property
    def measure(self) -> str:
        """The name of what is measured; more is better."""
        ...

    @property
    def groups(self) -> np.ndarray:
        """Groups (n,) of the images that labels are drawn from; a draw has its share of each."""
        ...

    @property
    def rates(self) -> Sequence[float]:
        """Those that each start is tried with."""
        ...

    def __call__(self, start: str, rows: np.ndarray, draw: int, rate: float, /) -> Row:
        """Train from a start on images, by their rows, and return measures by their names."""
        ...


@dataclass(frozen=True)
class Design:
    """What is to be measured.

    Attributes:
        starts: The one to judge, from scratch, and others.
        counts: Numbers of labels, rising.
        draws: How often each of them is drawn.
        seed: Of the draws.
    """

    starts: Sequence[str]
    counts: Sequence[int]
    draws: Sequence[int]
    seed: int

    def orders(self, trial: Trial) -> dict[int, np.ndarray]:
        """Of each draw, all rows as ``nested`` tells them."""
        tuned = [TUNING] if len(trial.rates) > 1 else []
        draws = [*tuned, *range(1, max(self.draws) + 1)]
        return {draw: nested(trial.groups, draw, self.seed) for draw in draws}

    def trainings(self, rates: Sequence[float]) -> Iterator[tuple[str, int, int, float | None]]:
        """Start, labels, number of the draw, and rate; None: the best one, which is then known."""
        if len(rates) > 1:
            for labels, start, rate in product(self.counts, self.starts, rates):
                yield start, labels, TUNING, rate
        for draw in range(1, max(self.draws) + 1):
            for labels, draws in zip(self.counts, self.draws, strict=True):
                for start in self.starts if draw <= draws else ():
                    yield start, labels, draw, None


def rarest(present: np.ndarray) -> np.ndarray:
    """The class (n,) that the fewest images show, of those (n, classes) that an image shows.

    Where it shows one class, it is that one; none: −1.
    """
    counts = np.where(present, present.sum(0), len(present) + 1)
    return np.where(present.any(1), counts.argmin(1), -1)


def nested(groups: np.ndarray, draw: int, seed: int) -> np.ndarray:
    """All rows in the order in which a draw takes them: its first n are its draw of n.

    Every group has its share of each of them, as far as whole images allow.
    """
    places = np.empty(len(groups))
    ties = np.array([hash64(seed, Purpose.DRAW, draw, row) for row in range(len(groups))], float)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        rows = rows[np.argsort(ties[rows], kind="stable")]
        places[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.lexsort((ties, places))


def measure(
    design: Design, trial: Trial, table: RawRows, say: Callable[[float, str], None]
) -> None:
    """Make the rows that are not there yet; ``say`` is told the share done, and what is next."""
    trainings = list(design.trainings(trial.rates))
    orders = design.orders(trial)
    for done, (start, labels, draw, rate) in enumerate(trainings):
        if rate is None:
            rate = chosen_rate(table, start, labels, trial)
        key = {"start": start, "labels": labels, "draw": draw, "rate": rate}
        if not table.find(**key):
            what = "choosing the rate" if draw == TUNING else f"draw {draw}"
            say(done / len(trainings), f"{start}, {count(labels, 'label')}, {what}")
            table.add(key | trial(start, orders[draw][:labels], draw, rate))


def chosen_rate(table: RawRows, start: str, labels: int, trial: Trial) -> float:
    """The rate that was best on the tuning images for a start and so many labels."""
    if len(trial.rates) == 1:
        return trial.rates[0]
    tried = table.find(start=start, labels=labels, draw=TUNING)
    return max(tried, key=lambda row: row[trial.measure])["rate"]


@dataclass(frozen=True)
class Curve:
    """What a start reached.

    Attributes:
        start: Its name.
        counts: Numbers of labels.
        values: Of each, what its draws reached, in the order of their numbers.
    """

    start: str
    counts: list[int]
    values: list[list[float]]

    @property
    def mean(self) -> list[float]:
        """Over the draws."""
        return [fmean(each) for each in self.values]

    @property
    def error(self) -> list[float]:
        """The standard error of the mean; not a number with one draw."""
        return [
            float(np.std(each, ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.nan
            for each in self.values
        ]


def curve(table: RawRows, design: Design, start: str, trial: Trial) -> Curve:
    """The rows of a start, with the rates that were chosen for it."""
    values = []
    for labels, draws in zip(design.counts, design.draws, strict=True):
        rate = chosen_rate(table, start, labels, trial)
        values.append(
            [
                table.find(start=start, labels=labels, draw=draw, rate=rate)[0][trial.measure]
                for draw in range(1, draws + 1)
            ]
        )
    return Curve(start, list(design.counts), values)


@dataclass(frozen=True)
class Worth:
    """With how many labels another start does as well as the judged one with some.

    Attributes:
        labels: Of the judged start.
        other: The other start.
        equal: Its labels; 0: fewer than were tried, infinite: more.
        low: Lower end of the interval over draws; not a number with one draw.
        high: Upper end.
        fewest: Labels that were tried at least.
        most: Labels that were tried at most.
    """

    labels: int
    other: str
    equal: float
    low: float
    high: float
    fewest: int
    most: int

    @property
    def verdict(self) -> str:
        """One of better, worse, open; open claims nothing."""
        if self.low > self.labels:
            return "better"
        return "worse" if self.high < self.labels else "open"

    @property
    def sentence(self) -> str:
        """What may be said."""
        other = "training from scratch" if self.other == SCRATCH else self.other
        said = (
            f"with {count(self.labels, 'label')} you are where {other} is with "
            f"{self._in_words(self.equal)}"
        )
        if math.isnan(self.low):
            return f"{said}; one draw alone, so that nothing is claimed"
        claim = {"better": "", "worse": ": a loss", "open": ": no gain can be claimed"}
        ends = f"{self._in_words(self.low)} … {self._in_words(self.high)}"
        return f"{said} ({ends}){claim[self.verdict]}"

    def _in_words(self, labels: float) -> str:
        if math.isinf(labels):
            return f"more than {self.most:,}"
        return f"fewer than {self.fewest:,}" if labels == 0 else f"{_rounded(labels):,}"


def _rounded(labels: float) -> int:
    """Two digits, as more are not known."""
    digits = max(0, math.floor(math.log10(max(labels, 1))) - 1)
    return int(round(labels / 10**digits) * 10**digits)


def worth(judged: Curve, other: Curve, place: int) -> Worth:
    """What the judged start is worth at ``counts[place]``, with an interval over the draws.

    The other curve is made to rise (isotonic regression) and interpolated over the logarithm of the
    labels. The interval holds 95 % of what resampled draws give, the same draws for both.
    """
    labels, counts = judged.counts[place], judged.counts
    equal = _equal(counts, other.mean, judged.mean[place])
    low = high = math.nan
    if len(judged.values[place]) > 1:
        most = max(map(len, judged.values))
        drawn = np.random.default_rng(0).integers(0, 1 << 30, (RESAMPLES, most))
        means = np.stack([_resampled(each, drawn) for each in other.values], 1)
        reached = _resampled(judged.values[place], drawn)
        found = sorted(map(partial(_equal, counts), means, reached))
        low, high = (found[round(tail * (RESAMPLES - 1))] for tail in TAILS)
    return Worth(labels, other.start, equal, low, high, counts[0], counts[-1])


def _resampled(values: Sequence[float], drawn: np.ndarray) -> np.ndarray:
    """Means of resamples, each of one draw fewer than there are: so they spread as means do."""
    size = max(1, len(values) - 1)
    return np.array(values)[drawn[:, :size] % len(values)].mean(1)


def _equal(counts: Sequence[int], means: Sequence[float] | np.ndarray, reached: float) -> float:
    """Labels at which a rising curve reaches a value; see ``Worth.equal``."""
    rising = np.asarray(means, float) + _ROUNDING
    if (np.diff(rising) < 0).any():
        rising = isotonic_regression(rising)
    if reached < rising[0] - 2 * _ROUNDING:
        return 0.0
    if reached > rising[-1]:
        return math.inf
    above = int(np.argmax(rising >= reached))
    if above == 0:
        return float(counts[0])
    share = (reached - rising[above - 1]) / (rising[above] - rising[above - 1])
    before, after = math.log(counts[above - 1]), math.log(counts[above])
    return math.exp(before + share * (after - before))


def usual_counts(images: int, classes: int) -> list[int]:
    """Five numbers of labels, from a few of each class to all, in equal ratios."""
    least = min(max(2 * classes, 20), images)
    steps = np.geomspace(least, images, 5)
    rounded = [_rounded(each) for each in steps[:-1]]
    return sorted({each for each in rounded if 2 <= each < images} | {images})
