"""Patch tokens of images with masks: which of them are learned from, and heads fitted to them.

As in CAPI (Darcet et al., 2025) a patch is of the class that most of its pixels are of, and a patch
that is mostly of no class is not learned from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import NoneReadableError, none_readable
from simmim.data.map_classes import MapClasses
from simmim.errors import DataError
from simmim.evaluate.features import Progress
from simmim.evaluate.probe import fit_chosen, moments, vote
from simmim.evaluate.share import Share
from simmim.interop.load import LoadedEncoder
from simmim.models.dense import Maps
from simmim.models.encoder import Encoder
from simmim.tensors.batch import IGNORE
from simmim.tensors.counter import Purpose, uniform
from simmim.tensors.patches import normalise
from simmim.training.step import looking
from simmim.training.world import ALONE, World

MOST = 20_000
"""Patches that are learned from; their features are kept in memory."""
CHOSEN_ON = 0.2
"""Share of the images to learn from that a penalty, or a block, is chosen on."""


@dataclass(frozen=True)
class Patches:
    """Patches of images to learn from, a row each.

    Attributes:
        features: (n, D) float32.
        labels: (n,) int64 class indices.
        images: (n,) int64, places of the images that they are of.
    """

    features: np.ndarray
    labels: np.ndarray
    images: np.ndarray

    def part(self, rows: np.ndarray) -> "Patches":
        """Some of them."""
        return Patches(self.features[rows], self.labels[rows], self.images[rows])

    def split(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of most images and those of a share of them, which may be none."""
        images = np.unique(self.images)
        count = min(max(1, round(CHOSEN_ON * len(images))), len(images) - 1)
        left = np.random.default_rng(seed).permutation(images)[:count]
        out = np.isin(self.images, left)
        return np.flatnonzero(~out), np.flatnonzero(out)


@dataclass(frozen=True)
class PatchReadings:
    """What was read of images to learn from.

    Attributes:
        blocks: Patches of each block that was asked for, the last one's at the end.
        tried: Number of images that were tried.
        images: Number of those that could be read.
        most: Patches of an image, at most.
        of: Number of patches of a known class that these images have, in the last block.
        skipped: Images that could not be read, each with its reason.
    """

    blocks: list[Patches]
    tried: int
    images: int
    most: int
    of: int
    skipped: dict[str, str] = field(default_factory=dict)


def patch_maps(maps: Maps, encoder: Encoder, images: Tensor) -> list[Tensor]:
    """Patch tokens (B, h, w, D): of the last block after the encoder's final norm.

    Those of other blocks are brought to mean 0 and deviation 1 by a layer norm without parameters.
    """
    *inner, last = (each.permute(0, 2, 3, 1) for each in maps(encoder, images))
    return [*(F.layer_norm(each, each.shape[-1:]) for each in inner), last]


def patch_labels(truth: np.ndarray, grid: Sequence[int], classes: int) -> np.ndarray:
    """The class that most pixels of each patch are of (B, N), ``IGNORE`` where that is none.

    Args:
        truth: (B, H, W) class indices; ``IGNORE``: none.
        grid: Patches per column and row.
        classes: Number of classes.
    """
    (count, height, width), (rows, columns) = truth.shape, grid
    patches = truth.reshape(count, rows, height // rows, columns, width // columns)
    patches = patches.transpose(0, 1, 3, 2, 4).reshape(count * rows * columns, -1)
    places = np.arange(len(patches))[:, None] * (classes + 1)
    pixels = np.where(patches == IGNORE, classes, patches) + places
    counts = np.bincount(pixels.ravel(), minlength=len(patches) * (classes + 1))
    best = counts.reshape(count, rows * columns, classes + 1).argmax(2)
    return np.where(best == classes, IGNORE, best)


def read_patches(
    encoder: LoadedEncoder,
    images: ImageSet,
    classes: MapClasses,
    *,
    blocks: bool = False,
    seed: int = 0,
    batch: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
    world: World = ALONE,
) -> PatchReadings:
    """Read patches of the plain views of images with masks, as many of each, drawn by a hash.

    Args:
        encoder: On any device; it stays as it is.
        images: With label maps; they are read as the encoder's pixel format says.
        classes: What the values of the maps mean.
        blocks: Read each block, not only the last.
        seed: Of the draw.
        batch: Images per forward pass.
        workers: Background processes.
        progress: Told of each batch.
        world: The processes, each of which reads a share of the images.

    Raises:
        DataError: None of the images could be read, or no patch is of a class.
    """
    own = replace(images, pixels=encoder.pixels)
    if len(own) > MOST:
        own = replace(own, paths=own.paths.select(sorted(own.paths.lowest(MOST))))
    most = MOST // len(own)
    inner = encoder.encoder
    maps = Maps(inner, range(inner.depth) if blocks else (inner.depth - 1,))
    device = next(inner.parameters()).device
    share = Share(own, encoder.image_size, world, batch, workers)
    rows: dict[int, list[tuple[np.ndarray, np.ndarray, int]]] = {}
    with looking(inner):
        for views, real in share:
            if not real:
                continue
            assert views.maps is not None
            truth = classes.classes_of(views.maps.numpy())
            inputs = normalise(views.images.to(device, non_blocking=True), encoder.pixels)
            drawn = [
                _draw(found, truth, views.t, most, classes=len(classes.names), seed=seed)
                for found in patch_maps(maps, inner, inputs)
            ]
            rows |= zip(views.t.tolist(), map(list, zip(*drawn, strict=True)), strict=True)
            if progress is not None:
                progress(int(views.t[-1]) + 1, len(own))
    rows = share.gather(rows)
    if not rows:
        raise NoneReadableError(none_readable(own.paths, share.bad), share.bad)
    found = [_joined(rows, number) for number in range(len(maps.blocks))]
    if not len(found[-1].labels):
        raise DataError(f"no patch of the {len(rows):,} images in {own.paths.where} is of a class.")
    whole = sum(of[-1][2] for of in rows.values())
    return PatchReadings(found, len(own), len(rows), most, whole, share.bad)


def _draw(
    tokens: Tensor, truth: np.ndarray, t: Tensor, most: int, *, classes: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Of each image the features (m, D) and labels (m,) of some patches, and how many it has."""
    labels = patch_labels(truth, tokens.shape[1:3], classes)
    numbers = uniform(seed, Purpose.PATCHES, t, labels.shape[1]).numpy()
    order = np.where(labels == IGNORE, np.inf, numbers).argsort(1, kind="stable")
    known = (labels != IGNORE).sum(1)
    chosen = [places[: min(most, count)] for places, count in zip(order, known, strict=True)]
    features = tokens.flatten(1, 2).float().cpu().numpy()
    each = zip(features, labels, chosen, known, strict=True)
    return [(x[places], y[places], int(count)) for x, y, places, count in each]


def _joined(rows: dict[int, list[tuple[np.ndarray, np.ndarray, int]]], number: int) -> Patches:
    parts = [(of[number][0], of[number][1]) for of in rows.values()]
    counts = [len(labels) for _, labels in parts]
    features, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Patches(features, labels, np.repeat(np.array(list(rows)), counts))


class Votes(nn.Module):
    """The nearest patches by cosine vote, of features standardised by those learned from.

    Args:
        patches: Those that vote.
        classes: Number of classes.
        k: How many vote.
    """

    def __init__(self, patches: Patches, classes: int, k: int) -> None:
        super().__init__()
        self.classes, self.k = classes, k
        mean, deviation = (torch.from_numpy(each).float() for each in moments(patches.features))
        self.mean, self.deviation = nn.Buffer(mean), nn.Buffer(deviation)
        self.voters = nn.Buffer(self._directions(torch.from_numpy(patches.features)))
        self.labels = nn.Buffer(torch.from_numpy(patches.labels))

    def _directions(self, features: Tensor) -> Tensor:
        return F.normalize((features - self.mean) / self.deviation, dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """Probabilities (n, classes) of features (n, D)."""
        asked = self._directions(features)
        return vote(self.voters, self.labels, asked, classes=self.classes, k=self.k)


class Layer(nn.Module):
    """A logistic regression on standardised features, its penalty chosen on a share of the images.

    Args:
        patches: Those to learn from.
        classes: Number of classes.
        seed: Of what is left out.
    """

    def __init__(self, patches: Patches, classes: int, seed: int) -> None:
        super().__init__()
        learned, left = patches.split(seed)
        splits = iter([(learned, left)] if len(left) else [])
        fitted = fit_chosen(patches.features, patches.labels, classes=classes, splits=splits)
        weight, bias = (torch.from_numpy(each).float() for each in fitted)
        self.weight, self.bias = nn.Buffer(weight), nn.Buffer(bias)

    def forward(self, features: Tensor) -> Tensor:
        """Probabilities (n, classes) of features (n, D)."""
        return F.linear(features, self.weight, self.bias).softmax(1)
