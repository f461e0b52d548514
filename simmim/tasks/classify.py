"""Fine-tuning: an encoder and a new head on labelled images, through the loop of pretraining."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simmim.config.finetune import ClassifyConfig
from simmim.config.optim import Role
from simmim.data.loading.images import ImageSet, by_class, class_counts
from simmim.errors import DataError
from simmim.evaluate.features import extract
from simmim.evaluate.probe import fit_layer
from simmim.interop.load import LoadedEncoder
from simmim.machine import pick_workers
from simmim.models.build import build_encoder, describe_encoder
from simmim.models.encoder import Encoder
from simmim.tasks.classifier import Classifier, save_classifier
from simmim.tasks.freeze import trainable
from simmim.tensors.batch import Batch
from simmim.tensors.patches import normalise
from simmim.training.loop import Look, Watcher, train
from simmim.training.parallel import whole
from simmim.training.prepare import prepare
from simmim.training.task import Task
from simmim.training.world import World

MOST_TO_START = 1024
"""Images whose features the head starts from."""
STRENGTH = 0.01
"""C of the logistic regression that the head starts from; more is as good, but too sure of itself
from 30 labels."""


class ClassifyTask(Task):
    """Tell classes apart, by cross-entropy.

    Args:
        classifier: What is trained.
        smoothing: Share of certainty spread over all classes.
        weights: How much an image of each class counts (classes,); None: all alike.
    """

    def __init__(
        self, classifier: Classifier, smoothing: float, weights: Tensor | None = None
    ) -> None:
        super().__init__(classifier)
        self.classifier = classifier
        self.smoothing = smoothing
        self.weights = weights

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy, and the share that was right, of a batch with labels."""
        assert batch.labels is not None
        logits = self.call(normalise(batch.images, self.classifier.pixels)).float()
        losses = F.cross_entropy(
            logits, batch.labels, label_smoothing=self.smoothing, reduction="none"
        )
        if self.weights is not None:
            losses = losses * self.weights[batch.labels]
        return {
            "loss": losses.mean(),
            "train_accuracy": (logits.argmax(1) == batch.labels).float().mean(),
        }

    def inputs(self, batch: Batch) -> Tensor:
        """See ``Task``."""
        return normalise(batch.images, self.classifier.pixels)

    def roles(self) -> dict[str, tuple[Role, int]]:
        """Those of the encoder, and the head beside its final norm."""
        encoder = self.classifier.encoder
        roles = {f"encoder.{name}": role for name, role in encoder.roles().items()}
        top = encoder.depth + 1
        return {**roles, "head.weight": ("weight", top), "head.bias": ("vector", top)}

    def deploy(self, run: Path, lineage: dict[str, object], world: World) -> None:
        """See ``Task``."""
        state = whole(self.classifier.timm_state(), world)
        world.write(lambda: save_classifier(run, self.classifier, lineage, state))


def build_task(
    config: ClassifyConfig,
    images: ImageSet,
    image_size: tuple[int, int],
    classes: Sequence[str],
    world: World,
) -> ClassifyTask:
    """A classifier with random weights, on the device; arguments as for ``begin_task``."""
    pixels = images.pixels
    encoder = build_encoder(config.encoder, image_size=image_size, channels=pixels.channels)
    classifier = Classifier(encoder, pixels, classes).to(world.device)
    weights = None
    if config.task.weights == "balanced":
        weights = balanced_weights(images, len(classes)).to(world.device)
    return ClassifyTask(classifier, config.task.smoothing, weights)


def balanced_weights(images: ImageSet, classes: int) -> Tensor:
    """How much an image of each class counts, so that all classes count alike: n / (k · n_c).

    The mean over the images is 1; a class without an image has 0.
    """
    counts = torch.bincount(torch.tensor(images.labels), minlength=classes)
    every = len(images) / ((counts > 0).sum() * counts)
    return torch.where(counts > 0, every, 0.0)


def begin_task(
    config: ClassifyConfig,
    start: Encoder | None,
    image_size: tuple[int, int],
    images: ImageSet,
    *,
    classes: Sequence[str],
    world: World,
) -> ClassifyTask:
    """A classifier on the device, with the head that fits its encoder as it is.

    Args:
        config: How to train; its encoder is that of ``start``.
        start: Gives the encoder its weights, and stays as it is; None: they are random.
        image_size: Height and width in pixels.
        images: Labelled images.
        classes: Names of the classes; some may have no image.
        world: The processes.
    """
    task = build_task(config, images, image_size, classes, world)
    if start is not None:
        task.encoder.load_timm_state(start.timm_state())
    start_head(task.classifier, images, pick_workers(config.system.workers, world.ranks))
    return task


def finetune_in_memory(
    config: ClassifyConfig,
    start: LoadedEncoder,
    images: ImageSet,
    *,
    classes: Sequence[str],
    world: World,
    watchers: Sequence[Watcher] = (),
) -> Classifier:
    """Fine-tune a copy of ``start``, keeping nothing; the arguments are those of ``begin_task``."""
    check_labels(images, classes)
    images = replace(images, pixels=start.pixels)
    config = replace(config, encoder=describe_encoder(start.encoder, config.encoder.drop_path))
    groups: tuple[int, ...] = ()
    if config.task.sampling == "balanced":
        images = by_class(images)
        groups = class_counts(images)

    def begin() -> ClassifyTask:
        task = begin_task(
            config, start.encoder, start.image_size, images, classes=classes, world=world
        )
        return trainable(task, config)

    training = prepare(config, begin, images, world, groups=groups)
    try:
        train(training.task, training.plan, training.stream, world, watchers=watchers)
    finally:
        training.stream.close()
    return training.task.classifier.eval()


def start_head(classifier: Classifier, train: ImageSet, workers: int) -> None:
    """Set the head to a logistic regression on the features of the untrained encoder.

    So the encoder is not first distorted towards a head that knows nothing ("LP-FT"; Kumar et al.,
    2022). Fine-tuned for 106 steps on 300 photos of ten classes, a pretrained encoder came to
    32.5 % so, to 30.1 % with a layer norm and a head of zeros, and to 25.8 % without the norm; one
    of random weights to 19.9, 14.5 and 13.4 % (one draw, standard error 2.4).
    """
    chosen = train
    if len(train.paths) > MOST_TO_START:
        assert train.labels is not None
        rows = train.paths.lowest(MOST_TO_START)
        labels = [train.labels[row] for row in rows]
        chosen = replace(train, paths=train.paths.select(rows), labels=labels)
    encoder = LoadedEncoder(classifier.encoder, classifier.pixels)
    table = extract(encoder, chosen, workers=workers)
    assert table.labels is not None
    weight, bias = fit_layer(
        table.features, table.labels, classes=len(classifier.classes), strength=STRENGTH
    )
    with torch.no_grad():
        classifier.head.weight.copy_(torch.from_numpy(weight))
        classifier.head.bias.copy_(torch.from_numpy(bias))


def check_labels(train: ImageSet, classes: Sequence[str]) -> None:
    """Raise ``DataError`` where images have no labels, or are of fewer than two classes."""
    if train.labels is None:
        raise DataError(
            f"the images in {train.paths.where} have no labels. Put them into one folder per "
            "class, or name a table by --labels."
        )
    found = len(np.unique(train.labels))
    if found < 2:
        raise DataError(
            f"{len(train.paths)} images of {found} class are given to train on; at least two "
            f"classes of {len(classes)} are needed."
        )


def accuracy_look(classifier: Classifier, val: ImageSet, world: World) -> Look:
    """Accuracy and balanced accuracy on labelled images; nothing is chosen by them."""

    def look(_: int) -> dict[str, float]:
        found = classifier.predict(val, world=world).score()
        return {"accuracy": found.accuracy, "balanced_accuracy": found.balanced_accuracy}

    return look
