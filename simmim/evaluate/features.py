"""One vector per image: what an encoder makes of a set of images."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import NoneReadableError, none_readable
from simmim.evaluate.share import Share
from simmim.interop.load import LoadedEncoder
from simmim.tensors.patches import normalise
from simmim.training.step import looking
from simmim.training.world import ALONE, World

Progress = Callable[[int, int], None]
"""Told after each batch how many images are done, and of how many."""


@dataclass(frozen=True)
class FeatureTable:
    """Features of images, one row each.

    Attributes:
        paths: Relative paths of the images that could be read, in the order of the image set.
        features: (n, D) float32.
        labels: (n,) int64 class indices, or what else the image set has, or None.
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
    world: World = ALONE,
) -> FeatureTable:
    """The mean of the patch tokens after the final norm, of the plain view of each image.

    Args:
        encoder: On any device; its weights and its mode stay as they are.
        images: Read as the encoder's pixel format says, whatever their own.
        batch: Images per forward pass.
        workers: Background processes; 0 decodes in this one.
        progress: Told of each batch.
        world: The processes, each of which reads a share of the images.

    Raises:
        DataError: None of the images could be read.
    """
    own, size = replace(images, pixels=encoder.pixels), encoder.image_size
    return run_over(
        encoder, own, size, batch=batch, workers=workers, progress=progress, world=world
    )


def run_over(
    module: nn.Module,
    images: ImageSet,
    size: tuple[int, int],
    *,
    batch: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
    world: World = ALONE,
) -> FeatureTable:
    """What ``module`` returns for normalised images (B, C, H, W), a row each; see ``extract``.

    Args:
        module: Called on a share of the images in each process.
        images: All of them, in each process.
        size: Height and width of a view in pixels.
        batch: See ``extract``.
        workers: See there.
        progress: See there.
        world: The processes.
    """
    device = next(module.parameters()).device
    share = Share(images, size, world, batch, workers)
    rows: dict[int, np.ndarray] = {}
    with looking(module):
        for views, real in share:
            inputs = normalise(views.images.to(device, non_blocking=True), images.pixels)
            values = module(inputs).float().cpu().numpy()
            if real:
                rows |= zip(views.t.tolist(), values, strict=True)
                if progress is not None:
                    progress(int(views.t[-1]) + 1, len(images))
    rows = share.gather(rows)
    if not rows:
        raise NoneReadableError(none_readable(images.paths, share.bad), share.bad)
    return FeatureTable(
        paths=[images.paths[place] for place in rows],
        features=np.stack(list(rows.values())),
        labels=None if images.labels is None else np.array(images.labels)[list(rows)],
        skipped=share.bad,
    )
