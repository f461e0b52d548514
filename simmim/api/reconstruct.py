"""`simmim reconstruct`: images, what was masked in them, and what the model filled in."""

from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from simmim.api.encoders import depth
from simmim.api.looks import grid_picture
from simmim.api.remarks import notes
from simmim.config.commands import ReconstructConfig
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import load_views
from simmim.data.loading.quarantine import reasons, unreadable
from simmim.data.sources.find import find_images
from simmim.errors import ConfigError, DataError
from simmim.interop.load import model_from, scaled_for
from simmim.interop.open import describe, open_source
from simmim.report import terminal
from simmim.report.pictures import save_png
from simmim.report.words import count
from simmim.targets.pixels import Pixels
from simmim.tensors.batch import Batch
from simmim.tensors.counter import Purpose
from simmim.tensors.patches import normalise
from simmim.training.world import pick_device

_SHOWN = 16
"""Most images in the picture."""


def run_reconstruct(config: ReconstructConfig) -> Path:
    """Write a picture of originals, masked images and reconstructions."""
    console = Console()
    found = open_source(config.run, whole=True)
    paths = find_images(*config.images)
    seen = scaled_for(found.pixels, paths)
    model = model_from(replace(found, pixels=seen.pixels), config.seed).eval().to(pick_device())
    pixels = model.target.within(Pixels)
    if pixels is None:
        raise ConfigError(f"{config.run} predicts no pixels, so there is nothing to show.")
    said = describe(found) if found.notes or not found.own else []
    terminal.facts(console, said + depth(seen) + notes(paths))
    size = model.encoder.image_size
    views, bad, tried = [], {}, 0
    for path in config.images:
        images = ImageSet(find_images(path).sample(_SHOWN), model.pixels)
        tried += len(images)
        views += [batch.images for _, batch in load_views(images, size, bad=bad)]
    if not views:
        raise DataError(f"none of the {tried:,} images could be read: {reasons(bad)}.")
    values = torch.cat(views)[:_SHOWN].to(pick_device())
    batch = Batch(images=values, t=torch.arange(len(values), device=values.device))
    mask = model.draw(batch, Purpose.HOLDOUT_MASK)
    images = normalise(values, model.pixels)
    with torch.no_grad():
        raw = model.predict(images, mask.masked)
    target, columns = pixels
    prediction = target.to_pixels(raw[..., columns], target.pixels(images, mask))
    out = save_png(grid_picture(images, mask, prediction, model, target.patch), config.out)
    shown = f"{len(values)} of {count(len(paths), 'image')}"
    lines = [f"{shown}, {mask.count} of {mask.masked.shape[1]} patches masked: {out}"]
    terminal.done(lines + ([unreadable(bad, tried)] if bad else []), console)
    return out
