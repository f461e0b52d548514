"""Looks at a model while it trains: explained detail, a picture, a k-NN probe."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import none_readable
from simmim.data.loading.quarantine import Quarantine, unreadable
from simmim.errors import DataError
from simmim.evaluate.detail import HoldoutSums, masked_map, paste
from simmim.evaluate.probe import knn
from simmim.evaluate.share import Share
from simmim.evaluate.spread import blank_patches, deviation, effective_rank
from simmim.models.mim import MaskedImageModel
from simmim.report.pictures import reconstruction_grid, save_png
from simmim.targets.pixels import Pixels
from simmim.tensors.batch import Batch
from simmim.tensors.counter import Purpose
from simmim.tensors.mask import Mask
from simmim.tensors.patches import denormalise, normalise, patchify
from simmim.training.step import autocast
from simmim.training.world import World

MOST = 64
"""Held-out images that progress is measured on."""
_SHOWN = 8


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


class Views:
    """This process's share of the images of a look, decoded and kept.

    Attributes:
        share: Which images.
        kept: What it gave; see ``Share``.
        places: Of all images that can be read, in any process, ascending.
        said: What could not be read, in words; empty: nothing.
    """

    def __init__(
        self,
        images: ImageSet,
        model: MaskedImageModel,
        world: World,
        *,
        quarantine: Quarantine,
        what: str,
    ) -> None:
        self.share = Share(images, model.encoder.image_size, world)
        self.kept = list(self.share)
        places = {t: None for views, real in self.kept if real for t in views.t.tolist()}
        self.places = list(self.share.gather(places))
        bad = self.share.bad
        world.write(lambda: quarantine.looked_at(images.paths, bad))
        if not self.places:
            world.fail(DataError(none_readable(images.paths, bad)))
        self.said = unreadable(bad, len(images), what) if bad else ""

    @classmethod
    def held_out(
        cls, model: MaskedImageModel, images: ImageSet, world: World, quarantine: Quarantine
    ) -> "Views":
        """Of at most ``MOST`` images that progress is measured on."""
        chosen = ImageSet(images.paths.sample(MOST), images.pixels)
        what = "images that progress is measured on"
        return cls(chosen, model, world, quarantine=quarantine, what=what)

    def gathered(self, look: Callable[[Batch], Iterable[Any]], device: torch.device) -> list[Any]:
        """What ``look`` makes of each image, of all processes, in the order of ``places``."""
        rows: dict[int, Any] = {}
        for views, real in self.kept:
            values = look(views.to(device))
            if real:
                rows |= zip(views.t.tolist(), values, strict=True)
        return list(self.share.gather(rows).values())


class FeatureLook:
    """How far the pooled features of fixed images spread, and how many of their patches are blank.

    Args:
        model: What trains.
        views: The images.
        precision: Arithmetic of the forward pass.
        world: The processes.
    """

    def __init__(self, model: MaskedImageModel, views: Views, precision: str, world: World) -> None:
        self.model, self.views = model, views
        self.precision, self.device = precision, world.device
        self.said = views.said

    def __call__(self, step: int) -> dict[str, float]:  # noqa: ARG002
        """Values for the row of ``step``."""
        found = self.views.gathered(self._look, self.device)
        pooled, blank = (np.stack(values) for values in zip(*found, strict=True))
        return {
            "rank": effective_rank(pooled),
            "deviation": deviation(pooled),
            "blank": float(blank.mean()),
        }

    def _look(self, batch: Batch) -> Iterator[tuple[np.ndarray, float]]:
        model = self.model
        images = normalise(batch.images, model.pixels)
        patches = patchify(images, model.encoder.patch)
        blank = blank_patches(patches, model.pixels.channels).float().mean(1)
        with autocast(self.device, self.precision):  # type: ignore[arg-type]
            pooled = model.pooled(images)
        return zip(pooled.cpu().numpy(), blank.tolist(), strict=True)


class HoldoutLook:
    """Explained detail on fixed images under fixed masks, and a picture of some of them.

    Args:
        model: What trains.
        pixels: The pixels that it predicts, and their columns of its prediction.
        views: Held-out images, of which each process looks at a share.
        precision: Arithmetic of the forward pass.
        world: The processes.
        folder: Where ``step-N.png`` goes.

    Attributes:
        said: What could not be read, in words; empty: nothing.
    """

    def __init__(
        self,
        model: MaskedImageModel,
        pixels: tuple[Pixels, slice],
        views: Views,
        precision: str,
        world: World,
        *,
        folder: Path,
    ) -> None:
        self.model = model
        self.pixels = pixels
        self.precision = precision
        self.folder = folder
        self.world = world
        self.views = views
        self.said = views.said

    def __call__(self, step: int) -> dict[str, float]:
        """Values for the row of ``step``."""
        model, device = self.model, self.world.device
        sums = HoldoutSums(model, *self.pixels)
        shown = {}
        for views, real in self.views.kept:
            batch = views.to(device)
            mask = model.draw(batch, Purpose.HOLDOUT_MASK)
            images = normalise(batch.images, model.pixels)
            with autocast(device, self.precision):  # type: ignore[arg-type]
                if not real:
                    model.predict(images, mask.masked)
                    continue
                prediction = sums.add(batch, images, mask)
            for row, place in enumerate(views.t.tolist()):
                if place in self.views.places[:_SHOWN]:
                    shown[place] = images[row].cpu(), mask.masked[row].cpu(), prediction[row].cpu()
        sums.sums = self.world.total(sums.sums)
        columns = zip(*self.views.share.gather(shown).values(), strict=True)
        if self.world.leads:
            images, masked, prediction = map(torch.stack, columns)
            mask = Mask.given(masked, model.grid)
            picture = grid_picture(images, mask, prediction, model, sums.target.patch)
            self.folder.mkdir(exist_ok=True)  # but not the run folder, where that is gone
            save_png(picture, self.folder / f"step-{step:08d}.png")
        detail = sums.detail()
        return {
            "explained": detail.explained,
            "explained_blur": detail.explained_blur,
            "holdout_loss": detail.loss,
        }


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
        world: Each process looks at a share of the images.
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
        images: ImageSet,
        classes: int,
        precision: str,
        world: World,
        *,
        quarantine: Quarantine,
    ) -> None:
        self.model = model
        self.classes = classes
        self.precision = precision
        self.device, what = world.device, "images of the k-NN probe"
        self.views = Views(images, model, world, quarantine=quarantine, what=what)
        self.said, places = self.views.said, self.views.places
        assert images.labels is not None
        self.labels = np.array([images.labels[place] for place in places])
        self.asked = halves([images.paths[place] for place in places], self.labels)

    def __call__(self, step: int) -> dict[str, float]:  # noqa: ARG002
        """Values for the row of ``step``."""
        values = np.stack(self.views.gathered(self._pooled, self.device))
        labels, asked = self.labels, self.asked
        score = knn(
            values[~asked], labels[~asked], values[asked], labels[asked], classes=self.classes
        )
        return {"knn": score.accuracy}

    def _pooled(self, batch: Batch) -> np.ndarray:
        images = normalise(batch.images, self.model.pixels)
        with autocast(self.device, self.precision):  # type: ignore[arg-type]
            return self.model.pooled(images).cpu().numpy()
