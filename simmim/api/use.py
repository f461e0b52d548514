"""The commands that use a pretrained encoder."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from simmim.api.header import notes, values
from simmim.api.looks import grid_picture
from simmim.config.commands import (
    EmbedConfig,
    FinetuneConfig,
    ProbeConfig,
    ReconstructConfig,
    ReportConfig,
)
from simmim.config.encoder import EncoderConfig
from simmim.config.models import find
from simmim.config.resolved import PixelFormat
from simmim.config.run import FORMAT
from simmim.data.find import find_images
from simmim.data.labels import Labels, check_classes, labels_of, needed_labels
from simmim.data.loader import Batch, ImageSet, load_views
from simmim.data.patches import normalise
from simmim.data.sources.listing import Listing
from simmim.data.survey import Survey, survey
from simmim.errors import ConfigError, DataError
from simmim.evaluate.classifier import save_classifier
from simmim.evaluate.embed import write_embeddings
from simmim.evaluate.features import FeatureTable, extract
from simmim.evaluate.finetune import fit, prepare
from simmim.evaluate.probe import Score, knn, linear
from simmim.interop.fit import fit as fit_to
from simmim.interop.found import Found
from simmim.interop.load import LoadedEncoder, load_found, model_from
from simmim.interop.sources import describe, open_source
from simmim.masking.random import Purpose
from simmim.masking.samplers import Masker
from simmim.models.encoder import build_encoder
from simmim.report import html, terminal
from simmim.report.pictures import save_png
from simmim.targets.pixels import Pixels
from simmim.training.launch import leads
from simmim.training.loop import Watcher
from simmim.training.monitor import Metrics
from simmim.training.resources import cores
from simmim.training.run import RunFolder, environment, preparing, write_json
from simmim.training.world import join, pick_device

_SHOWN = 16
"""Most images in the picture of ``reconstruct``."""


def open_encoder(
    source: str,
    console: Console,
    data: Sequence[str],
    *,
    image_size: tuple[int, int] | None = None,
    adapt: bool = False,
) -> LoadedEncoder:
    """The encoder of a source, on this machine's device; what should be known of it is printed.

    Args:
        source: See ``simmim.interop.sources.open_source``.
        console: Where to print.
        data: All images that it is for. The depth of their values is measured.
        image_size: Another than the encoder's own.
        adapt: Change the patch projection where the images have other channels.

    Raises:
        CheckpointError: See ``open_source``.
        DataError: The images have other channels, and ``adapt`` is false.
    """
    found = open_source(source)
    rows = [] if found.own else describe(found)
    pixels, seen = scaled_for(found, find_images(*data), adapt=adapt)
    found, changes = fit_to(found, image_size or found.image_size, found.patch, pixels)
    terminal.facts(console, rows + changes + seen)
    return load_found(found).to(pick_device())


def scaled_for(
    found: Found, images: Listing, *, adapt: bool = False
) -> tuple[PixelFormat, list[tuple[str, str]]]:
    """How the values of images are scaled for an encoder, and what should be known of it.

    Args:
        found: The encoder's checkpoint.
        images: What it is for.
        adapt: Give other channels than the encoder's, where the images have them.

    Raises:
        DataError: They have, and ``adapt`` is false.
    """
    seen = survey(images, channels=None, trained=found.pixels)
    have, want = seen.pixels.channels, found.pixels.channels
    if have != want and not adapt:
        raise DataError(
            f"the images in {images.where} have {have} channels, where the encoder has {want}. "
            "`simmim finetune` and `simmim pretrain --from` adapt it to them."
        )
    return seen.pixels, _rows(seen)


def _rows(seen: Survey) -> list[tuple[str, str]]:
    return [values(seen), *(("note", note) for note in seen.notes)]


def run_probe(config: ProbeConfig) -> None:
    """Measure and print what frozen features are worth for telling classes apart."""
    console = Console()
    encoder = open_encoder(config.run, console, _all(config))
    train, test, classes, said = _labelled_parts(config, 1 - config.train_share, encoder)
    terminal.facts(console, said)
    workers = _workers(config.workers)
    learnt, asked = (
        _features(console, encoder, images, config.batch_size, workers) for images in (train, test)
    )
    assert learnt.labels is not None
    assert asked.labels is not None
    pieces = (learnt.features, learnt.labels, asked.features, asked.labels)
    if config.protocol == "knn":
        score = knn(*pieces, classes=len(classes), k=config.k)
        how = f"k-NN, k = {config.k}, cosine"
    else:
        score = linear(*pieces, classes=len(classes), seed=config.seed)
        how = "logistic regression"
    _print_score(
        console,
        how=how,
        score=score,
        labels=asked.labels,
        learnt=len(learnt.paths),
        classes=classes,
    )


def _print_score(
    console: Console,
    *,
    how: str,
    score: Score,
    labels: np.ndarray,
    learnt: int,
    classes: Sequence[str],
) -> None:
    error = math.sqrt(score.accuracy * (1 - score.accuracy) / len(labels))
    terminal.done(
        [
            f"{how} on frozen features: {learnt:,} images to learn from, {len(labels):,} asked, "
            f"{len(classes)} classes",
            f"accuracy           {score.accuracy:.1%} ± {error:.1%} (standard error)",
            f"balanced accuracy  {score.balanced_accuracy:.1%}",
            _majority(labels),
        ],
        console,
    )


def _majority(labels: np.ndarray) -> str:
    share = np.bincount(labels).max() / len(labels)
    return f"always the largest class would be right for {share:.1%}"


def run_embed(config: EmbedConfig) -> Path:
    """Write the pooled features of images to a file."""
    console = Console()
    encoder = open_encoder(config.run, console, [config.data])
    paths = find_images(config.data)
    labels = labels_of(paths)
    of = [labels.of(i) for i in range(len(paths))] if labels is not None else [None]
    images = ImageSet(paths, encoder.pixels, None if None in of else [int(i or 0) for i in of])
    table = _features(console, encoder, images, config.batch_size, _workers(config.workers))
    classes = None if labels is None or images.labels is None else labels.classes
    out = write_embeddings(table, config.out, classes=classes)
    lines = [f"{len(table.paths):,} embeddings of {table.features.shape[1]} numbers in {out}"]
    if table.skipped:
        lines.append(f"{len(table.skipped)} images could not be read, e.g. {table.skipped[0]}")
    if out.suffix == ".parquet":
        read = f"import pyarrow.parquet as pq; print(pq.read_table({str(out)!r}))"
        lines += ["next:", f'  python -c "{read}"']
    terminal.done(lines, console)
    return out


def run_reconstruct(config: ReconstructConfig) -> Path:
    """Write a picture of originals, masked images and reconstructions."""
    console = Console()
    found = open_source(config.run, whole=True)
    scaled, rows = scaled_for(found, find_images(*config.images))
    model = model_from(replace(found, pixels=scaled)).eval().to(pick_device())
    target = model.target
    if found.pretraining is None or not isinstance(target, Pixels):
        raise ConfigError(f"{config.run} predicts no pixels, so there is nothing to show.")
    terminal.facts(console, (describe(found) if found.notes or not found.own else []) + rows)
    size = model.encoder.image_size
    views = []
    for path in config.images:
        images = ImageSet(find_images(path).sample(_SHOWN), model.pixels)
        views += [batch.images for _, batch in load_views(images, size)]
    if not views:
        raise DataError("none of the images could be read.")
    pixels = torch.cat(views)[:_SHOWN].to(pick_device())
    batch = Batch(images=pixels, t=torch.arange(len(pixels), device=pixels.device))
    masker = Masker(found.pretraining.mask, model.grid, model.encoder.stride, config.seed)
    mask = masker.draw(batch, Purpose.HOLDOUT_MASK)
    images = normalise(pixels, model.pixels)
    with torch.no_grad():
        raw = model.predict(images, mask.masked)
    prediction = target.to_pixels(raw, target.pixels(images, mask))
    out = save_png(grid_picture(images, mask, prediction, model, target.patch), config.out)
    terminal.done(
        [f"{len(pixels)} images, {mask.count} of {mask.masked.shape[1]} patches masked: {out}"],
        console,
    )
    return out


def run_report(config: ReportConfig) -> Path:
    """Write a run's report anew."""
    out = html.run_report(config.run)
    terminal.done([f"report      {out}"])
    return out


def run_finetune(config: FinetuneConfig) -> Path:
    """Fine-tune a classifier, measure it on images it has not seen, and write both down."""
    console = Console()
    encoder = _start(config, console)
    train, val, classes, said = _labelled_parts(config, config.val_share, encoder)
    name, folder = f"finetune-{encoder.encoder.model}", None
    if leads():
        folder = RunFolder(config.out, name, "simmim finetune")
    with folder or nullcontext(), join() as world:
        out = world.share(Path() if folder is None else folder.path)
        prepared = prepare(
            encoder.encoder,
            encoder.pixels,
            train,
            classes,
            config,
            world=world,
            quarantine=out / "quarantine.jsonl",
        )
        plan = prepared.plan
        if world.leads:
            chosen = {"format": FORMAT, **asdict(config), "steps": plan.steps, "why": prepared.why}
            with preparing(out):
                write_json(out / "finetune.json", chosen)
                write_json(out / "environment.json", environment())
        terminal.header(
            console,
            f"simmim finetune {config.data} → {out}",
            [
                ("images", f"{len(train.paths):,} to learn from, {len(val.paths):,} to measure on"),
                ("classes", f"{len(classes)}: {', '.join(classes)}"),
                *said,
            ],
            [
                ("encoder", encoder.encoder.model, f"from {config.init_from}"),
                ("batch", f"{plan.batch_size}", prepared.why["batch_size"]),
                ("length", f"{plan.steps:,} steps", prepared.why["steps"]),
                ("rate", f"{plan.optim.peak(plan.batch_size):.2g}", f"--lr {config.lr:g} per 256"),
                ("precision", plan.precision, prepared.why["precision"]),
            ],
        )
        display = terminal.Progress(console, plan.steps, 0, plan.steps / plan.epoch)
        watchers: list[Watcher] = [display]
        if folder is not None:
            folder.started = True
            watchers.append(Metrics(out, step=0, tensorboard=False, warn=display.note))
        with display:
            classifier = fit(prepared, world, val=val, watchers=watchers)
        if not world.leads:
            return out
        lineage = {"fine_tuned_from": config.init_from, "images": len(train.paths)}
        if encoder.found is not None:
            lineage["licence"] = encoder.found.licence or "not known: that of what it started from"
        save_classifier(out, classifier, dict(lineage))
        predictions = classifier.predict(val)
        predictions.write(out / "predictions.csv")
        score = predictions.score()
        terminal.done(
            [
                f"accuracy           {score.accuracy:.1%} on {len(predictions.paths):,} images",
                f"balanced accuracy  {score.balanced_accuracy:.1%}",
                _majority(np.array(val.labels)),
                f"predictions        {out / 'predictions.csv'}",
                f"classifier         {out / 'classifier.safetensors'}",
                f"encoder            {out / 'encoder.safetensors'}",
                "next:",
                f"  simmim embed {out} {config.data} --out embeddings.parquet",
            ],
            console,
        )
    return out


def _labelled_parts(
    config: ProbeConfig | FinetuneConfig, share: float, encoder: LoadedEncoder
) -> tuple[ImageSet, ImageSet, list[str], list[tuple[str, str]]]:
    """Return images to learn from, those to measure on, the classes, and what should be known.

    Args:
        config: Names the images and their labels.
        share: Of the images, to measure on where no others are named for that.
        encoder: What they are read for.
    """
    images, labels = _labelled(config.data, config.labels, encoder)
    said, classes = notes(images.paths, labels=labels), labels.classes
    if config.val is not None:
        others, labels = _labelled(config.val, config.labels, encoder, classes)
        said += [(name, f"--val: {text}") for name, text in notes(others.paths, labels=labels)]
        return images, others, classes, said
    counts = np.bincount(images.labels or [], minlength=len(classes))
    single = [name for name, count in zip(classes, counts, strict=True) if count == 1]
    first, second = split(images, share, config.seed)
    if single:
        text = f"{len(single)} of {len(classes)} classes have 1 image, which is learned from and "
        said.append(("note", f"{text}not measured on, such as {single[0]}"))
    return first, second, classes, said


def split(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split a labelled set; ``share`` of each class goes to the second part.

    Of a class of several images at least one goes to each part, and a single image to the first.

    Raises:
        DataError: Nothing would be in the second part.
    """
    assert images.labels is not None
    labels = np.array(images.labels)
    rng = np.random.default_rng(seed)
    second: set[int] = set()
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            count = min(max(1, round(share * len(rows))), len(rows) - 1)
            second |= set(rows[:count].tolist())
    parts = [row for row in range(len(labels)) if row not in second], sorted(second)
    if not second:
        raise DataError(
            f"1 image per class ({len(labels)} classes), so that none is left to measure on: name "
            "other images by --val, or give the classes more images."
        )
    first, last = (
        replace(images, paths=images.paths.select(rows), labels=labels[rows].tolist())
        for rows in parts
    )
    return first, last


def _start(config: FinetuneConfig, console: Console) -> LoadedEncoder:
    if config.init_from != "none":
        size = config.image_size
        return open_encoder(config.init_from, console, _all(config), image_size=size, adapt=True)
    name = config.model or EncoderConfig().model
    known = find(name)
    side = known.size if known else 224
    seen = survey(find_images(*_all(config)), channels=None)
    terminal.facts(console, _rows(seen))
    torch.manual_seed(config.seed)
    encoder = build_encoder(
        EncoderConfig(model=name),
        image_size=config.image_size or (side, side),
        channels=seen.pixels.channels,
    )
    return LoadedEncoder(encoder, seen.pixels)


def _all(config: ProbeConfig | FinetuneConfig) -> list[str]:
    """What is learnt from and what is measured on."""
    return [config.data, *([] if config.val is None else [config.val])]


def _labelled(
    data: str, table: Path | None, encoder: LoadedEncoder, classes: Sequence[str] | None = None
) -> tuple[ImageSet, Labels]:
    """Find images with labels.

    Args:
        data: Where they are.
        table: What tells their labels; None: their source or their folders.
        encoder: What they are read for.
        classes: Those that there may be; None: any two or more.
    """
    paths = find_images(data)
    labels = needed_labels(paths, table)
    if classes is None:
        check_classes(labels)
    names = list(classes) if classes is not None else labels.classes
    unknown = [name for name in labels.classes if name not in names]
    if unknown:
        raise DataError(f"{data} has classes that the training images lack: {', '.join(unknown)}.")
    place = {index: names.index(name) for index, name in enumerate(labels.classes)}
    rows, found = zip(*labels.pairs(), strict=True)
    chosen = ImageSet(paths.select(rows), encoder.pixels, [place[label] for label in found])
    return chosen, labels


def _features(
    console: Console, encoder: LoadedEncoder, images: ImageSet, batch: int, workers: int
) -> FeatureTable:
    stage = terminal.Stage(console)

    def update(done: int, of: int) -> None:
        stage.update(done / of, f"features of {of:,} images")

    try:
        return extract(encoder, images, batch=batch, workers=workers, progress=update)
    finally:
        stage.close()


def _workers(workers: int | None) -> int:
    return max(1, cores() // 2) if workers is None else workers
