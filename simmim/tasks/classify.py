"""Fine-tuning: an encoder and a new head on labelled images, through the loop of pretraining."""

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from simmim.config.finetune import ClassifyConfig, WholeImageConfig
from simmim.config.task import Classification, MultiLabel, Regression
from simmim.data.loading.distort import is_plain
from simmim.data.loading.images import ImageSet, by_class, class_counts
from simmim.errors import DataError
from simmim.evaluate.features import extract
from simmim.interop.load import LoadedEncoder
from simmim.machine import pick_workers
from simmim.models.build import build_encoder
from simmim.models.encoder import Encoder
from simmim.tasks.classifier import Classifier
from simmim.tasks.in_memory import train_in_memory
from simmim.tasks.mixture import Mixture
from simmim.tasks.regressor import Regressor
from simmim.tasks.tagger import Tagger
from simmim.tasks.whole_image import ClassifyTask, RegressTask, TagTask, WholeImageTask
from simmim.training.readings import Watcher
from simmim.training.world import World

MOST_TO_START = 1024
"""Images whose features the head starts from."""


def build_task(
    config: WholeImageConfig,
    images: ImageSet,
    image_size: tuple[int, int],
    classes: Sequence[str],
    world: World,
) -> WholeImageTask:
    """What is trained, with random weights, on the device; arguments as for ``begin_task``."""
    pixels = images.pixels
    encoder = build_encoder(config.encoder, image_size=image_size, channels=pixels.channels)
    assert images.labels is not None
    changed = config.augment.mixes or config.augment.erasing
    mixture = Mixture(config.augment, config.seed) if changed else None
    match config.task:
        case Classification() as task:
            classifier = Classifier(encoder, pixels, classes).to(world.device)
            weights = None
            if task.weights == "balanced":
                weights = balanced_weights(images, len(classes)).to(world.device)
            return ClassifyTask(classifier, task.smoothing, weights, mixture, config.ema)
        case MultiLabel() as task:
            tagger = Tagger(encoder, pixels, classes).to(world.device)
            weights = None
            if task.weights == "balanced":
                weights = rarity(images).to(world.device)
            return TagTask(tagger, weights, mixture, config.ema)
        case Regression():
            regressor = Regressor.of(encoder, pixels, images.labels).to(world.device)
            return RegressTask(regressor, mixture, config.ema)
        case _:
            assert_never(config.task)


def balanced_weights(images: ImageSet, classes: int) -> Tensor:
    """How much an image of each class counts, so that all classes count alike: n / (k · n_c).

    The mean over the images is 1; a class without an image has 0.
    """
    counts = torch.bincount(torch.tensor(images.labels), minlength=classes)
    every = len(images) / ((counts > 0).sum() * counts)
    return torch.where(counts > 0, every, 0.0)


def rarity(images: ImageSet) -> Tensor:
    """How many images are not of each class, for one that is; 1 for a class without an image."""
    counts = torch.tensor(images.labels).sum(0)
    return torch.where(counts > 0, (len(images) - counts) / counts.clamp(min=1), 1.0)


def begin_task(
    config: WholeImageConfig,
    start: Encoder | None,
    image_size: tuple[int, int],
    images: ImageSet,
    *,
    classes: Sequence[str],
    world: World,
) -> WholeImageTask:
    """What is trained, on the device, with the head that fits its encoder as it is.

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
    start_head(task.trained, images, pick_workers(config.system.workers, world.ranks))
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
    config = config.fitted(len(images), plain=is_plain(images.pixels))
    groups: tuple[int, ...] = ()
    if config.task.sampling == "balanced":
        images = by_class(images)
        groups = class_counts(images)

    def begin(config: ClassifyConfig) -> WholeImageTask:
        size = start.image_size
        return begin_task(config, start.encoder, size, images, classes=classes, world=world)

    task = train_in_memory(
        config, begin, start, images, world=world, groups=groups, watchers=watchers
    )
    return task.classifier.eval()


def start_head(classifier: Classifier, train: ImageSet, workers: int) -> None:
    """Set the head to a logistic regression on the features of the untrained encoder.

    So the encoder is not first distorted towards a head that knows nothing ("LP-FT"; Kumar et al.,
    2022). Fine-tuned for 106 steps on 300 photos of ten classes, a pretrained encoder came to
    32.5 % so, to 30.1 % with a layer norm and a head of zeros, and to 25.8 % without the norm; one
    of random weights to 19.9, 14.5 and 13.4 % (one draw, standard error 2.4).
    """
    chosen = train
    if len(train.paths) > MOST_TO_START:
        chosen = train.select(train.paths.lowest(MOST_TO_START))
    encoder = LoadedEncoder(classifier.encoder, classifier.pixels)
    table = extract(encoder, chosen, workers=workers)
    assert table.labels is not None
    weight, bias = classifier.fit(table.features, table.labels)
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
