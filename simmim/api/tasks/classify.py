"""What an image is as a whole: of one class, of several, or a number, from folders or a table."""

import shlex
from pathlib import Path
from typing import TypeVar

import numpy as np

from simmim.api.labelled import (
    check_differ,
    draw_labels,
    labelled_parts,
    numbered_parts,
    tagged_parts,
)
from simmim.api.tasks.task import Labelled, LabelledTask, Results
from simmim.config.finetune import (
    FEW,
    ClassifyConfig,
    MultiLabelConfig,
    RegressConfig,
    WholeImageConfig,
)
from simmim.config.resolved import PixelFormat
from simmim.data.loading.distort import is_plain
from simmim.data.loading.images import ImageSet, by_class, class_counts
from simmim.errors import ConfigError
from simmim.evaluate.probe import always_the_largest
from simmim.models.encoder import Encoder
from simmim.report.classified import PREDICTIONS
from simmim.tasks.classifier import CLASSIFIER, Predictions
from simmim.tasks.classify import begin_task, build_task, check_labels
from simmim.tasks.whole_image import WholeImageTask
from simmim.training.world import World

C = TypeVar("C", bound=WholeImageConfig)


class WholeImage(LabelledTask[C, WholeImageTask]):
    """See ``LabelledTask``."""

    def fit(self, config: C, size: tuple[int, int], labelled: Labelled) -> C:  # noqa: ARG002
        """See ``LabelledTask``: less is done to few images."""
        images = labelled.train
        return config.fitted(len(images), plain=is_plain(images.pixels))

    def regularisation(self, config: C) -> list[tuple[str, str, str]]:
        """See ``LabelledTask``."""
        augment, rule = config.augment, f"none below {FEW:,} images, unless asked for"
        rows = [
            ("RandAugment", f"{augment.rand_augment}", "--augment.rand-augment"),
            ("erasing", f"{augment.erasing:g}", "--augment.erasing"),
            ("mixup, cutmix", f"{augment.mixup:g}, {augment.cutmix:g}", "--augment.mixup, .cutmix"),
            ("drop path", f"{config.encoder.drop_path:g}", f"--drop-path; all of these: {rule}"),
        ]
        return rows + ([("average", f"{config.ema:g}", "--ema")] if config.ema else [])

    def check_step(self, config: C, rows: tuple[int, int]) -> None:
        """See ``LabelledTask``."""
        if config.augment.mixes and any(number % 2 for number in rows):
            raise ConfigError(
                f"mixup and cutmix mix images in pairs, and a process has {rows[0]} images of a "
                f"step, {rows[1]} at once. Give it even numbers by --batch-size and "
                "--micro-batch, or --augment.mixup 0 --augment.cutmix 0."
            )

    def begin(
        self,
        config: C,
        start: Encoder | None,
        size: tuple[int, int],
        labelled: Labelled,
        world: World,
    ) -> WholeImageTask:
        """See ``LabelledTask``."""
        images, classes = labelled.train, labelled.classes
        return begin_task(config, start, size, images, classes=classes, world=world)

    def build(
        self, config: C, size: tuple[int, int], labelled: Labelled, world: World
    ) -> WholeImageTask:
        """See ``LabelledTask``."""
        return build_task(config, labelled.train, size, labelled.classes, world)

    def measure(
        self, task: WholeImageTask, images: ImageSet, *, world: World, workers: int = 0
    ) -> dict[str, float]:
        """See ``LabelledTask``."""
        return task.classifier.predict(images, world=world, workers=workers).metrics

    def finish(
        self,
        config: C,
        task: WholeImageTask,
        labelled: Labelled,
        *,
        run: Path,
        world: World,
    ) -> Results | None:
        """See ``LabelledTask``."""
        predictions = task.classifier.predict(labelled.val, world=world)
        if not world.leads:
            return None
        predictions.write(run / PREDICTIONS)
        data = shlex.join([str(run), config.data[0]])
        return Results(
            scores=self.scores(predictions),
            files=[("predictions", run / PREDICTIONS), ("classifier", run / CLASSIFIER)],
            next=[f"simmim embed {data} --out embeddings.parquet"],
        )

    def scores(self, predictions: Predictions) -> list[str]:
        """Lines to close with, on how well images were told."""
        raise NotImplementedError


class Classify(WholeImage[ClassifyConfig]):
    """See ``LabelledTask``: one class for each image."""

    figure = ("accuracy", "accuracy")

    def gather(self, config: ClassifyConfig, pixels: PixelFormat) -> Labelled:
        """See ``LabelledTask``."""
        train, val, classes, said = labelled_parts(config, config.val_share, pixels)
        check_labels(train, classes)
        train, drawn = draw_labels(train, classes, config)
        if config.task.sampling == "balanced":
            train = by_class(train)
        return Labelled(train, val, classes, rows=said + drawn + _told(config))

    def groups(self, config: ClassifyConfig, labelled: Labelled) -> tuple[int, ...]:
        """See ``LabelledTask``."""
        return class_counts(labelled.train) if config.task.sampling == "balanced" else ()

    def present(self, labelled: Labelled) -> np.ndarray:
        """See ``LabelledTask``."""
        return np.eye(len(labelled.classes), dtype=bool)[labelled.train.labels or []]

    def draw(self, labelled: Labelled, rows: np.ndarray) -> Labelled:
        """See ``LabelledTask``."""
        drawn = super().draw(labelled, rows)
        check_labels(drawn.train, labelled.classes)
        return drawn

    def without_looking(self, labelled: Labelled) -> str:
        """See ``LabelledTask``."""
        return always_the_largest(np.array(labelled.val.labels))

    def scores(self, predictions: Predictions) -> list[str]:
        """See ``WholeImage``."""
        score = predictions.score()
        return [
            f"accuracy           {score.accuracy:.1%} on {len(predictions.paths):,} images",
            f"balanced accuracy  {score.balanced_accuracy:.1%}",
            always_the_largest(predictions.known()),
        ]


class TellTags(WholeImage[MultiLabelConfig]):
    """See ``LabelledTask``: any number of classes for each image."""

    figure = ("map", "mean AP")

    def gather(self, config: MultiLabelConfig, pixels: PixelFormat) -> Labelled:
        """See ``LabelledTask``."""
        train, val, classes, said = tagged_parts(config, pixels)
        return Labelled(train, val, classes, rows=said)

    def present(self, labelled: Labelled) -> np.ndarray:
        """See ``LabelledTask``."""
        return np.array(labelled.train.labels, bool)

    def draw(self, labelled: Labelled, rows: np.ndarray) -> Labelled:
        """See ``LabelledTask``."""
        drawn = super().draw(labelled, rows)
        check_differ(drawn.train, "are of the same classes")
        return drawn

    def without_looking(self, labelled: Labelled) -> str:
        """See ``LabelledTask``."""
        return _without_looking(np.array(labelled.val.labels))

    def scores(self, predictions: Predictions) -> list[str]:
        """See ``WholeImage``."""
        found = predictions.metrics
        return [
            f"mean AP            {found['map']:.1%} on {len(predictions.paths):,} images",
            f"F1                 {found['f1']:.1%}; the mean over classes {found['f1_macro']:.1%}",
            _without_looking(predictions.known()),
        ]


class TellNumber(WholeImage[RegressConfig]):
    """See ``LabelledTask``: a number for each image."""

    figure = ("r2", "R²")

    def gather(self, config: RegressConfig, pixels: PixelFormat) -> Labelled:
        """See ``LabelledTask``."""
        train, val, said = numbered_parts(config, pixels)
        return Labelled(train, val, [], rows=said)

    def present(self, labelled: Labelled) -> np.ndarray:
        """See ``LabelledTask``: all have a number."""
        return np.ones((len(labelled.train), 1), bool)

    def draw(self, labelled: Labelled, rows: np.ndarray) -> Labelled:
        """See ``LabelledTask``."""
        drawn = super().draw(labelled, rows)
        check_differ(drawn.train, "have the same number")
        return drawn

    def without_looking(self, labelled: Labelled) -> str:  # noqa: ARG002
        """See ``LabelledTask``."""
        return "always their mean would have an R² of 0"

    def scores(self, predictions: Predictions) -> list[str]:
        """See ``WholeImage``."""
        found, truth = predictions.metrics, predictions.known()
        off = np.abs(truth - np.median(truth)).mean()
        return [
            f"R²                 {found['r2']:.3f} on {len(predictions.paths):,} images",
            f"mean absolute error {found['mae']:.4g}",
            f"always their median would be off by {off:.4g}",
        ]


def _without_looking(labels: np.ndarray) -> str:
    """What a mean average precision is to be compared with, of labels (n, classes) of 0 and 1."""
    shares = labels.mean(0)
    return f"without looking, the mean AP would be {shares[shares > 0].mean():.1%}"


def _told(config: ClassifyConfig) -> list[tuple[str, str]]:
    """What should be known of how unequal classes are trained on."""
    rows = []
    if config.task.weights == "balanced":
        rows.append(("weights", "as if all classes had as many images (--task.weights)"))
    if config.task.sampling == "balanced":
        rows.append(("sampling", "all classes come as often (--task.sampling)"))
    return rows
