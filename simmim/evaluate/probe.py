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
    votes = F.one_hot(torch.from_numpy(train_labels).long(), classes).float()  # n classes
    count = min(k, len(voters))
    rows = max(1, SIMILARITIES // len(voters))
    parts = []
    for part in asked.split(rows):
        similarity, index = (part @ voters.T).topk(count, dim=1)  # r k
        weight = torch.softmax(similarity / temperature, dim=1)
        parts.append(torch.einsum("rk,rkc->rc", weight, votes[index]))
    return score(test_labels, torch.cat(parts).numpy(), classes)


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
    mean, deviation = _moments(train)
    fitted = (train - mean) / deviation
    strength = _choose_strength(fitted, train_labels, classes, seed)
    weight, bias = next(_fits(fitted, train_labels, classes, (strength,)))
    logits = (test - mean) / deviation @ weight.T + bias
    return score(test_labels, torch.from_numpy(logits).softmax(1).numpy(), classes)


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
    mean, deviation = _moments(features)
    weight, bias = next(_fits((features - mean) / deviation, labels, classes, (strength,)))
    weight = weight / deviation
    bias = bias - weight @ mean
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


def _choose_strength(features: np.ndarray, labels: np.ndarray, classes: int, seed: int) -> float:
    """C that tells most of the rows left out right; among equals, the one of greatest likelihood.

    Accuracy chose better than likelihood alone, by 0.3 to 2 points with 30 to 1,000 labels of ten
    classes. Where no row can be left out, the middle one.
    """
    counts = np.bincount(labels, minlength=classes)
    # A class of a single row is in no way left out and learned from; the others decide.
    kept = counts[labels] > 1
    features, labels = features[kept], labels[kept]
    if not len(labels):
        return STRENGTHS[len(STRENGTHS) // 2]
    folds = min(FOLDS, int(counts[counts > 1].min()))
    right, likelihood = np.zeros(len(STRENGTHS)), np.zeros(len(STRENGTHS))
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, labels)
    for learned, left in splits:
        fits = _fits(features[learned], labels[learned], classes, STRENGTHS)
        for number, (weight, bias) in enumerate(fits):
            logits = features[left] @ weight.T + bias
            right[number] += (logits.argmax(1) == labels[left]).sum()
            shares = torch.from_numpy(logits).log_softmax(1).numpy()
            true = shares[np.arange(len(left)), labels[left]]
            likelihood[number] += np.maximum(true, LEAST_LOG).sum()
    return STRENGTHS[np.lexsort((likelihood, right))[-1]]


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
