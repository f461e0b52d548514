"""A verdict on a pretraining's health, from what its folder says: one sentence, and what to do."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from simmim.report.verdict import longer, measured_on
from simmim.report.words import count, percent, points
from simmim.runs.record import Record, column, mapping
from simmim.training.launch import go_on

FEW_STEPS = 300
"""Steps below which hardly any run has learned what is of use."""
MORE_STEPS = (
    "some hundreds are needed. A longer --budget, or a smaller --model or --image-size, makes "
    "more, and of short runs --recipe simmim-fast learns most"
)
COLLAPSED = 0.02
"""Deviation of features below which images are not told apart."""
EASY = 0.5
"""Share of blank patches from which on there is little to learn from."""
SKIPPED = 0.1
"""Share of skipped steps that is no accident any more."""
WAITING = 0.3
"""Share of the time spent waiting for images from which on that is told."""
RISING = 0.02
"""Explained detail gained in the last fifth of a run from which on it is under-trained."""


@dataclass(frozen=True)
class Finding:
    """Something that keeps a run from being healthy, or that it is.

    Attributes:
        verdict: A word or two.
        sentence: What was seen.
        command: What to do next.
    """

    verdict: str
    sentence: str
    command: str


@dataclass(frozen=True)
class RunHealth:
    """What is to be said of a run: the worst first, and the figures behind it.

    Attributes:
        findings: At least one.
        rank: Effective rank of the features, and of how many images.
        deviation: Of the features, as a share of their size.
        blank: Share of blank patches.
        explained: Explained detail.
        data_wait: Share of the time spent waiting for images.
        skipped: Share of the steps.
    """

    findings: tuple[Finding, ...]
    rank: float | None
    deviation: float | None
    blank: float | None
    explained: float | None
    data_wait: float | None
    skipped: float

    def as_dict(self) -> dict[str, object]:
        """All of it, with the first finding's fields on top."""
        return {**asdict(self.findings[0]), **asdict(self)}


def health_of(record: Record) -> RunHealth:
    """Judge a pretraining run by its metrics; what was not measured is not judged."""
    figures = {name: record.last(name) for name in ("rank", "deviation", "blank", "explained")}
    return RunHealth(
        findings=tuple(_findings(record)) or (_healthy(record),),
        data_wait=_waiting(record),
        skipped=record.skipped / max(1, record.step),
        **figures,
    )


def _findings(record: Record) -> Iterator[Finding]:
    """What is wrong, the worst first."""
    data, name = shlex.join(record.config.get("data") or ["DATA"]), str(record.run)
    rate = mapping(record.config.get("optim")).get("lr") or 1e-3
    if not record.rows:
        yield Finding("not begun", "no step has been logged", go_on(record.run, "pretrain"))
        return
    if record.skipped > SKIPPED * record.step:
        yield Finding(
            "diverged",
            f"{record.skipped:,} of {count(record.step, 'step')} were skipped, since no gradient "
            "was finite there",
            go_on(record.run, "pretrain", "--optim.lr", f"{rate / 3:.2g}"),
        )
    spread, rank, blank = (record.last(key) for key in ("deviation", "rank", "blank"))
    if spread is not None and spread < COLLAPSED:
        yield Finding(
            "collapsed",
            f"images are hardly told apart: their features differ by {percent(spread, 1)} of their "
            f"size, in {rank or math.nan:.1f} directions",
            f"simmim pretrain {data} --config {shlex.quote(name + '/config.yaml')} "
            f"--optim.lr {rate / 3:.2g} --out {shlex.quote(name + '-anew')}",
        )
    if blank is not None and blank > EASY:
        yield Finding(
            "too easy",
            f"{percent(blank)} of the patches are blank, from which nothing is learned: cut the "
            "background off, or leave blank images out",
            f"simmim scan {data}",
        )
    yield from _learning(record)
    wait = _waiting(record)
    if wait is not None and wait > WAITING:
        yield Finding(
            "waiting for images",
            f"{percent(wait)} of the time was spent waiting for images",
            f"simmim shard {data} --out {shlex.quote(name + '-shards')}",
        )


def _waiting(record: Record) -> float | None:
    """Share of the later half of a run that was spent waiting for images."""
    waits = column(record.rows, "data_wait")[1]
    return float(waits[len(waits) // 2 :].mean()) if len(waits) else None


def _learning(record: Record) -> Iterator[Finding]:
    """Whether it has learned, and would learn more."""
    steps, explained = column(record.rows, "explained")
    flags, words = longer(record)
    on = go_on(record.run, "pretrain", *flags.split())
    if record.lost("explained"):
        yield Finding(
            "not measured",
            "explained detail is not a number. Are the images that it is measured on blank?",
            f"simmim report {shlex.quote(str(record.run))}",
        )
        return
    if len(explained) and explained[-1] <= 0:
        few = f", after only {count(record.step, 'step')}" if record.step < FEW_STEPS else ""
        yield Finding(
            "under-trained",
            f"on {measured_on(record)}, its predictions are no better than the mean of what is "
            f"visible (explained detail at or below 0 %){few}. Train {words}",
            on,
        )
        return
    before = explained[steps <= 0.8 * record.step]
    gained = explained[-1] - before[-1] if len(before) else 0.0
    if gained > RISING:
        yield Finding(
            "under-trained, still rising",
            f"explained detail rose by {points(gained)} points in the last fifth of the run, to "
            f"{percent(explained[-1])}. Train {words}",
            on,
        )
    elif record.step < FEW_STEPS:
        yield Finding(
            "under-trained",
            f"it ended after only {count(record.step, 'step')}: {MORE_STEPS}. Or train {words}",
            on,
        )


def _healthy(record: Record) -> Finding:
    """Nothing is wrong."""
    explained, rank = record.last("explained"), record.last("rank")
    said = [f"it explains {percent(explained)} of the hidden detail"] if explained else []
    said += [f"its features spread in {rank:.0f} directions"] if rank else []
    said = said or ["nothing was measured that speaks against it"]
    return Finding(
        "healthy",
        " and ".join(said),
        f"simmim probe {shlex.quote(str(record.run))} LABELLED_DATA",
    )
