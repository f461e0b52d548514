"""What a detector has to say in the report: how well objects are found, and a few pictures."""

import json
import shlex
from typing import Any

from simmim.report import figures
from simmim.report.findings import Findings
from simmim.report.sections import Gallery, Picture, Section, Table, Tile
from simmim.report.summary import curves
from simmim.report.words import percent
from simmim.runs.record import Record

PREDICTIONS = "predictions.json"
PRECISION = "precision.json"
TITLES = {"ap": "AP", "ap50": "AP50", "ap_mask": "AP of masks", "ap50_mask": "AP50 of masks"}
"""What the measures are called."""
PICTURE = "pictures/detections.png"


def findings(record: Record) -> Findings:
    """See ``Findings``."""
    by_class = _by_class(record)
    sections = [_curves(record), _table(by_class), _picture(record)]
    run = shlex.quote(str(record.run))
    return Findings(
        tone="neutral",
        verdict=_verdict(record),
        labels="with boxes",
        tiles=[
            Tile(value=percent(value, 1), label=title, hint=_hint(name))
            for name, title in TITLES.items()
            if (value := record.last(name)) is not None
        ],
        sections=[each for each in sections if each is not None],
        commands=[
            (
                f"simmim predict {run} PHOTOS --out found",
                "the objects in each photo: COCO's results, and overlays to look at",
            ),
            (
                f"simmim embed {run} PHOTOS --out embeddings.parquet",
                "a vector for each photo, to search and to compare",
            ),
        ],
    )


def _hint(name: str) -> str:
    return "an overlap of 0.5 is enough" if "50" in name else "mean over overlaps of 0.5 to 0.95"


def _verdict(record: Record) -> str:
    ap, ap50 = record.last("ap"), record.last("ap50")
    if ap is None or ap50 is None:
        return "How well objects are found was not measured yet; it is, ten times in a run."
    return (
        f"The average precision (AP, COCO's measure) is {percent(ap, 1)} on the images that it is "
        f"measured on, and {percent(ap50, 1)} where an overlap of one half counts as found."
    )


def _by_class(record: Record) -> dict[str, Any]:
    file = record.run / PRECISION
    if not file.exists():
        return {}
    try:
        return dict(json.loads(file.read_text("utf-8"))["classes"])
    except (OSError, ValueError, KeyError, TypeError):
        record.problems.append(f"{file.name} is damaged, so nothing is said of single classes.")
        return {}


def _curves(record: Record) -> Section | None:
    precision = (
        "ap50",
        figures.precision_curve,
        "Average precision on images kept out of training, an overlap of one half counting as "
        "found. Nothing is chosen by it: the last weights are kept.",
    )
    loss = (
        "loss",
        figures.loss_curve,
        "The loss on the images that it learns from, zoomed, cut and flipped. Faint: single steps.",
    )
    return curves(record, [precision, loss])


def _table(by_class: dict[str, Any]) -> Section | None:
    if not by_class:
        return None
    rows = [
        [name, "no object" if value is None else percent(value, 1)]
        for name, value in by_class.items()
    ]
    return Table(title="Which objects are found", columns=["class", "AP50"], rows=rows)


def _picture(record: Record) -> Section | None:
    file = record.run / PICTURE
    if not file.exists():
        return None
    picture = Picture(
        photo=file,
        alt="Images with boxes around the objects that were found",
        caption="What it is at least half sure of, in images kept out of training.",
    )
    return Gallery(title="What was found", items=[picture])
