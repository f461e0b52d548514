"""The commands that use a pretrained encoder."""

import json
import math
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from simmim.api.header import notes, values
from simmim.api.labelled import labelled_parts
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
from simmim.data.audit.survey import Survey, survey
from simmim.data.labels import labels_of
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import load_views
from simmim.data.loading.quarantine import reasons, unreadable
from simmim.data.sources.find import find_images
from simmim.data.sources.listing import Listing
from simmim.errors import ConfigError, DataError
from simmim.evaluate.embed import write_embeddings
from simmim.evaluate.features import FeatureTable, extract
from simmim.evaluate.probe import Score, knn, linear
from simmim.interop.checkpoint import Found
from simmim.interop.load import LoadedEncoder, load_found, model_from
from simmim.interop.open import describe, open_source
from simmim.interop.resize import fit as fit_to
from simmim.machine import pick_workers
from simmim.masking.samplers import Masker
from simmim.models.build import build_encoder
from simmim.report import html, terminal
from simmim.report.pictures import save_png
from simmim.report.words import count
from simmim.runs.folder import RunFolder, environment, preparing, write_json
from simmim.runs.metrics import Metrics
from simmim.targets.pixels import Pixels
from simmim.tasks.classifier import save_classifier
from simmim.tasks.classify import fit, measurable, prepare
from simmim.tensors.batch import Batch
from simmim.tensors.counter import Purpose
from simmim.tensors.patches import normalise
from simmim.training.launch import leads
from simmim.training.loop import Watcher
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
        source: See ``simmim.interop.open.open_source``.
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
    train, test, classes, said = labelled_parts(config, 1 - config.train_share, encoder)
    terminal.facts(console, said)
    workers = pick_workers(config.workers)
    learnt, asked = (
        _features(console, encoder, images, config.batch_size, workers) for images in (train, test)
    )
    for table, what in ((learnt, "images to learn from"), (asked, "images asked about")):
        if table.skipped:
            tried = len(table.paths) + len(table.skipped)
            terminal.line(console, unreadable(table.skipped, tried, what))
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
    terminal.facts(console, notes(paths, labels=labels))
    images, classes = ImageSet(paths, encoder.pixels), None
    if labels is not None:
        of = [labels.of(row) for row in range(len(paths))]
        images = replace(images, labels=[-1 if label is None else label for label in of])
        classes = labels.classes
    table = _features(console, encoder, images, config.batch_size, pick_workers(config.workers))
    out = write_embeddings(table, config.out, classes=classes)
    lines = [f"{len(table.paths):,} embeddings of {table.features.shape[1]} numbers in {out}"]
    if table.skipped:
        lines.append(f"no row: {unreadable(table.skipped, len(paths))}")
    if table.labels is not None and min(table.labels) < 0:
        lines.append(f"no label: {(table.labels < 0).sum():,} of {len(table.paths):,}")
    if out.suffix == ".parquet":
        # Names in JSON are names in Python.
        read = f"import pyarrow.parquet as pq; print(pq.read_table({json.dumps(str(out))}))"
        lines += ["next:", f"  python -c {shlex.quote(read)}"]
    terminal.done(lines, console)
    return out


def run_reconstruct(config: ReconstructConfig) -> Path:
    """Write a picture of originals, masked images and reconstructions."""
    console = Console()
    found = open_source(config.run, whole=True)
    paths = find_images(*config.images)
    scaled, rows = scaled_for(found, paths)
    model = model_from(replace(found, pixels=scaled)).eval().to(pick_device())
    target = model.target
    if found.pretraining is None or not isinstance(target, Pixels):
        raise ConfigError(f"{config.run} predicts no pixels, so there is nothing to show.")
    said = describe(found) if found.notes or not found.own else []
    terminal.facts(console, said + rows + notes(paths))
    size = model.encoder.image_size
    views, bad, tried = [], {}, 0
    for path in config.images:
        images = ImageSet(find_images(path).sample(_SHOWN), model.pixels)
        tried += len(images)
        views += [batch.images for _, batch in load_views(images, size, bad=bad)]
    if not views:
        raise DataError(f"none of the {tried:,} images could be read: {reasons(bad)}.")
    pixels = torch.cat(views)[:_SHOWN].to(pick_device())
    batch = Batch(images=pixels, t=torch.arange(len(pixels), device=pixels.device))
    masker = Masker(found.pretraining.mask, model.grid, model.encoder.stride, config.seed)
    mask = masker.draw(batch, Purpose.HOLDOUT_MASK)
    images = normalise(pixels, model.pixels)
    with torch.no_grad():
        raw = model.predict(images, mask.masked)
    prediction = target.to_pixels(raw, target.pixels(images, mask))
    out = save_png(grid_picture(images, mask, prediction, model, target.patch), config.out)
    shown = f"{len(pixels)} of {count(len(paths), 'image')}"
    lines = [f"{shown}, {mask.count} of {mask.masked.shape[1]} patches masked: {out}"]
    terminal.done(lines + ([unreadable(bad, tried)] if bad else []), console)
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
    train, val, classes, said = labelled_parts(config, config.val_share, encoder)
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
        val, unread = measurable(val, prepared, config, pick_workers(config.workers))
        if world.leads:
            chosen = {"format": FORMAT, **asdict(config), "steps": plan.steps, "why": prepared.why}
            with preparing(out):
                write_json(out / "finetune.json", chosen)
                write_json(out / "environment.json", environment())
        terminal.header(
            console,
            f"simmim finetune {shlex.quote(config.data)} → {out}",
            [
                ("images", f"{len(train.paths):,} to learn from, {len(val.paths):,} to measure on"),
                ("classes", f"{len(classes)}: {', '.join(classes)}"),
                *said,
                *([("unreadable", unread)] if unread else []),
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
        bad = prepared.stream.bad
        listed = f"unreadable         {count(bad, 'image')}, all in {out / 'quarantine.jsonl'}"
        terminal.done(
            [
                f"accuracy           {score.accuracy:.1%} on {len(predictions.paths):,} images",
                f"balanced accuracy  {score.balanced_accuracy:.1%}",
                _majority(np.array(val.labels)),
                *([listed] if bad else []),
                f"predictions        {out / 'predictions.csv'}",
                f"classifier         {out / 'classifier.safetensors'}",
                f"encoder            {out / 'encoder.safetensors'}",
                "next:",
                f"  simmim embed {shlex.join([str(out), config.data])} --out embeddings.parquet",
            ],
            console,
        )
    return out


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
