"""Classes: one for each image, from its folder, its source or a table."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from simmim.api.labelled import labelled_parts
from simmim.api.tasks.task import Labelled, LabelledTask, Results
from simmim.config.finetune import ClassifyConfig
from simmim.config.resolved import PixelFormat
from simmim.data.loading.images import ImageSet
from simmim.evaluate.probe import always_the_largest
from simmim.models.encoder import Encoder
from simmim.report.classified import PREDICTIONS
from simmim.tasks.classifier import CLASSIFIER
from simmim.tasks.classify import ClassifyTask, accuracy_look, begin_task, build_task, check_labels
from simmim.training.loop import Look
from simmim.training.world import World


class Classify(LabelledTask[ClassifyConfig, ClassifyTask]):
    """See ``LabelledTask``."""

    def gather(self, config: ClassifyConfig, pixels: PixelFormat) -> Labelled:
        """See ``LabelledTask``."""
        train, val, classes, said = labelled_parts(config, config.val_share, pixels)
        check_labels(train, classes)
        return Labelled(train, val, classes, said)

    def begin(
        self,
        config: ClassifyConfig,
        start: Encoder | None,
        size: tuple[int, int],
        images: ImageSet,
        *,
        classes: Sequence[str],
        world: World,
    ) -> ClassifyTask:
        """See ``LabelledTask``."""
        return begin_task(config, start, size, images, classes=classes, world=world)

    def build(
        self,
        config: ClassifyConfig,
        size: tuple[int, int],
        images: ImageSet,
        *,
        classes: Sequence[str],
        world: World,
    ) -> ClassifyTask:
        """See ``LabelledTask``."""
        return build_task(config, images.pixels, size, classes, world)

    def looks(self, task: ClassifyTask, val: ImageSet, world: World) -> list[Look]:
        """See ``LabelledTask``."""
        return [accuracy_look(task.classifier, val, world)]

    def finish(
        self, config: ClassifyConfig, task: ClassifyTask, val: ImageSet, *, run: Path, world: World
    ) -> Results | None:
        """See ``LabelledTask``."""
        predictions = task.classifier.predict(val, world=world)
        if not world.leads:
            return None
        predictions.write(run / PREDICTIONS)
        score = predictions.score()
        assert predictions.labels is not None
        data = shlex.join([str(run), config.data[0]])
        return Results(
            scores=[
                f"accuracy           {score.accuracy:.1%} on {len(predictions.paths):,} images",
                f"balanced accuracy  {score.balanced_accuracy:.1%}",
                always_the_largest(predictions.labels),
            ],
            files=[("predictions", run / PREDICTIONS), ("classifier", run / CLASSIFIER)],
            next=[f"simmim embed {data} --out embeddings.parquet"],
        )
