"""Classes: one for each image, from its folder, its source or a table."""

import shlex
from pathlib import Path

from simmim.api.labelled import draw_labels, labelled_parts
from simmim.api.tasks.task import Labelled, LabelledTask, Results
from simmim.config.finetune import ClassifyConfig
from simmim.config.resolved import PixelFormat
from simmim.data.loading.images import by_class, class_counts
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
        train, drawn = draw_labels(train, classes, config)
        if config.task.sampling == "balanced":
            train = by_class(train)
        return Labelled(train, val, classes, rows=said + drawn + _told(config))

    def groups(self, config: ClassifyConfig, labelled: Labelled) -> tuple[int, ...]:
        """See ``LabelledTask``."""
        return class_counts(labelled.train) if config.task.sampling == "balanced" else ()

    def begin(
        self,
        config: ClassifyConfig,
        start: Encoder | None,
        size: tuple[int, int],
        labelled: Labelled,
        world: World,
    ) -> ClassifyTask:
        """See ``LabelledTask``."""
        images, classes = labelled.train, labelled.classes
        return begin_task(config, start, size, images, classes=classes, world=world)

    def build(
        self, config: ClassifyConfig, size: tuple[int, int], labelled: Labelled, world: World
    ) -> ClassifyTask:
        """See ``LabelledTask``."""
        return build_task(config, labelled.train, size, labelled.classes, world)

    def looks(self, task: ClassifyTask, labelled: Labelled, world: World) -> list[Look]:
        """See ``LabelledTask``."""
        return [accuracy_look(task.classifier, labelled.val, world)]

    def finish(
        self,
        config: ClassifyConfig,
        task: ClassifyTask,
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


def _told(config: ClassifyConfig) -> list[tuple[str, str]]:
    """What should be known of how unequal classes are trained on."""
    rows = []
    if config.task.weights == "balanced":
        rows.append(("weights", "as if all classes had as many images (--task.weights)"))
    if config.task.sampling == "balanced":
        rows.append(("sampling", "all classes come as often (--task.sampling)"))
    return rows
