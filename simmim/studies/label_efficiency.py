"""What the demo measures: classifiers from a few labels, with and without pretraining, in pairs."""

import csv
import io
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from simmim.config.demo import LABELS_PER_CLASS
from simmim.config.encoder import EncoderConfig
from simmim.config.finetune import ClassifyConfig
from simmim.config.resolved import PixelFormat
from simmim.config.seal import read_sealed
from simmim.data.demo import PHOTOS, TEST_PHOTOS
from simmim.data.labels import class_folders
from simmim.data.loading.images import ImageSet
from simmim.data.sources.find import find_images
from simmim.errors import CheckpointError, DataError
from simmim.evaluate.features import extract
from simmim.evaluate.fewshot import draw_rows
from simmim.evaluate.probe import knn, linear, score
from simmim.interop.load import LoadedEncoder
from simmim.interop.scratch import scratch_encoder
from simmim.report.sections import Comparison, Draw, Score
from simmim.runs.files import write_text
from simmim.runs.folder import write_json
from simmim.tasks.classify import finetune_in_memory
from simmim.tensors.counter import Purpose, hash64
from simmim.training.world import World

PREDICTIONS = "predictions.csv"
RESULTS = "results.json"
FORMAT = 1
METHODS = {
    "finetune": "fine-tuned",
    "linear": "frozen, logistic regression",
    "knn": "frozen, k-NN",
}
"""Ways to use an encoder, and what they are called in words."""
STARTS = ("pretrained", "scratch")
"""Where an encoder starts; `scratch` is random weights."""

Say = Callable[[float, str], None]
"""Told the share that is done, and what is done now."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Photos:
    """The labelled photos: those that draws are taken from, and those that are asked about."""

    train: ImageSet
    test: ImageSet
    named: ImageSet
    """The test photos with their true labels, also where the others are shuffled."""
    classes: list[str]


@dataclass(frozen=True)
class Predictions:
    """What one classifier says of the test photos."""

    draw: int
    method: str
    start: str
    paths: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    """(n, classes)."""

    @property
    def figures(self) -> Score:
        """Accuracy and balanced accuracy."""
        found = score(self.labels, self.probabilities, self.probabilities.shape[1])
        return Score(accuracy=found.accuracy, balanced=found.balanced_accuracy)


@dataclass
class Measurements:
    """Everything that was measured."""

    classes: list[str]
    labels: int
    """Labelled photos in a draw."""
    asked: list[Predictions] = field(default_factory=list)
    curve: list[Draw] = field(default_factory=list)
    """Logistic regression on frozen features at growing numbers of labels."""
    draws: int = 0
    seconds: float = 0.0

    def find(self, draw: int, method: str, start: str) -> Predictions:
        """The classifier of one draw."""
        key = (draw, method, start)
        return next(one for one in self.asked if (one.draw, one.method, one.start) == key)

    def comparison(self, methods: Sequence[str], **words: str) -> Comparison:
        """Pretrained against scratch over the draws, for some of the methods."""
        pairs = [
            Draw(
                labels=self.labels,
                pretrained=self.find(draw, method, "pretrained").figures,
                baseline=self.find(draw, method, "scratch").figures,
                protocol=METHODS[method],
            )
            for method in methods
            for draw in range(1, self.draws + 1)
        ]
        return Comparison(draws=pairs, **words)


def open_photos(run: Path, pixels: PixelFormat, seed: int, *, shuffle: bool) -> Photos:
    """The labelled photos of a demo's folder.

    Args:
        run: The folder.
        pixels: How they are read.
        seed: Of the shuffling.
        shuffle: Whether to shuffle the labels, as a check on all figures.

    Raises:
        DataError: Photos are gone, or there are others.
    """
    folders = [run / PHOTOS / "train", run / TEST_PHOTOS]
    paths = [find_images(folder) for folder in folders]
    found = [class_folders(each) for each in paths]
    train, test = found
    if train is None or test is None or train.classes != test.classes:
        raise DataError(f"{run} does not hold the demo's photos any more; start a new demo.")
    known, asked = (
        ImageSet(labels.images, pixels, [label for _, label in labels.pairs()])
        for labels in (train, test)
    )
    if not shuffle:
        return Photos(known, asked, asked, test.classes)
    return Photos(shuffled_labels(known, seed), shuffled_labels(asked, seed), asked, test.classes)


def shuffled_labels(images: ImageSet, seed: int) -> ImageSet:
    """The same photos and labels, but no photo with a label of its own: a check on the figures."""
    assert images.labels is not None
    order = sorted(range(len(images.paths)), key=lambda i: hash64(seed, Purpose.SHUFFLE, i))
    return replace(images, labels=[images.labels[i] for i in order])


def draw_labels(images: ImageSet, number: int, seed: int, each: int) -> ImageSet:
    """``each`` photos of every class, chosen by a hash of (seed, draw's number, photo).

    Raises:
        DataError: A class has fewer.
    """
    assert images.labels is not None
    fewest = min(count for count in np.bincount(images.labels) if count)
    if fewest < each:
        raise DataError(f"a class has {fewest} photos, and {each} of each are to be drawn.")
    return images.select(draw_rows(np.array(images.labels), each, number, seed))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Classifiers from the same few labels, from a pretrained encoder and from scratch."""

    photos: Photos
    pretrained: LoadedEncoder
    """The encoder to judge, on the device; it stays as it is."""
    config: EncoderConfig
    """How an encoder from scratch is built."""
    settings: ClassifyConfig
    """How both are fine-tuned."""
    seed: int
    """Of the draws, of the random weights, and of training."""
    world: World
    each: int = LABELS_PER_CLASS
    """Labelled photos of each class in a draw."""

    def measure(
        self,
        draws: int,
        *,
        say: Say,
        note: Callable[[str], None],
        allowance: float | None = None,
    ) -> Measurements:
        """Measure on several draws of labels.

        Args:
            draws: How many; fewer where ``allowance`` says so, but two at least.
            say: Told how far it is.
            note: Told where draws are left out.
            allowance: Seconds for all draws; None: as long as it takes.
        """
        measured = Measurements(self.photos.classes, self.each * len(self.photos.classes))
        began = time.monotonic()
        while measured.draws < draws:
            done, total = measured.draws, draws

            def told(share: float, text: str, done: int = done, total: int = total) -> None:
                say((done + share) / total, f"draw {done + 1} of {total}, {text}")

            measured.asked += self.measure_draw(done + 1, told)
            measured.draws += 1
            measured.seconds = time.monotonic() - began
            each = measured.seconds / measured.draws
            if allowance is not None and done == 0 and each * draws > allowance:
                draws = min(draws, max(2, int(allowance / each)))
            if draws < total:
                note(
                    f"note: a draw takes {each:.0f} s on this machine, so {draws} draws are made "
                    f"instead of {total}. Where --minutes is given, all of them are made."
                )
        return measured

    def measure_draw(self, number: int, say: Say) -> list[Predictions]:
        """Both starts, used in every way, on one draw of labels."""
        learnt = draw_labels(self.photos.train, number, self.seed, self.each)
        random = scratch_encoder(self.config, self.pretrained, number, self.seed)
        found: list[Predictions] = []
        for start, encoder in zip(STARTS, (self.pretrained, random), strict=True):
            begun = STARTS.index(start) / len(STARTS)
            say(begun, f"{start}: frozen features")
            found += self._probe(number, start, encoder.to(self.world.device), learnt)

            def told(share: float, begun: float = begun, start: str = start) -> None:
                say(begun + share / len(STARTS), f"{start}: fine-tuning")

            found.append(self._finetune(number, start, encoder, learnt, told))
        return found

    def _probe(
        self, draw: int, start: str, encoder: LoadedEncoder, learnt: ImageSet
    ) -> Iterator[Predictions]:
        known, asked = extract(encoder, learnt), extract(encoder, self.photos.test)
        assert known.labels is not None
        assert asked.labels is not None
        pieces = (known.features, known.labels, asked.features, asked.labels)
        for method, protocol in (("linear", linear), ("knn", knn)):
            # Products this small take several times as long on two threads as on one.
            with threadpool_limits(1, "blas"):
                found = protocol(*pieces, classes=len(self.photos.classes))
            yield Predictions(draw, method, start, asked.paths, asked.labels, found.probabilities)

    def _finetune(
        self,
        draw: int,
        start: str,
        encoder: LoadedEncoder,
        learnt: ImageSet,
        say: Callable[[float], None],
    ) -> Predictions:
        assert self.settings.epochs is not None
        classifier = finetune_in_memory(
            replace(self.settings, seed=self.seed + draw),
            encoder,
            learnt,
            classes=self.photos.classes,
            world=self.world,
            watchers=[_Counter(self.settings.epochs, say)],
        )
        said = classifier.predict(self.photos.test)
        assert said.labels is not None
        return Predictions(draw, "finetune", start, said.paths, said.labels, said.probabilities)


class _Counter:
    """Tells which share of a fine-tuning's steps is done."""

    def __init__(self, epochs: float, say: Callable[[float], None]) -> None:
        self.epochs = epochs
        self.say = say

    def update(self, row: dict[str, float]) -> None:
        """A step is done."""
        self.say(min(1.0, row["epoch"] / self.epochs))

    def note(self, text: str) -> None:
        """Nothing is noted without checkpoints."""


def write_predictions(file: Path, measured: Measurements) -> None:
    """Write a row for each classifier and test photo, as a CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["draw", "method", "start", "path", "label", "predicted", "probability"])
    names = measured.classes
    for one in measured.asked:
        best = one.probabilities.argmax(1)
        for row, path in enumerate(one.paths):
            writer.writerow(
                [
                    one.draw,
                    one.method,
                    one.start,
                    path,
                    names[one.labels[row]],
                    names[best[row]],
                    f"{one.probabilities[row, best[row]]:.4f}",
                ]
            )
    write_text(file, text.getvalue())


def results(measured: Measurements, **facts: Any) -> dict[str, Any]:
    """What results.json says."""
    paired = []
    for method in METHODS:
        (pair,) = measured.comparison([method], title="").paired
        paired.append(
            {
                "method": method,
                "draws": pair.draws,
                "labels": pair.labels,
                **{
                    name: {
                        "accuracy": _finite(found.accuracy),
                        "balanced_accuracy": _finite(found.balanced),
                    }
                    for name, found in (
                        ("pretrained", pair.pretrained),
                        ("scratch", pair.baseline),
                        ("difference", pair.difference),
                        ("standard_error_of_the_difference", pair.error),
                    )
                },
                "verdict": pair.verdict,
            }
        )
    first = measured.asked[0]
    each = [
        {
            "draw": one.draw,
            "method": one.method,
            "start": one.start,
            "accuracy": one.figures.accuracy,
            "balanced_accuracy": one.figures.balanced,
        }
        for one in measured.asked
    ]
    return {
        "format": FORMAT,
        **facts,
        "test_photos": len(first.paths),
        "labels_in_a_draw": measured.labels,
        "always_the_largest_class": float(np.bincount(first.labels).max() / len(first.labels)),
        "paired": paired,
        "each": each,
        "label_curve": [
            {
                "labels": one.labels,
                "pretrained": one.pretrained.accuracy,
                "random": one.baseline.accuracy,
            }
            for one in measured.curve
        ],
    }


def _finite(value: float) -> float | None:
    """``value``, or None for the standard error of a single draw: JSON has no NaN."""
    return value if math.isfinite(value) else None


def write_results(file: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Write results.json; what an earlier evaluation of the run found is kept in brief.

    Returns:
        What was written.
    """
    earlier: list[dict[str, Any]] = []
    if file.exists():
        kept = ("steps", "minutes", "labels_shuffled", "paired")
        try:
            before = json.loads(read_sealed(file, "").text)
            earlier = [*before["earlier"], {name: before[name] for name in kept}]
        except CheckpointError as error:
            log.warning("what was measured before is not kept: %s", error)
    document = {**document, "earlier": earlier}
    write_json(file, document)
    return document
