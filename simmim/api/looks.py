"""Looks at a model while it trains: explained detail, a picture, a k-NN probe."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import load_views, none_readable
from simmim.data.loading.quarantine import Quarantine, unreadable
from simmim.errors import DataError
from simmim.evaluate.detail import HoldoutSums, masked_map, paste
from simmim.evaluate.probe import knn
from simmim.masking.samplers import Masker
from simmim.models.mim import MaskedImageModel
from simmim.report.pictures import reconstruction_grid, save_png
from simmim.targets.pixels import Pixels
from simmim.tensors.batch import Batch
from simmim.tensors.counter import Purpose
from simmim.tensors.mask import Mask
from simmim.tensors.patches import denormalise, normalise
from simmim.training.step import autocast

MOST = 64
"""Held-out images that progress is measured on."""
_SHOWN = 8
_MICRO_BATCH = 16


def to_arrays(images: Tensor, model: MaskedImageModel) -> np.ndarray:
    """Normalised (B, C, H, W) → (B, H, W, C) from 0 to 1."""
    values = denormalise(images, model.pixels).clamp(0, 1)
    return values.permute(0, 2, 3, 1).cpu().numpy()


def grid_picture(
    images: Tensor, mask: Mask, prediction: Tensor, model: MaskedImageModel, patch: int
):
    """Rows of originals, masked images, and reconstructions with the visible patches pasted in."""
    original = to_arrays(images, model)
    hidden = masked_map(mask, patch)[:, 0, :, :, None].cpu().numpy()
    shown = np.where(hidden, 0.5, original)
    return reconstruction_grid(
        original, shown, to_arrays(paste(images, prediction, mask, patch), model)
    )


class HoldoutLook:
    """Explained detail on fixed images under fixed masks, and a picture of some of them.

    Args:
        model: What trains.
        masker: Draws the masks, the same at every look.
        images: Held-out images; at most ``MOST`` are used.
        precision: Arithmetic of the forward pass.
        folder: Where ``step-N.png`` goes.
        quarantine: Is told which of the images are unreadable, and judges.

    Attributes:
        said: What could not be read, in words; empty: nothing.

    Raises:
        DataError: None of the images can be read.
        TrainingError: Too many of those that were tried so far cannot be read.
    """

    def __init__(
        self,
        model: MaskedImageModel,
        masker: Masker,
        images: ImageSet,
        precision: str,
        *,
        folder: Path,
        quarantine: Quarantine,
    ) -> None:
        self.model = model
        self.masker = masker
        self.precision = precision
        self.folder = folder
        chosen = ImageSet(images.paths.sample(MOST), images.pixels)
        views, self.said = _views(chosen, model, quarantine, "images that progress is measured on")
        self.images = torch.cat([batch.images for batch in views])

    def __call__(self, step: int) -> dict[str, float]:
        """Values for the row of ``step``."""
        model, target = self.model, self.model.target
        if not isinstance(target, Pixels):  # tokens and features have no pixels to compare
            return {}
        device = next(model.parameters()).device
        sums = HoldoutSums(model, target)
        picture = None
        for start in range(0, len(self.images), _MICRO_BATCH):
            part = self.images[start : start + _MICRO_BATCH].to(device)
            t = torch.arange(start, start + len(part), device=device)
            mask = self.masker.draw(Batch(images=part, t=t), Purpose.HOLDOUT_MASK)
            images = normalise(part, model.pixels)
            with autocast(device, self.precision):  # type: ignore[arg-type]
                prediction = sums.add(images, mask)
            if picture is None:
                first = Mask.given(mask.masked[:_SHOWN], mask.grid)
                picture = grid_picture(
                    images[:_SHOWN], first, prediction[:_SHOWN], model, target.patch
                )
        assert picture is not None
        self.folder.mkdir(exist_ok=True)  # but not the run folder, where that is gone
        save_png(picture, self.folder / f"step-{step:08d}.png")
        detail = sums.detail()
        return {
            "explained": detail.explained,
            "explained_blur": detail.explained_blur,
            "holdout_loss": detail.loss,
        }


def _views(
    images: ImageSet, model: MaskedImageModel, quarantine: Quarantine, what: str
) -> tuple[list[Batch], str]:
    """Load plain views, and say what could not be read."""
    bad: dict[str, str] = {}
    views = [batch for _, batch in load_views(images, model.encoder.image_size, bad=bad)]
    quarantine.looked_at(images.paths, bad)
    if not views:
        raise DataError(none_readable(images.paths, bad))
    return views, unreadable(bad, len(images), what) if bad else ""


def _labels_of(batch: Batch) -> list[int]:
    return [] if batch.labels is None else batch.labels.tolist()


def halves(names: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """Cut the images of each class in two such that near twins stay on one side.

    Frames of a video and shots of a burst lie in a folder of their own or have names that follow
    one another. Where the images of a class lie in several folders, whole folders go to a side,
    in the order of a hash; else quarters of the class, in the order of names.

    Returns:
        Whether each image is on the second side.
    """
    second = np.zeros(len(names), bool)
    for label in np.unique(labels):
        places = [int(i) for i in np.flatnonzero(labels == label)]
        groups: dict[str, list[int]] = {}
        for i in sorted(places, key=lambda i: names[i]):
            groups.setdefault(names[i].rpartition("/")[0], []).append(i)
        if len(groups) > 1:
            order = sorted(groups, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
            done = 0
            for group in (groups[name] for name in order):
                second[group] = 2 * done + len(group) > len(places)
                done += len(group)
        else:
            quarters = np.array_split([i for group in groups.values() for i in group], 4)
            second[np.concatenate(quarters[1::2]).astype(int)] = True
    if not second.any():  # one image of each class
        second[1::2] = True
    return second


class KnnLook:
    """k-NN accuracy of the pooled features of labelled images: half refer, half are asked.

    Args:
        model: What trains.
        images: Labelled images.
        classes: Number of classes.
        precision: Arithmetic of the forward pass.
        quarantine: See ``HoldoutLook``, also for ``said`` and what is raised.
    """

    def __init__(
        self,
        model: MaskedImageModel,
        images: ImageSet,
        classes: int,
        precision: str,
        quarantine: Quarantine,
    ) -> None:
        self.model = model
        self.classes = classes
        self.precision = precision
        views, self.said = _views(images, model, quarantine, "images of the k-NN probe")
        names = [images.paths[i] for batch in views for i in batch.t.tolist()]
        self.images = torch.cat([batch.images for batch in views])
        self.labels = np.array([label for batch in views for label in _labels_of(batch)])
        self.asked = halves(names, self.labels)

    def __call__(self, step: int) -> dict[str, float]:  # noqa: ARG002
        """Values for the row of ``step``."""
        encoder = self.model.encoder
        device = next(encoder.parameters()).device
        features = []
        for start in range(0, len(self.images), _MICRO_BATCH):
            part = normalise(
                self.images[start : start + _MICRO_BATCH].to(device), self.model.pixels
            )
            with autocast(device, self.precision):  # type: ignore[arg-type]
                features.append(encoder.features(part).patches.float().mean(1).cpu())
        values, labels, asked = torch.cat(features).numpy(), self.labels, self.asked
        score = knn(
            values[~asked], labels[~asked], values[asked], labels[asked], classes=self.classes
        )
        return {"knn": score.accuracy}
