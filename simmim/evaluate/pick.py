"""Which of many images stand for all the others, and which are hard: those to label first."""

import heapq

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor, nn

from simmim.errors import ConfigError
from simmim.evaluate.probe import fit_layer
from simmim.models.mim import MaskedImageModel
from simmim.targets.pixels import Pixels
from simmim.tensors.batch import Batch
from simmim.tensors.counter import Purpose, hash64
from simmim.tensors.patches import denormalise

MOST = 10_000
"""Images that are compared with one another; of more, a sample, as its square is held in memory."""
STRENGTH = 0.03
"""C of the logistic regression that tells doubts."""
_MASKS = 4
"""Masks under which each image is filled in."""
_BLOCK = 512


def diverse(
    features: np.ndarray,
    known: np.ndarray,
    n: int,
    seed: int,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose rows that stand for all rows, beside rows that are known already.

    Greedy k-medoids (facility location): each choice is the row that most lowers the sum over all
    rows of the squared distance to the nearest chosen or known one.

    Args:
        features: (N, D). Of more than ``MOST`` rows a sample by a hash is chosen from.
        known: (K, D), K may be 0.
        n: Rows to choose, at most N.
        seed: Of the sample.
        weights: (N,) how much each row counts in the sum; None: all alike.

    Returns:
        The rows, in the order of the choice, and to how many rows each is the nearest one.
    """
    middle = features.mean(0)
    own, known = ((each - middle).astype(np.float32) for each in (features, known))
    rows = np.arange(len(features))
    if len(rows) > max(MOST, n):
        ranks = np.array([hash64(seed, Purpose.DRAW, 0, row) for row in range(len(rows))], float)
        rows = np.sort(np.argsort(ranks, kind="stable")[: max(MOST, n)])
    pool = own[rows]
    likeness = _likeness(pool, pool)
    near = np.full(len(pool), likeness.min(), np.float32)
    for start in range(0, len(known), _BLOCK):
        near = np.maximum(near, _likeness(pool, known[start : start + _BLOCK]).max(1))
    counts = np.ones(len(rows)) if weights is None else weights[rows]
    chosen = _greedy(likeness, near, counts.astype(np.float32), n)
    nearest, best = likeness[chosen].argmax(0), likeness[chosen].max(0)
    return rows[chosen], np.bincount(nearest[best >= near], minlength=len(chosen))


def doubts(
    features: np.ndarray, known: np.ndarray, labels: np.ndarray, classes: int
) -> np.ndarray | None:
    """How unsure a logistic regression on the known rows is of each row, from 0 to 1.

    It is the square of one less the lead of the likeliest class over the next. Rows that are known
    by their class alone would spend labels on what can be told already.

    Args:
        features: (N, D).
        known: (K, D).
        labels: (K,) class indices; -1: not known.
        classes: Number of classes.

    Returns:
        (N,), or None where fewer than two classes are known.
    """
    told = labels >= 0
    if len(np.unique(labels[told])) < 2:
        return None
    weight, bias = fit_layer(known[told], labels[told], classes=classes, strength=STRENGTH)
    shares = np.sort(softmax(features @ weight.T + bias, 1), 1)
    return (1 - (shares[:, -1] - shares[:, -2])) ** 2


def _greedy(likeness: np.ndarray, near: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """Rows that raise the likeness of all to their nearest most; a gain never grows again."""
    gains = [-float(np.maximum(row - near, 0) @ weights) for row in likeness]
    heap = [(gain, row) for row, gain in enumerate(gains)]
    heapq.heapify(heap)
    chosen: list[int] = []
    while len(chosen) < n:
        _, row = heapq.heappop(heap)
        gain = -float(np.maximum(likeness[row] - near, 0) @ weights)
        if heap and (gain, row) > heap[0]:
            heapq.heappush(heap, (gain, row))
            continue
        chosen.append(row)
        near = np.maximum(near, likeness[row])
    return np.array(chosen)


def _likeness(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Negative squared distances (n, m)."""
    squares = (rows**2).sum(1)[:, None] + (others**2).sum(1)
    return np.minimum(2 * rows @ others.T - squares, 0)


class ReconstructionError(nn.Module):
    """How badly each image is filled in: the mean squared error of the masked pixels.

    All images have the same masks.

    Args:
        model: It must predict pixels.

    Raises:
        ConfigError: It does not.
    """

    def __init__(self, model: MaskedImageModel) -> None:
        super().__init__()
        found = model.target.within(Pixels)
        if found is None:
            raise ConfigError(
                "the run predicts no pixels, so that its error tells no hard images; leave "
                "--hardest out, or name a run of simmim finetune."
            )
        self.model = model
        self.target, self.columns = found

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) → errors (B, 1)."""
        errors = torch.zeros(len(images), device=images.device)
        for number in range(_MASKS):
            t = torch.full((len(images),), number, device=images.device)
            batch = Batch(denormalise(images, self.model.pixels), t)
            mask = self.model.draw(batch, Purpose.HOLDOUT_MASK)
            prediction = self.model.predict(images, mask.masked).float()[..., self.columns]
            values = self.target.values(batch, images, mask)
            errors += (prediction - values).square().mean((1, 2))
        return errors[:, None] / _MASKS
