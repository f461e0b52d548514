"""The report on a classifier: how often it is right, what it mixes up, and of what it is sure."""

import csv
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simmim.config.finetune import ClassifyConfig
from simmim.data.formats.image_file import UnreadableError
from simmim.data.loading.augment import plain_view
from simmim.data.names import plain
from simmim.errors import SimmimError
from simmim.report import figures
from simmim.report.findings import Findings
from simmim.report.pictures import Photo
from simmim.report.sections import (
    ClassGuesses,
    Confusion,
    Examples,
    Guess,
    Section,
    Tile,
)
from simmim.report.summary import curves
from simmim.report.words import count, percent
from simmim.runs.folder import read_config
from simmim.runs.images import open_images
from simmim.runs.record import Record

PREDICTIONS = "predictions.csv"
DAMAGED = "{} is damaged or half written, so nothing is said of single images."
_SHOWN = 4
"""Photos of each class that it is surest of, and least sure."""
_SIDE = 120
"""Least pixels of an image that is shown."""
_CLASSES = 20
"""Most classes that are shown."""


@dataclass(frozen=True)
class Answers:
    """What a classifier said of the images that it was measured on, one row each."""

    paths: list[str]
    classes: list[str]
    labels: np.ndarray
    """(n,) true classes."""
    probabilities: np.ndarray
    """(n, classes)."""


def findings(record: Record) -> Findings:
    """What is to be said of a classifier."""
    answers = _read(record.run / PREDICTIONS, record.problems)
    parts = [_curves(record), *([] if answers is None else _judged(record, answers))]
    tone, verdict = _verdict(record, answers)
    return Findings(
        tone=tone,
        verdict=verdict,
        labels="with labels",
        tiles=_tiles(record),
        sections=[part for part in parts if part is not None],
        commands=_commands(record),
    )


def confusion(answers: Answers, lead: str) -> Confusion:
    """Which class was taken for which."""
    size = len(answers.classes)
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, (answers.labels, answers.probabilities.argmax(1)), 1)
    title = "Which class is taken for which"
    return Confusion(title=title, lead=lead, counts=counts, classes=answers.classes)


def examples(answers: Answers, lead: str, photo: Callable[[int], Photo]) -> Examples:
    """Images of each class that the classifier is surest of, and least sure; ``photo`` by row."""
    best, surest = answers.probabilities.argmax(1), answers.probabilities.max(1)

    def guesses(rows: Sequence[int]) -> list[Guess]:
        return [
            Guess(
                photo=photo(int(row)),
                predicted=answers.classes[best[row]],
                probability=float(surest[row]),
                correct=bool(best[row] == answers.labels[row]),
            )
            for row in rows[:_SHOWN]
        ]

    parts = []
    for label, name in enumerate(answers.classes[:_CLASSES]):
        rows = np.flatnonzero(answers.labels == label)
        order = rows[np.argsort(-surest[rows], kind="stable")].tolist()
        if order:
            parts.append(
                ClassGuesses(name=name, surest=guesses(order), least_sure=guesses(order[::-1]))
            )
    if len(answers.classes) > _CLASSES:
        lead += f" The first {_CLASSES} of {len(answers.classes):,} classes."
    return Examples(title="Surest and least sure", lead=lead, classes=parts)


def read_rows(file: Path, problems: list[str]) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows of predictions.csv; None where it has none, and a remark if damaged."""
    if not file.exists():
        return None
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            header, *rows = list(csv.reader(stream, strict=True))
    except (OSError, ValueError, csv.Error):
        problems.append(DAMAGED.format(file.name))
        return None
    return header, rows


def _read(file: Path, problems: list[str]) -> Answers | None:
    """What predictions.csv says; None, and a remark where it is damaged, where it says nothing."""
    read = read_rows(file, problems)
    if read is None:
        return None
    try:
        header, rows = read
        classes = header[3:]  # after path, label and prediction
        labels = np.array([classes.index(row[1]) for row in rows])
        probabilities = np.array([[float(value) for value in row[3:]] for row in rows])
        probabilities = probabilities.reshape(len(rows), len(classes))
        paths = [row[0] for row in rows]
    except (ValueError, IndexError):
        problems.append(DAMAGED.format(file.name))
        return None
    return Answers(paths, classes, labels, probabilities)


def _verdict(record: Record, answers: Answers | None) -> tuple[str, str]:
    """Tone and words for how often the classifier is right."""
    accuracy = record.last("accuracy")
    if accuracy is None:
        return "neutral", (
            "How often it is right was not measured yet; it is, ten times in a run, and at its end."
        )
    said = f"It is right on {percent(accuracy, 1)} of the images that it is measured on"
    balanced = record.last("balanced_accuracy")
    if balanced is not None:
        said += f", and, with every class counting alike, on {percent(balanced, 1)}"
    if answers is None:
        return "neutral", f"{said}."
    share = np.bincount(answers.labels).max() / len(answers.labels)
    tone = "good" if accuracy > share else "caution"
    return tone, f"{said}. Always saying the largest class would be right on {percent(share, 1)}."


def _tiles(record: Record) -> list[Tile]:
    names = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
    hints = {"accuracy": "images kept out of training", "balanced_accuracy": "mean over classes"}
    return [
        Tile(value=percent(value, 1), label=name, hint=hints[key])
        for key, name in names.items()
        if (value := record.last(key)) is not None
    ]


def _curves(record: Record) -> Section | None:
    accuracy = (
        "accuracy",
        figures.accuracy_curve,
        "How often it is right on images kept out of training. Nothing is chosen by it: the last "
        "weights are kept.",
    )
    loss = (
        "loss",
        figures.loss_curve,
        "The loss on the images that it learns from, cropped and flipped. Faint: single steps.",
    )
    return curves(record, [accuracy, loss])


def _judged(record: Record, answers: Answers) -> list[Section]:
    measured = f"On {count(len(answers.paths), 'image')} kept out of training."
    parts: list[Section] = [confusion(answers, measured)]
    photo = _photos(record, answers)
    if photo is not None:
        lead = "Images of each class, by how sure it was of its answer, right or wrong."
        parts.append(examples(answers, lead, photo))
    return parts


def _photos(record: Record, answers: Answers) -> Callable[[int], Photo] | None:
    """What reads an image, by its row; None, and a remark, where the run's images are gone."""
    try:
        _, resolved = read_config(record.run, ClassifyConfig)
        if resolved is None:
            return None
        saved = open_images(record.run, resolved.lists)
    except SimmimError as error:
        record.problems.append(f"No single images are shown. {error}")
        return None
    listing = saved.others[0] if saved.others else saved.listing.select(saved.held)
    place = {plain(path): i for i, path in enumerate(listing)}
    pixels, (height, width) = resolved.pixels, resolved.image_size
    more = max(1, math.ceil(_SIDE / min(height, width)))
    size = (more * height, more * width)
    low, high = np.array(pixels.low), np.array(pixels.high)

    def photo(row: int) -> Photo:
        try:
            view = plain_view(listing.open(place[answers.paths[row]]), pixels, size)
        except (UnreadableError, SimmimError, OSError, KeyError):
            return np.full((32, 32, 1), 0.5)
        return (view.permute(1, 2, 0).numpy() - low) / (high - low)

    return photo


def _commands(record: Record) -> list[tuple[str, str]]:
    run = shlex.quote(str(record.run))
    code = (
        f"import simmim; print(simmim.load({str(record.run)!r}, head=True).predict('PHOTOS').names)"
    )
    return [
        (f"python -c {shlex.quote(code)}", "the class of each photo of a folder"),
        (
            f"simmim export {run} --format onnx --out {run}-onnx",
            "the classifier for programs without Python",
        ),
        (
            f"simmim embed {run} PHOTOS --out embeddings.parquet",
            "a vector for each photo, to search and to compare",
        ),
    ]
