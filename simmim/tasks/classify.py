"""Fine-tuning: an encoder and a new head on labelled images, through the loop of pretraining."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simmim.config.commands import FinetuneConfig
from simmim.config.encoder import EncoderConfig
from simmim.config.optim import OptimConfig, Role
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import TrainStream, readable
from simmim.data.loading.quarantine import Quarantine, unreadable
from simmim.errors import DataError
from simmim.evaluate.features import extract
from simmim.evaluate.probe import fit_layer
from simmim.interop.load import LoadedEncoder
from simmim.machine import pick_workers
from simmim.models.build import build_encoder
from simmim.models.encoder import Encoder
from simmim.tasks.classifier import Classifier
from simmim.tensors.batch import Batch
from simmim.tensors.patches import normalise
from simmim.training import resolve
from simmim.training.loop import Look, Plan, Watcher, train
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
    """

    def __init__(self, classifier: Classifier, smoothing: float) -> None:
        super().__init__(classifier)
        self.classifier = classifier
        self.smoothing = smoothing

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy, and the share that was right, of a batch with labels."""
        assert batch.labels is not None
        logits = self.call(normalise(batch.images, self.classifier.pixels)).float()
        return {
            "loss": F.cross_entropy(logits, batch.labels, label_smoothing=self.smoothing),
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


@dataclass
class Prepared:
    """A fine-tuning that is ready to start.

    Attributes:
        task: With the classifier on the device.
        plan: The loop's numbers.
        stream: Training images in the run's order.
        micro_batch: Images per forward pass and process.
        why: The rule behind each choice, in words.
    """

    task: ClassifyTask
    plan: Plan
    stream: TrainStream
    micro_batch: int
    why: dict[str, str]


def finetune_encoder(
    encoder: Encoder,
    pixels: PixelFormat,
    train: ImageSet,
    classes: Sequence[str],
    settings: FinetuneConfig,
    *,
    world: World,
    val: ImageSet | None = None,
    watchers: Sequence[Watcher] = (),
    quarantine: Path | None = None,
) -> Classifier:
    """Fine-tune a copy of ``encoder``; the arguments are those of ``prepare`` and ``fit``."""
    prepared = prepare(
        encoder, pixels, train, classes, settings, world=world, quarantine=quarantine
    )
    return fit(prepared, world, val=val, watchers=watchers)


def prepare(
    encoder: Encoder,
    pixels: PixelFormat,
    train: ImageSet,
    classes: Sequence[str],
    settings: FinetuneConfig,
    *,
    world: World,
    quarantine: Path | None = None,
) -> Prepared:
    """Build the classifier and choose what was left open.

    Args:
        encoder: Pretrained or not; it is copied, and stays as it is.
        pixels: How images are normalised for it.
        train: Labelled images.
        classes: Names of the classes; some may have no image.
        settings: How to train; what says where things are is not looked at.
        world: The processes.
        quarantine: Where unreadable images are written down.

    Raises:
        DataError: No labels, or fewer than two classes.
        ConfigError: Sizes that do not fit each other, a batch that cannot be shared.
        ResourceError: Too little memory.
    """
    _check(train, classes)
    run = _as_run(settings, len(train.paths))
    why: dict[str, str] = {}
    threads, why["threads"] = resolve.pick_threads(run)
    torch.set_num_threads(threads)
    torch.manual_seed(settings.seed)
    size = settings.image_size or encoder.image_size
    copy = copy_encoder(encoder, size, settings.drop_path)
    train = replace(train, pixels=pixels)
    classifier = Classifier(copy, pixels, classes).to(world.device)
    workers = pick_workers(settings.workers, world.ranks)
    start_head(classifier, train, workers)
    task = ClassifyTask(classifier, settings.smoothing)

    images = torch.zeros(2, pixels.channels, *size)
    sample = Batch(images, torch.arange(2), torch.zeros(2, dtype=torch.int64))
    count, width = len(train.paths), encoder.width
    fit = resolve.pick_fit(task, run, sample, images=count, width=width, world=world, why=why)

    stream = TrainStream(
        train,
        augment=settings.augment,
        size=size,
        seed=settings.seed,
        batch_size=fit.batch_size,
        micro_batch=fit.micro_batch,
        workers=workers,
        rank=world.rank,
        ranks=world.ranks,
        quarantine=Quarantine(quarantine, settings.max_bad, len(train.paths)),
    )

    def measure() -> float:
        return resolve.rehearse(task, run, stream, world, fit)

    length = resolve.pick_length(run, count, fit.batch_size, world.device, measure)
    why["steps"] = length.why
    plan = Plan(
        steps=length.steps,
        batch_size=fit.batch_size,
        epoch=count / fit.batch_size,
        optim=run.optim,
        precision=fit.precision,
        seed=settings.seed,
    )
    return Prepared(task, plan, stream, fit.micro_batch, why)


def measurable(
    val: ImageSet, prepared: Prepared, settings: FinetuneConfig, workers: int
) -> tuple[ImageSet, str]:
    """Read all images that are to be measured on once, before anything is trained.

    Unreadable ones go into the quarantine. Those of DATA are judged together with the training
    images, others for themselves.

    Returns:
        The images that can be read, and words about the others; empty: there are none.

    Raises:
        DataError: None of them can be read.
        TrainingError: More of them cannot be read than is allowed.
    """
    bad: dict[str, str] = {}
    classifier, quarantine = prepared.task.classifier, prepared.stream.quarantine
    assert quarantine is not None
    own = replace(val, pixels=classifier.pixels)
    kept = readable(own, classifier.encoder.image_size, bad=bad, workers=workers)
    if settings.val is not None:
        bad = {f"{val.paths.where}: {path}": reason for path, reason in bad.items()}
        quarantine = Quarantine(quarantine.file, settings.max_bad, 0)
    quarantine.looked_at(len(val), bad)
    return kept, unreadable(bad, len(val), "images to measure on") if bad else ""


def fit(
    prepared: Prepared,
    world: World,
    *,
    val: ImageSet | None = None,
    watchers: Sequence[Watcher] = (),
) -> Classifier:
    """Train to the end; see ``simmim.training.loop.train``.

    Args:
        prepared: What to train.
        world: The processes.
        val: Labelled images; ``accuracy`` and ``balanced_accuracy`` on them are measured ten times
            on the way. Nothing is chosen by them.
        watchers: Told of each row.

    Returns:
        The classifier, in evaluation mode.
    """
    classifier = prepared.task.classifier
    looks = [] if val is None else [_look(classifier, val)]
    try:
        train(
            prepared.task,
            prepared.plan,
            prepared.stream,
            world,
            watchers=watchers if world.leads else (),
            looks=looks,
        )
    finally:
        prepared.stream.close()
    return classifier.eval()


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


def copy_encoder(encoder: Encoder, image_size: tuple[int, int], drop_path: float) -> Encoder:
    """Build the same encoder for another image size, with stochastic depth.

    Positions are interpolated to the new grid. Positions that were fixed are trained.

    Raises:
        ConfigError: The patch side does not divide the image.
        CheckpointError: The weights do not fit the size, as for Swin where the window changes.
    """
    derived = ("img_size", "patch_size")
    arguments = {name: v for name, v in encoder.arguments.items() if name not in derived}
    config = EncoderConfig(
        model=encoder.model,
        patch_size=encoder.patch,
        init="timm",
        drop_path=drop_path,
        arguments=arguments,
    )
    copy = build_encoder(config, image_size=image_size, channels=encoder.channels)
    state = encoder.timm_state()
    if copy.grid != encoder.grid and not encoder.whole:
        state = {n: _fit_positions(n, value, encoder.grid, copy.grid) for n, value in state.items()}
    copy.load_timm_state(state)
    return copy


def _fit_positions(name: str, value: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    if name.endswith("pos_embed"):
        before = value.shape[1] - old[0] * old[1]  # the prefix tokens' positions come first
        patches = _resize(value[0, before:], old, new)
        return torch.cat([value[:, :before], patches[None]], dim=1)
    if name.endswith("relative_position_bias_table"):
        between_old, between_new = ((2 * h - 1, 2 * w - 1) for h, w in (old, new))
        count = between_old[0] * between_old[1]  # those with the class token come last
        return torch.cat([_resize(value[:count], between_old, between_new), value[count:]])
    return value


def _resize(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """(h·w, D) on the grid ``old`` → on the grid ``new``, bicubic."""
    grid = table.detach().float().T.reshape(1, -1, *old)
    return F.interpolate(grid, size=new, mode="bicubic", antialias=True)[0].flatten(1).T


def _as_run(settings: FinetuneConfig, images: int) -> PretrainConfig:
    """What fine-tuning shares with pretraining, so that the same rules choose the rest."""
    epochs = settings.epochs
    if epochs is None and settings.budget is None:
        epochs = 50.0 if images >= 100_000 else 100.0
    return PretrainConfig(
        optim=OptimConfig(
            lr=settings.lr,
            betas=(0.9, 0.999),
            weight_decay=settings.weight_decay,
            warmup_epochs=math.inf,  # the share decides
            warmup_share=settings.warmup_share,
            clip=settings.clip,
            layer_decay=settings.layer_decay,
        ),
        epochs=epochs,
        budget=settings.budget,
        batch_size=settings.batch_size,
        micro_batch=settings.micro_batch,
        precision=settings.precision,
        threads=settings.threads,
        seed=settings.seed,
    )


def _look(classifier: Classifier, val: ImageSet) -> Look:
    def look(_: int) -> dict[str, float]:
        found = classifier.predict(val).score()
        return {"accuracy": found.accuracy, "balanced_accuracy": found.balanced_accuracy}

    return look


def _check(train: ImageSet, classes: Sequence[str]) -> None:
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
