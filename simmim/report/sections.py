"""What a report is made of: content only; template.html says how each kind looks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, stdev
from typing import ClassVar

import numpy as np

from simmim.report import figures
from simmim.report.pictures import Photo
from simmim.report.words import count, percent, points


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page under its own heading."""

    kind: ClassVar[str]
    title: str
    lead: str = ""
    """What one sees and how to read it, in a few sentences."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing with its caption."""

    svg: str
    """An SVG element of ``figures``; put into the page as it is."""
    caption: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A raster picture with its caption."""

    photo: Photo
    alt: str
    """What it shows, for people who cannot see it."""
    caption: str
    side: int = 1200
    """Longest side in pixels at which it goes into the page."""


@dataclass(frozen=True, kw_only=True)
class Gallery(Section):
    """Drawings and pictures: drawings two abreast, pictures over the whole width."""

    kind: ClassVar[str] = "gallery"
    items: Sequence[Figure | Picture]


@dataclass(frozen=True, kw_only=True)
class Table(Section):
    """A plain table."""

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    """A line below the table."""


@dataclass(frozen=True, kw_only=True)
class Facts(Section):
    """Names and values, with the reason where there is one, and more of them folded away."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[tuple[str, str, str]]
    """Name, value, reason."""
    more: Sequence[tuple[str, str]] = ()
    """Name and value of what few want to see."""
    more_title: str = "All settings"


@dataclass(frozen=True, kw_only=True)
class Commands(Section):
    """Commands to go on with."""

    kind: ClassVar[str] = "commands"
    commands: Sequence[tuple[str, str]]
    """The command, and what it does."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How often a classifier was right on the test images, as shares."""

    accuracy: float
    balanced: float
    """The mean over the classes of the share of each that was right."""

    def __sub__(self, other: "Score") -> "Score":
        return Score(
            accuracy=self.accuracy - other.accuracy, balanced=self.balanced - other.balanced
        )


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One draw of labelled images, used for both sides of a comparison."""

    labels: int
    """Labelled images drawn."""
    pretrained: Score
    baseline: Score
    protocol: str = ""
    """How the features were used, such as k-NN, where a section compares several ways."""


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The draws of one protocol and number of labels, summed up."""

    protocol: str
    labels: int
    draws: int
    pretrained: Score
    baseline: Score
    difference: Score
    error: Score
    """Standard error of the mean difference; not a number with one draw."""

    @property
    def verdict(self) -> str:
        """One of better, worse, open; open claims nothing."""
        pairs = (
            (self.difference.accuracy, self.error.accuracy),
            (self.difference.balanced, self.error.balanced),
        )
        if all(difference > error for difference, error in pairs):
            return "better"
        if all(-difference > error for difference, error in pairs):
            return "worse"
        return "open"  # comparisons with NaN are false, so one draw lands here too


@dataclass(frozen=True, kw_only=True)
class Comparison(Section):
    """Pretrained against a baseline over paired draws of labels, and what may be claimed."""

    kind: ClassVar[str] = "comparison"
    draws: Sequence[Draw]
    baseline: str = "from scratch"
    """What the pretrained encoder is compared with, such as "a random encoder"."""

    @cached_property
    def paired(self) -> list[PairedDifference]:
        """The draws summed up, one entry for each protocol and number of labels."""
        groups: dict[tuple[str, int], list[Draw]] = {}
        for draw in self.draws:
            groups.setdefault((draw.protocol, draw.labels), []).append(draw)
        return [_pair(protocol, labels, group) for (protocol, labels), group in groups.items()]

    @property
    def sentences(self) -> list[str]:
        """What each entry of ``paired`` allows to say."""
        return [_claim(paired, self.baseline) for paired in self.paired]

    @property
    def svg(self) -> str:
        """Accuracy over labels with standard errors; empty for one number of labels."""
        if len({draw.labels for draw in self.draws}) < 2:
            return ""
        lines = []
        for protocol in dict.fromkeys(draw.protocol for draw in self.draws):
            for side, name in (("pretrained", "pretrained"), ("baseline", self.baseline)):
                lines.append(_series(self.draws, protocol, side, name))
        return figures.label_curve(lines)


@dataclass(frozen=True, kw_only=True)
class Confusion(Section):
    """Which class was taken for which."""

    kind: ClassVar[str] = "confusion"
    counts: np.ndarray
    """(classes, classes): images of true class [row] that were given class [column]."""
    classes: Sequence[str]

    @property
    def svg(self) -> str:
        """The matrix as a drawing."""
        return figures.confusion_matrix(self.counts, self.classes)

    @property
    def mixed_up(self) -> str:
        """The most frequent mistakes, in words."""
        wrong = np.array(self.counts, dtype=float)
        np.fill_diagonal(wrong, 0)
        order = np.argsort(wrong, axis=None)[::-1][:3]
        pairs = [divmod(int(place), len(self.classes)) for place in order]
        said = [
            f"{self.classes[row]} taken for {self.classes[column]} ({wrong[row, column]:.0f} of "
            f"{self.counts[row].sum():.0f})"
            for row, column in pairs
            if wrong[row, column] > 0
        ]
        return f"Most frequent mistakes: {'; '.join(said)}." if said else "No mistake was made."


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A photo and what the classifier said of it."""

    photo: Photo
    predicted: str
    probability: float
    """Probability of the predicted class, 0 to 1."""
    correct: bool


@dataclass(frozen=True, kw_only=True)
class ClassGuesses:
    """The photos of one true class of which the classifier was surest and least sure."""

    name: str
    surest: Sequence[Guess]
    least_sure: Sequence[Guess]


@dataclass(frozen=True, kw_only=True)
class Examples(Section):
    """The surest and least sure photos of each class."""

    kind: ClassVar[str] = "examples"
    classes: Sequence[ClassGuesses]


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A photo near a query."""

    photo: Photo
    label: str
    similarity: float
    """Cosine of the angle between the two embeddings."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """A photo and the photos nearest to it, nearest first."""

    photo: Photo
    label: str
    neighbours: Sequence[Neighbour]


@dataclass(frozen=True, kw_only=True)
class Neighbours(Section):
    """Photos and their nearest by embedding."""

    kind: ClassVar[str] = "neighbours"
    queries: Sequence[Query]

    @property
    def agreement(self) -> str:
        """How many of the neighbours shown are of the query's class, in words."""
        same = [near.label == query.label for query in self.queries for near in query.neighbours]
        if not same:
            return ""
        share = percent(fmean(same))
        return f"{sum(same)} of the {len(same)} neighbours shown ({share}) are of the same class."


@dataclass(frozen=True, kw_only=True)
class EmbeddingMap(Section):
    """Images laid out by their features, with a thumbnail for the point under the pointer."""

    kind: ClassVar[str] = "map"
    points: np.ndarray
    """(n, 2) places, in any unit."""
    labels: Sequence[int]
    """(n,) class of each point."""
    classes: Sequence[str]
    photos: Sequence[Photo] = field(default=(), repr=False)
    """(n,) photos, or none."""
    titles: Sequence[str] = ()
    """(n,) what to say of each point, such as its path; default: its class."""

    @property
    def kept(self) -> list[int]:
        """The points that are drawn: all, or evenly 600 of them, to keep the page small."""
        total = len(self.points)
        return sorted({int(place) for place in np.linspace(0, total - 1, min(total, 600)).round()})

    @property
    def svg(self) -> str:
        """The map as a drawing."""
        kept = self.kept
        return figures.embedding_map(
            np.asarray(self.points, dtype=float)[kept],
            [int(self.labels[i]) for i in kept],
            self.classes,
            [self.titles[i] for i in kept] if self.titles else None,
        )


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure that the page opens with."""

    value: str
    label: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of a report."""

    title: str
    summary: Sequence[str]
    """Plain sentences: what was done, on what, how long."""
    verdict: str = ""
    """What came of it, in a sentence or two."""
    tone: str = "neutral"
    """How the verdict is marked: good, caution or neutral."""
    tiles: Sequence[Tile] = ()
    remarks: Sequence[str] = ()
    """What was missing or damaged when the report was written."""
    sections: Sequence[Section] = ()
    footer: str = ""


def _mean(scores: Sequence[Score]) -> Score:
    return Score(
        accuracy=fmean(score.accuracy for score in scores),
        balanced=fmean(score.balanced for score in scores),
    )


def _error(scores: Sequence[Score]) -> Score:
    """The standard error of the mean of ``scores``."""
    if len(scores) < 2:
        return Score(accuracy=math.nan, balanced=math.nan)
    root = math.sqrt(len(scores))
    return Score(
        accuracy=stdev(score.accuracy for score in scores) / root,
        balanced=stdev(score.balanced for score in scores) / root,
    )


def _pair(protocol: str, labels: int, draws: Sequence[Draw]) -> PairedDifference:
    differences = [draw.pretrained - draw.baseline for draw in draws]
    return PairedDifference(
        protocol=protocol,
        labels=labels,
        draws=len(draws),
        pretrained=_mean([draw.pretrained for draw in draws]),
        baseline=_mean([draw.baseline for draw in draws]),
        difference=_mean(differences),
        error=_error(differences),
    )


def _claim(paired: PairedDifference, baseline: str) -> str:
    """A sentence that claims nothing within the standard error."""
    where = f"With {count(paired.labels, 'label')}"
    if paired.protocol:
        where = f"{paired.protocol}, {count(paired.labels, 'label')}"
    gained, error = paired.difference, paired.error
    if paired.draws < 2:
        return (
            f"{where}: one draw, {points(gained.accuracy)} points of accuracy; without a second "
            "draw there is no standard error, so nothing is claimed."
        )
    if paired.verdict == "open":
        return (
            f"{where}: no difference between pretrained and {baseline} can be claimed "
            f"({points(gained.accuracy)} ± {100 * error.accuracy:.1f} points of accuracy, "
            f"{points(gained.balanced)} ± {100 * error.balanced:.1f} balanced)."
        )
    more = "more" if paired.verdict == "better" else "less"
    weak = min(abs(gained.accuracy) - 2 * error.accuracy, abs(gained.balanced) - 2 * error.balanced)
    return (
        f"{where}: pretrained is {100 * abs(gained.accuracy):.1f} ± {100 * error.accuracy:.1f} "
        f"points {more} accurate than {baseline}"
        + (", a weak sign: less than two standard errors." if weak < 0 else ".")
    )


def _series(draws: Sequence[Draw], protocol: str, side: str, name: str) -> figures.Series:
    """One line of the curve: ``side`` (pretrained or baseline) under ``protocol``."""
    mine = [draw for draw in draws if draw.protocol == protocol]
    counts = sorted({draw.labels for draw in mine})
    groups = [[getattr(draw, side) for draw in mine if draw.labels == labels] for labels in counts]
    return figures.Series(
        name=f"{protocol}, {name}" if protocol else name,
        dashed=side == "baseline",
        labels=counts,
        mean=[_mean(group).accuracy for group in groups],
        error=[_error(group).accuracy for group in groups],
    )
