"""The report on what tells a number: how well, and where it is off."""

import shlex

import numpy as np

from simmim.report import figures
from simmim.report.classified import DAMAGED, PREDICTIONS, read_rows
from simmim.report.findings import Findings
from simmim.report.sections import Figure, Gallery, Section, Table, Tile
from simmim.report.summary import curves
from simmim.report.words import number
from simmim.runs.record import Record

_SHOWN = 10
"""Images that are listed."""


def findings(record: Record) -> Findings:
    """What is to be said of it."""
    r2, mae = record.last("r2"), record.last("mae")
    verdict = "How well the number is told was not measured yet; it is, ten times in a run."
    tiles = []
    if mae is not None:
        verdict = f"It is off by {number(mae)} on average on the images that it is measured on."
        tiles.append(Tile(value=number(mae), label="mean absolute error", hint="in its own unit"))
    if r2 is not None:
        verdict += f" It explains {number(r2, 3)} of the variance (R²)."
        tiles.append(Tile(value=number(r2, 3), label="R²", hint="1: exact; 0: always the mean"))
    run = shlex.quote(str(record.run))
    return Findings(
        tone="neutral" if r2 is None else "good" if r2 > 0 else "caution",
        verdict=verdict,
        labels="with numbers",
        tiles=tiles,
        sections=[each for each in (_curves(record), *_judged(record)) if each is not None],
        commands=[
            (f"simmim predict {run} PHOTOS --out told.csv", "the number of each photo of a folder")
        ],
    )


def _curves(record: Record) -> Section | None:
    return curves(
        record,
        [
            (
                "r2",
                lambda rows: figures.measure_curve(rows, {"r2": "R²"}, "explained variance"),
                "On images kept out of training. Nothing is chosen by it: the last weights are "
                "kept.",
            ),
            (
                "loss",
                figures.loss_curve,
                "The loss on the images that it learns from: squared error, the variance of their "
                "numbers being 1.",
            ),
        ],
    )


def _judged(record: Record) -> list[Section]:
    read = read_rows(record.run / PREDICTIONS, record.problems)
    if read is None:
        return []
    try:
        truth, told = (np.array([float(row[k]) for row in read[1]]) for k in (1, 2))
        paths = [row[0] for row in read[1]]
    except (ValueError, IndexError):
        record.problems.append(DAMAGED.format(PREDICTIONS))
        return []
    worst = np.argsort(-np.abs(truth - told), kind="stable")[:_SHOWN]
    rows = [[paths[k], number(float(truth[k])), number(float(told[k]))] for k in worst.tolist()]
    caption = "Each point is an image kept out of training; on the dashed line it is told exactly."
    drawing = Figure(svg=figures.told_numbers(truth, told), caption=caption)
    return [
        Gallery(title="Told and true", items=[drawing]),
        Table(title="Where it is furthest off", columns=["image", "true", "told"], rows=rows),
    ]
