"""The report on a segmenter: how well it finds each class, and pictures of what it says."""

import json
import shlex
from pathlib import Path

import numpy as np

from simmim.evaluate.confusion import Confusion
from simmim.report import figures
from simmim.report.findings import Findings
from simmim.report.sections import Gallery, Picture, Section, Table, Tile
from simmim.report.summary import curves
from simmim.report.words import count, percent
from simmim.runs.record import Record

CONFUSION = "confusion.json"
PICTURE = "pictures/masks.png"


def findings(record: Record) -> Findings:
    """What is to be said of a segmenter."""
    found = _read(record.run / CONFUSION, record.problems)
    parts: list[Section | None] = [_curves(record)]
    if found is not None:
        parts.append(_classes(*found))
    if (record.run / PICTURE).is_file():
        parts.append(_samples(record.run / PICTURE))
    tone, verdict = _verdict(record, None if found is None else found[0])
    names = {"miou": "mean IoU", "pixel_accuracy": "pixel accuracy"}
    hints = {"miou": "mean over classes", "pixel_accuracy": "images kept out of training"}
    return Findings(
        tone=tone,
        verdict=verdict,
        labels="with masks",
        tiles=[
            Tile(value=percent(value, 1), label=name, hint=hints[key])
            for key, name in names.items()
            if (value := record.last(key)) is not None
        ],
        sections=[part for part in parts if part is not None],
        commands=_commands(record),
    )


def _read(file: Path, problems: list[str]) -> tuple[Confusion, int] | None:
    """What confusion.json says, and of how many images; None, and a remark where it is damaged."""
    if not file.exists():
        return None
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        classes = [str(name) for name in document["classes"]]
        counts = np.array(document["confusion"], np.int64).reshape(len(classes), len(classes))
        return Confusion(counts, classes), int(document["images"])
    except (OSError, ValueError, TypeError, KeyError):
        problems.append(f"{file.name} is damaged, so nothing is said of single classes.")
        return None


def _verdict(record: Record, found: Confusion | None) -> tuple[str, str]:
    miou = record.last("miou")
    if miou is None:
        return "neutral", (
            "How well it segments was not measured yet; it is, ten times in a run, and at its end."
        )
    said = f"Its mean IoU is {percent(miou, 1)} on the images that it is measured on"
    if found is None:
        return "neutral", f"{said}."
    tone = "good" if miou > found.trivial else "caution"
    return tone, f"{said}. Always saying the largest class would have {percent(found.trivial, 1)}."


def _curves(record: Record) -> Section | None:
    miou = (
        "miou",
        figures.miou_curve,
        "How well it segments images kept out of training. Nothing is chosen by it: the last "
        "weights are kept.",
    )
    loss = (
        "loss",
        figures.loss_curve,
        "The loss on the images that it learns from, cropped, flipped and recoloured. Faint: "
        "single steps.",
    )
    return curves(record, [miou, loss])


def _classes(found: Confusion, images: int) -> Section:
    total, right = found.counts.sum(), np.diag(found.counts)
    rows = []
    for place, (name, iou) in enumerate(zip(found.classes, found.iou, strict=True)):
        true, said = found.counts[place].sum(), found.counts[:, place].sum()
        rows.append(
            [
                name,
                percent(true / max(1, total), 1),
                "" if iou is None else percent(iou, 1),
                percent(right[place] / true, 1) if true else "",
                percent(right[place] / said, 1) if said else "",
            ]
        )
    return Table(
        title="Each class",
        lead=(
            f"On {count(images, 'image')} kept out of training, every pixel at the image's own "
            "size. IoU: what is right, over what is the class or was taken for it."
        ),
        columns=["class", "share of pixels", "IoU", "found", "right where said"],
        rows=rows,
    )


def _samples(file: Path) -> Section:
    caption = "Image, mask, and what it says. Black in a mask: no class."
    picture = Picture(photo=file, alt="Images with masks and predictions", caption=caption)
    return Gallery(title="What it says", items=[picture])


def _commands(record: Record) -> list[tuple[str, str]]:
    run = shlex.quote(str(record.run))
    return [
        (f"simmim predict {run} PHOTOS --out masks", "masks and overlays of a folder of photos"),
        (
            f"simmim embed {run} PHOTOS --out embeddings.parquet",
            "a vector for each photo, to search and to compare",
        ),
    ]
