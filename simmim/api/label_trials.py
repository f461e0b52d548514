"""Learning a task from a few labelled images: the trials of a label curve."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from threadpoolctl import threadpool_limits

from simmim.api.tasks.task import AnyTask, Labelled
from simmim.config.encoder import EncoderConfig
from simmim.config.finetune import FinetuneConfig
from simmim.config.studies import LEAST_STEPS, LabelsConfig
from simmim.data.loading.images import ImageSet
from simmim.evaluate.features import FeatureTable, extract
from simmim.evaluate.probe import linear
from simmim.interop.load import LoadedEncoder
from simmim.interop.scratch import scratch_encoder
from simmim.machine import pick_workers
from simmim.studies.label_curve import SCRATCH, TUNING, nested, rarest
from simmim.studies.raw_rows import Row
from simmim.tasks.in_memory import train_in_memory
from simmim.training.health import DivergedError
from simmim.training.task import Task
from simmim.training.world import World

ASTRAY = "astray"
"""The column that has a 1 where a training went astray, whose figure is then 0."""
REHEARSED = 64
"""Images that a rehearsal is on, unless the least number of labels is above."""


@dataclass
class LabelTrial:
    """A task learned from some of the labelled images, all of the encoder with it; see ``Trial``.

    Attributes:
        config: What was asked for.
        kind: The task.
        training: How it is fine-tuned, but for the rate and the length.
        encoders: By the name of the start; the first is also the form of those from scratch.
        built: How an encoder from scratch is built.
        pool: Images that labels are drawn from, and those that are measured on.
        present: Which classes (n, classes) the images that labels are drawn from show.
        tuning: Images that rates are chosen on.
        world: The processes.
    """

    config: LabelsConfig
    kind: AnyTask
    training: FinetuneConfig
    encoders: Mapping[str, LoadedEncoder]
    built: EncoderConfig
    pool: Labelled
    present: np.ndarray
    tuning: ImageSet
    world: World

    @property
    def measure(self) -> str:
        """See ``Trial``."""
        return self.kind.figure[0]

    @property
    def groups(self) -> np.ndarray:
        """See ``Trial``."""
        return rarest(self.present)

    @property
    def rates(self) -> tuple[float, ...]:
        """See ``Trial``."""
        return self.config.rates

    def __call__(self, start: str, rows: np.ndarray, draw: int, rate: float, /) -> Row:
        """See ``Trial``."""
        began = time.monotonic()
        asked = self.tuning if draw == TUNING else self.pool.val
        try:
            task = self._fine_tuned(start, rows, draw, rate, self.steps(len(rows)))
            found: Row = self._measured(task, asked)
        except DivergedError:
            found = {self.measure: 0.0, ASTRAY: 1}
        return {**found, "seconds": round(time.monotonic() - began, 2)}

    def steps(self, labels: int) -> int:
        """Of a training with so many labels, whatever its start."""
        batch = self.training.batch_size
        assert batch is not None
        return max(LEAST_STEPS, round(self.config.epochs * labels / batch))

    def seconds(self, start: str, fewest: int) -> tuple[float, float]:
        """Rehearse: seconds of a training beside its steps, and of a step.

        Args:
            start: Which one.
            fewest: Labels that something can be learned from.
        """
        rows = nested(self.groups, 1, self.config.seed)[: max(REHEARSED, fewest)]
        times = []
        for steps in (1, 4):
            began = time.monotonic()
            task = self._fine_tuned(start, rows, 1, self.rates[0], steps)
            times.append(time.monotonic() - began)
        step = max(0.0, times[1] - times[0]) / 3
        began = time.monotonic()
        self._measured(task, self.pool.train.select(rows))
        each = (time.monotonic() - began) / len(rows)
        return max(0.0, times[0] - step) + each * len(self.pool.val), step

    def encoder(self, start: str, draw: int) -> LoadedEncoder:
        """What a training begins with; from scratch each draw has weights of its own."""
        if start != SCRATCH:
            return self.encoders[start]
        like = next(iter(self.encoders.values()))
        return scratch_encoder(self.built, like, draw, self.config.seed).to(self.world.device)

    def _fine_tuned(self, start: str, rows: np.ndarray, draw: int, rate: float, steps: int) -> Task:
        """What `simmim finetune` makes of these images, with such a rate and so many steps."""
        training, encoder = self.training, self.encoder(start, draw)
        batch, size = training.batch_size, encoder.image_size
        assert batch is not None
        labelled = self.kind.draw(self.pool, np.sort(rows))
        labelled.train = replace(labelled.train, pixels=encoder.pixels)
        # From scratch no block has anything to keep.
        decay = 1.0 if start == SCRATCH else training.optim.layer_decay
        config = replace(
            training,
            seed=self.config.seed + draw,
            epochs=steps * batch / len(rows),
            optim=replace(training.optim, lr=rate, layer_decay=decay),
        )
        config = self.kind.fit(config, size, labelled)
        return train_in_memory(
            config,
            lambda config: self.kind.begin(config, encoder.encoder, size, labelled, self.world),
            encoder,
            labelled.train,
            world=self.world,
            groups=self.kind.groups(config, labelled),
        )

    def _measured(self, task: Task, images: ImageSet) -> dict[str, float]:
        workers = pick_workers(self.config.workers)
        return self.kind.measure(task, images, world=self.world, workers=workers)


@dataclass
class FrozenTrial(LabelTrial):
    """A logistic regression on the features of an encoder as it is; see ``LabelTrial``."""

    _features: dict[tuple[str, int], tuple[FeatureTable, FeatureTable]] = field(
        default_factory=dict
    )

    @property
    def rates(self) -> tuple[float, ...]:
        """None: its penalty is chosen by cross-validation."""
        return (0.0,)

    def __call__(self, start: str, rows: np.ndarray, draw: int, rate: float, /) -> Row:  # noqa: ARG002
        """See ``Trial``."""
        began = time.monotonic()
        pool, test = self._tables(start, draw)
        assert pool.labels is not None
        assert test.labels is not None
        pieces = (pool.features[rows], pool.labels[rows], test.features, test.labels)
        with threadpool_limits(1, "blas"):  # small products are faster on one thread
            score = linear(*pieces, classes=len(self.pool.classes), seed=self.config.seed)
        return {
            "accuracy": score.accuracy,
            "balanced_accuracy": score.balanced_accuracy,
            "seconds": round(time.monotonic() - began, 2),
        }

    def _tables(self, start: str, draw: int) -> tuple[FeatureTable, FeatureTable]:
        """Features of the images to draw from, and of those measured on; those of a start once."""
        key = (start, draw if start == SCRATCH else TUNING)
        if key not in self._features:
            encoder, workers = self.encoder(start, draw), pick_workers(self.config.workers)
            self._features = {k: v for k, v in self._features.items() if k[0] != start}
            pool, test = (
                extract(encoder, images, workers=workers)
                for images in (self.pool.train, self.pool.val)
            )
            self._features[key] = pool, test
        return self._features[key]
