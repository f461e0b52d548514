"""Telling classes apart from a few labels: the trial of a label curve."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from threadpoolctl import threadpool_limits

from simmim.config.encoder import EncoderConfig
from simmim.config.finetune import ClassifyConfig
from simmim.config.studies import LEAST_STEPS, RATES, LabelsConfig
from simmim.data.loading.images import ImageSet
from simmim.evaluate.features import FeatureTable, extract
from simmim.evaluate.probe import Score, linear
from simmim.interop.load import LoadedEncoder
from simmim.interop.scratch import scratch_encoder
from simmim.machine import pick_workers
from simmim.studies.label_curve import SCRATCH, TUNING, nested
from simmim.studies.raw_rows import Row
from simmim.tasks.classifier import Classifier
from simmim.tasks.classify import finetune_in_memory
from simmim.training.world import World

REHEARSED = 64
"""Images that a rehearsal is on."""


@dataclass
class ClassifyTrial:
    """A classifier from a few labels, fine-tuned or on frozen features; see ``Trial``.

    Attributes:
        config: What was asked for.
        encoders: By the name of the start; the first is also the form of those from scratch.
        built: How an encoder from scratch is built.
        pool: Images that labels are drawn from.
        tuning: Images that rates are chosen on.
        test: Images that are measured on.
        classes: Names of the classes.
        settings: How classifiers are fine-tuned, but for the rate and the length.
        world: The processes.
    """

    config: LabelsConfig
    encoders: Mapping[str, LoadedEncoder]
    built: EncoderConfig
    pool: ImageSet
    tuning: ImageSet
    test: ImageSet
    classes: Sequence[str]
    settings: ClassifyConfig
    world: World
    measure: str = "accuracy"
    _features: dict[tuple[str, int], tuple[FeatureTable, FeatureTable]] = field(
        default_factory=dict
    )

    @property
    def labels(self) -> np.ndarray:
        """Classes of the images that labels are drawn from."""
        return np.array(self.pool.labels)

    @property
    def rates(self) -> tuple[float, ...]:
        """Rates; a logistic regression chooses its penalty by cross-validation and has none."""
        return RATES if self.config.protocol == "finetune" else (0.0,)

    def __call__(self, start: str, rows: np.ndarray, draw: int, rate: float, /) -> Row:
        """See ``Trial``."""
        began = time.monotonic()
        if self.config.protocol == "linear":
            score = self._linear(start, rows, draw)
        else:
            asked = self.tuning if draw == TUNING else self.test
            classifier = self._finetuned(start, rows, draw, rate, self.steps(len(rows)))
            score = classifier.predict(asked, workers=pick_workers(self.config.workers)).score()
        return {
            "accuracy": score.accuracy,
            "balanced_accuracy": score.balanced_accuracy,
            "seconds": round(time.monotonic() - began, 2),
        }

    def steps(self, labels: int) -> int:
        """Of a training with so many labels, whatever its start."""
        batch = self.settings.batch_size
        assert batch is not None
        return max(LEAST_STEPS, round(self.config.epochs * labels / batch))

    def seconds(self, start: str) -> tuple[float, float]:
        """Rehearse: seconds of a training beside its steps, and of a step."""
        rows = nested(self.labels, 1, self.config.seed)[:REHEARSED]
        asked = replace(self.test, paths=self.test.paths[:REHEARSED], labels=None)
        times = []
        for steps in (1, 4):
            began = time.monotonic()
            self._finetuned(start, rows, 1, self.rates[0], steps).predict(asked)
            times.append(time.monotonic() - began)
        step = max(0.0, times[1] - times[0]) / 3
        return max(0.0, times[0] - step) * len(self.test) / len(asked), step

    def _encoder(self, start: str, draw: int) -> LoadedEncoder:
        if start != SCRATCH:
            return self.encoders[start]
        like = next(iter(self.encoders.values()))
        return scratch_encoder(self.built, like, draw, self.config.seed).to(self.world.device)

    def _finetuned(
        self, start: str, rows: np.ndarray, draw: int, rate: float, steps: int
    ) -> Classifier:
        settings, batch = self.settings, self.settings.batch_size
        assert batch is not None
        # From scratch no block has anything to keep.
        decay = 1.0 if start == SCRATCH else settings.optim.layer_decay
        return finetune_in_memory(
            replace(
                settings,
                seed=self.config.seed + draw,
                epochs=steps * batch / len(rows),
                optim=replace(settings.optim, lr=rate, layer_decay=decay),
            ),
            self._encoder(start, draw),
            self._drawn(rows),
            classes=self.classes,
            world=self.world,
        )

    def _drawn(self, rows: np.ndarray) -> ImageSet:
        labels = self.labels[rows].tolist()
        return replace(self.pool, paths=self.pool.paths.select(rows), labels=labels)

    def _linear(self, start: str, rows: np.ndarray, draw: int) -> Score:
        key = (start, draw if start == SCRATCH else TUNING)
        if key not in self._features:
            encoder, workers = self._encoder(start, draw), pick_workers(self.config.workers)
            self._features = {k: v for k, v in self._features.items() if k[0] != start}
            pool, test = (
                extract(encoder, images, workers=workers) for images in (self.pool, self.test)
            )
            self._features[key] = pool, test
        pool, test = self._features[key]
        assert test.labels is not None
        pieces = (pool.features[rows], self.labels[rows], test.features, test.labels)
        with threadpool_limits(1, "blas"):  # small products are faster on one thread
            return linear(*pieces, classes=len(self.classes), seed=self.config.seed)
