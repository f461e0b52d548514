"""The report on what tells any number of classes: how well, and which classes."""

import shlex

import numpy as np

from simmim.evaluate.scores import score_tags
from simmim.report import figures
from simmim.report.classified import DAMAGED, PREDICTIONS, read_rows
from simmim.report.findings import Findings
from simmim.report.sections import Section, Table, Tile
from simmim.report.summary import curves
from simmim.report.words import percent
from simmim.runs.record import Record

_NAMES = {"map": "mean AP", "f1": "F1", "f1_macro": "F1, mean over classes"}


def findings(record: Record) -> Findings:
    """What is to be said of it."""
    mean = record.last("map")
    verdict = "How well classes are told was not measured yet; it is, ten times in a run."
    if mean is not None:
        verdict = (
            f"The mean over the classes of the average precision is {percent(mean, 1)} on the "
            "images that it is measured on."
        )
    run = shlex.quote(str(record.run))
    parts = [_curves(record), _table(record)]
    return Findings(
        tone="neutral",
        verdict=verdict,
        labels="with any number of classes",
        tiles=[
            Tile(value=percent(value, 1), label=name, hint="images kept out of training")
            for key, name in _NAMES.items()
            if (value := record.last(key)) is not None
        ],
        sections=[each for each in parts if each is not None],
        commands=[
            (f"simmim predict {run} PHOTOS --out told.csv", "the classes of each photo of a folder")
        ],
    )


def _curves(record: Record) -> Section | None:
    return curves(
        record,
        [
            (
                "map",
                lambda rows: figures.measure_curve(rows, _NAMES, "mean AP and F1"),
                "On images kept out of training. Nothing is chosen by it: the last weights are "
                "kept.",
            ),
            ("loss", figures.loss_curve, "The loss on the images that it learns from."),
        ],
    )


def _table(record: Record) -> Section | None:
    read = read_rows(record.run / PREDICTIONS, record.problems)
    if read is None:
        return None
    header, rows = read
    classes = header[3:]  # after path, label and prediction
    try:
        true = [row[1].split("|") for row in rows]
        labels = np.array([[name in names for name in classes] for names in true], int)
        shares = np.array([[float(value) for value in row[3:]] for row in rows])
        found = score_tags(labels, shares)
    except (ValueError, IndexError):
        record.problems.append(DAMAGED.format(PREDICTIONS))
        return None
    lines = [
        [name, f"{count:,}", "no image" if each is None else percent(each, 1)]
        for name, count, each in zip(classes, labels.sum(0), found.by_class, strict=True)
    ]
    note = f"Of {len(rows):,} images kept out of training."
    columns = ["class", "images", "average precision"]
    return Table(title="Which classes are told", columns=columns, rows=lines, note=note)
