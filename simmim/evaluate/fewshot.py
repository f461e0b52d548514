"""Few labels of each class: nested draws, and a logistic regression on each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from simmim.evaluate.probe import Score, linear
from simmim.tensors.counter import Purpose, hash64

SHOTS = (1, 2, 5, 10, 25)
"""Labelled images of each class."""


@dataclass(frozen=True)
class Shot:
    """One number of labels in one draw.

    Attributes:
        each: Labels of a class.
        draw: Number of the draw, from 1.
        score: On the images that are asked about.
    """

    each: int
    draw: int
    score: Score


def draw_rows(labels: np.ndarray, each: int, draw: int, seed: int) -> np.ndarray:
    """Places of ``each`` images of every class, of a smaller one all, by class and then by chance.

    A hash of (seed, draw, place) orders the images of a class, so that the draws of one number and
    growing ``each`` are nested.

    Args:
        labels: (n,) class indices.
        each: Images of a class.
        draw: Number of the draw.
        seed: Seed of all draws.
    """
    return np.array([row for rows in _drawn(labels, draw, seed) for row in rows[:each]])


def draw_share(labels: np.ndarray, share: float, draw: int, seed: int) -> np.ndarray:
    """Places of a share of every class, of one image at least; otherwise as ``draw_rows``."""
    parts = _drawn(labels, draw, seed)
    return np.array([row for rows in parts for row in rows[: max(1, round(share * len(rows)))]])


def _drawn(labels: np.ndarray, draw: int, seed: int) -> Iterator[list[int]]:
    """Yield the places of each class in the order in which they are drawn."""
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label).tolist()
        yield sorted(rows, key=lambda row: hash64(seed, Purpose.DRAW, draw, row))


def few_shots(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    classes: int,
    shots: Sequence[int],
    draws: int,
    seed: int,
) -> Iterator[Shot]:
    """Fit a logistic regression on few labels, for each of the draws and numbers of labels.

    Args:
        train: (n, D) features that draws are taken from.
        train_labels: (n,) class indices.
        test: (m, D) features that are asked about.
        test_labels: (m,) class indices.
        classes: Number of classes.
        shots: Labels of a class.
        draws: Number of draws.
        seed: Of the draws.
    """
    for draw in range(1, draws + 1):
        for each in shots:
            rows = draw_rows(train_labels, each, draw, seed)
            pieces = (train[rows], train_labels[rows], test, test_labels)
            yield Shot(each, draw, linear(*pieces, classes=classes, seed=seed))
