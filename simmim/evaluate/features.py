"""One vector per image: what an encoder makes of a set of images."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import load_views, none_readable
from simmim.errors import DataError
from simmim.interop.load import LoadedEncoder
from simmim.tensors.patches import normalise
from simmim.training.step import looking

Progress = Callable[[int, int], None]
"""Told after each batch how many images are done, and of how many."""


@dataclass(frozen=True)
class FeatureTable:
    """Features of images, one row each.

    Attributes:
        paths: Relative paths of the images that could be read, in the order of the image set.
        features: (n, D) float32.
        labels: (n,) int64 class indices, or None where the image set has none.
        skipped: Relative paths of the images that could not be read, which have no row, each with
            its reason.
    """

    paths: list[str]
    features: np.ndarray
    labels: np.ndarray | None = None
    skipped: dict[str, str] = field(default_factory=dict)


def extract(
    encoder: LoadedEncoder,
    images: ImageSet,
    *,
    batch: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
) -> FeatureTable:
    """The mean of the patch tokens after the final norm, of the plain view of each image.

    Args:
        encoder: On any device; its weights and its mode stay as they are.
        images: Read as the encoder's pixel format says, whatever their own.
        batch: Images per forward pass.
        workers: Background processes; 0 decodes in this one.
        progress: Told of each batch.

    Raises:
        DataError: None of the images could be read.
    """
    own = replace(images, pixels=encoder.pixels)
    return run_over(
        encoder, own, encoder.image_size, batch=batch, workers=workers, progress=progress
    )


def run_over(
    module: nn.Module,
    images: ImageSet,
    size: tuple[int, int],
    *,
    batch: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
) -> FeatureTable:
    """What ``module`` returns for normalised images (B, C, H, W), a row each; see ``extract``."""
    device = next(module.parameters()).device
    total = len(images.paths)
    kept: list[int] = []
    rows: list[Tensor] = []
    bad: dict[str, str] = {}
    with looking(module):
        for indices, views in load_views(images, size, bad=bad, batch=batch, workers=workers):
            inputs = normalise(views.to(device).images, images.pixels)
            rows.append(module(inputs).float().cpu())
            kept += indices
            if progress is not None:
                progress(indices[-1] + 1, total)
    if not kept:
        raise DataError(none_readable(images.paths, bad))
    return FeatureTable(
        paths=[images.paths[index] for index in kept],
        features=torch.cat(rows).numpy(),
        labels=None if images.labels is None else np.array(images.labels, np.int64)[kept],
        skipped=bad,
    )
