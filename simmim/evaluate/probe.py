"""What frozen features are worth: nearest neighbours, and a linear fit."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from simmim.errors import DataError

STRENGTHS = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Values of C, the inverse weight of the penalty, among which cross-validation chooses."""
FOLDS = 5
LEAST_LOG = -30.0
"""Least log-probability that a row left out counts with, also where its class is unknown."""
STEPS = 500
"""Most iterations of a fit; with standardised features it takes tens, few need hundreds."""
SIMILARITIES = 2**26
"""Similarities that are held at a time, 256 MB."""

Splits = Iterator[tuple[np.ndarray, np.ndarray]]
"""Rows to learn from, and rows to choose on."""


@dataclass(frozen=True)
class Score:
    """How well classes were told apart.

    Attributes:
        accuracy: Share of the rows that were right.
        balanced_accuracy: Mean over the classes that occur of the share that was right.
        predictions: (n,) int64, the most probable class of each row.
        probabilities: (n, classes) float32, rows sum to 1.
    """

    accuracy: float
    balanced_accuracy: float
    predictions: np.ndarray
    probabilities: np.ndarray


def knn(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Score:
    """Let the nearest neighbours vote (Wu et al., 2018, sec. 3.4), compared with all, exactly.

    A neighbour of cosine similarity s weighs exp(s / temperature).

    Args:
        train: (n, D) features of the images that vote.
        train_labels: (n,) class indices.
        test: (m, D) features of the images that are asked about.
        test_labels: (m,) class indices.
        classes: Number of classes.
        k: Neighbours that vote; all images where there are fewer.
        temperature: How fast a vote fades with distance.

    Raises:
        DataError: No rows, values that are not finite, or labels that do not fit.
    """
    _check_both(train, train_labels, test, test_labels, classes)
    voters = F.normalize(torch.from_numpy(train).float(), dim=1)
    asked = F.normalize(torch.from_numpy(test).float(), dim=1)
    labels = torch.from_numpy(train_labels).long()
    shares = vote(voters, labels, asked, classes=classes, k=k, temperature=temperature)
    return score(test_labels, shares.numpy(), classes)


def vote(
    voters: Tensor,
    labels: Tensor,
    asked: Tensor,
    *,
    classes: int,
    k: int,
    temperature: float = 0.07,
) -> Tensor:
    """The share of each class (m, classes) in the votes for rows of length 1; see ``knn``.

    Args:
        voters: (n, D), of length 1.
        labels: (n,) class indices.
        asked: (m, D), of length 1.
        classes: Number of classes.
        k: See ``knn``.
        temperature: See there.
    """
    votes = F.one_hot(labels, classes).float()  # n classes
    count = min(k, len(voters))
    parts = []
    for part in asked.split(max(1, SIMILARITIES // len(voters))):
        similarity, index = (part @ voters.T).topk(count, dim=1)  # r k
        weight = torch.softmax(similarity / temperature, dim=1)
        parts.append(torch.einsum("rk,rkc->rc", weight, votes[index]))
    return torch.cat(parts)


def linear(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    classes: int,
    seed: int = 0,
) -> Score:
    """Fit a logistic regression on standardised features.

    The penalty is chosen by stratified cross-validation on the training rows alone, by how
    many of the rows left out are told right. A class without a training row gets the probability 0.

    Args:
        train: (n, D) features.
        train_labels: (n,) class indices.
        test: (m, D) features.
        test_labels: (m,) class indices.
        classes: Number of classes.
        seed: Of the folds.

    Raises:
        DataError: No rows, values that are not finite, or labels that do not fit.
    """
    _check_both(train, train_labels, test, test_labels, classes)
    splits = _folds(train_labels, classes, seed)
    weight, bias = fit_chosen(train, train_labels, classes=classes, splits=splits)
    logits = test @ weight.T + bias
    return score(test_labels, torch.from_numpy(logits).softmax(1).numpy(), classes)


def fit_chosen(
    features: np.ndarray, labels: np.ndarray, *, classes: int, splits: Splits
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a logistic regression on standardised features, its penalty chosen on ``splits``.

    Args:
        features: (n, D), as they are.
        labels: (n,) class indices.
        classes: Number of classes.
        splits: Rows to learn from and rows to choose on, once or several times; none: the middle
            penalty.

    Returns:
        Weights (classes, D) and biases (classes,) of logits for such features; the bias of a class
        without a row is minus infinity.
    """
    mean, deviation = moments(features)
    strength = _choose_strength((features - mean) / deviation, labels, classes, splits)
    return _fit(features, labels, classes, strength)


def fit_layer(
    features: np.ndarray, labels: np.ndarray, *, classes: int, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the linear layer that `linear` would, at a given C.

    Args:
        features: (n, D), as they are.
        labels: (n,) class indices.
        classes: Number of classes; those without a row get the least bias and no weights.
        strength: C, the inverse weight of the penalty.

    Returns:
        Weights (classes, D) and biases (classes,), float32, of logits for such features.
    """
    _check("train", features, labels, classes)
    weight, bias = _fit(features, labels, classes, strength)
    present = np.isfinite(bias)
    bias[~present] = bias[present].min()
    return weight.astype(np.float32), bias.astype(np.float32)


def score(labels: np.ndarray, probabilities: np.ndarray, classes: int) -> Score:
    """Compare ``labels`` (n,) with the most probable classes of ``probabilities`` (n, classes)."""
    predictions = probabilities.argmax(1).astype(np.int64)
    return Score(
        accuracy(labels, predictions),
        balanced_accuracy(labels, predictions, classes),
        predictions,
        probabilities.astype(np.float32),
    )


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Share of ``predictions`` (n,) that equal ``labels`` (n,)."""
    return float((labels == predictions).mean())


def balanced_accuracy(labels: np.ndarray, predictions: np.ndarray, classes: int) -> float:
    """Mean, over the classes among ``labels`` (n,), of the share of their rows that was right."""
    rows = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[labels == predictions], minlength=classes)
    return float((right[rows > 0] / rows[rows > 0]).mean())


def _folds(labels: np.ndarray, classes: int, seed: int) -> Splits:
    """Stratified folds of the rows whose class has others; no folds where there are none."""
    counts = np.bincount(labels, minlength=classes)
    # A class of a single row is in no way left out and learned from; the others decide.
    rows = np.flatnonzero(counts[labels] > 1)
    if not len(rows):
        return
    folds = StratifiedKFold(
        min(FOLDS, int(counts[counts > 1].min())), shuffle=True, random_state=seed
    )
    for learned, left in folds.split(rows, labels[rows]):
        yield rows[learned], rows[left]


def _choose_strength(
    features: np.ndarray, labels: np.ndarray, classes: int, splits: Splits
) -> float:
    """C that tells most of the rows left out right; among equals, the one of greatest likelihood.

    Accuracy chose better than likelihood alone, by 0.3 to 2 points with 30 to 1,000 labels of ten
    classes. Where no row can be left out, the middle one.
    """
    right, likelihood = np.zeros(len(STRENGTHS)), np.zeros(len(STRENGTHS))
    for learned, left in splits:
        fits = _fits(features[learned], labels[learned], classes, STRENGTHS)
        for number, (weight, bias) in enumerate(fits):
            logits = features[left] @ weight.T + bias
            right[number] += (logits.argmax(1) == labels[left]).sum()
            shares = torch.from_numpy(logits).log_softmax(1).numpy()
            true = shares[np.arange(len(left)), labels[left]]
            likelihood[number] += np.maximum(true, LEAST_LOG).sum()
    if not likelihood.any():
        return STRENGTHS[len(STRENGTHS) // 2]
    return STRENGTHS[np.lexsort((likelihood, right))[-1]]


def _fit(
    features: np.ndarray, labels: np.ndarray, classes: int, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fit on standardised features; the weights and biases are for features as they are."""
    mean, deviation = moments(features)
    weight, bias = next(_fits((features - mean) / deviation, labels, classes, (strength,)))
    weight = weight / deviation
    return weight, bias - weight @ mean


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (D,) in float64; 1 for what is constant but for rounding."""
    mean = features.mean(0, dtype=np.float64)
    deviation = features.std(0, dtype=np.float64)
    deviation[deviation <= 1e-6 * np.abs(mean).max()] = 1.0
    return mean, deviation


def _fits(
    features: np.ndarray, labels: np.ndarray, classes: int, strengths: Sequence[float]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield weights (classes, D) and biases (classes,) for each of the rising ``strengths``.

    The bias of a class without a row is minus infinity.
    """
    present = np.unique(labels)
    model = LogisticRegression(max_iter=STEPS, warm_start=True)
    for strength in strengths:
        weight = np.zeros((classes, features.shape[1]))
        bias = np.full(classes, -np.inf)
        bias[present] = 0.0
        if len(present) > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.set_params(C=strength).fit(features, labels)
            # Of two classes scikit-learn tells the log-odds of the second alone.
            signs = np.array([-0.5, 0.5]) if len(present) == 2 else np.ones(len(present))
            weight[present] = signs[:, None] * model.coef_
            bias[present] = signs * model.intercept_
        yield weight, bias


def _check_both(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
) -> None:
    _check("train", train, train_labels, classes)
    _check("test", test, test_labels, classes)
    if train.shape[1] != test.shape[1]:
        raise DataError(
            f"train and test features differ in width, {train.shape[1]} and {test.shape[1]}; "
            "extract both with the same encoder."
        )


def _check(what: str, features: np.ndarray, labels: np.ndarray, classes: int) -> None:
    if features.ndim != 2 or not len(features) or labels.shape != (len(features),):
        raise DataError(
            f"{what} features (n, D) and labels (n,) are needed, with at least one row; got "
            f"{features.shape} and {labels.shape}."
        )
    if not np.isfinite(features).all():
        raise DataError(f"some {what} features are not finite: the encoder or an image is broken.")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"{what} labels must be class indices from 0 to {classes - 1}, got {labels.min()} to "
            f"{labels.max()}."
        )


def always_the_largest(labels: np.ndarray) -> str:
    """What to compare an accuracy with, in words."""
    share = np.bincount(labels).max() / len(labels)
    return f"always the largest class would be right for {share:.1%}"
