"""All that is measured of frozen features, by protocol."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from threadpoolctl import threadpool_limits

from simmim.data.loading.images import split_rows
from simmim.evaluate.attentive import attentive
from simmim.evaluate.estimate import Estimate
from simmim.evaluate.fewshot import SHOTS, few_shots
from simmim.evaluate.probe import Score, knn, linear
from simmim.evaluate.readings import Readings

DRAWS = 5
"""Draws of few labels."""
CHOSEN_ON = 0.2
"""Share of the training images that the best block is chosen on."""

Say = Callable[[float, str], None]
"""Told which share is done, and what is done now."""
Probe = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Score]
"""From features and labels to learn from, and those asked about."""


@dataclass(frozen=True)
class Result:
    """What one protocol says of an encoder.

    Attributes:
        accuracy: Share of the images asked about that were told right.
        balanced: Mean over their classes.
    """

    accuracy: Estimate
    balanced: Estimate


@dataclass(frozen=True)
class Block:
    """The best block for one protocol.

    Attributes:
        number: Of the block, from 1.
        left_out: Accuracy of each block on the training images that it was chosen on.
        result: Of the best one, on the images asked about.
    """

    number: int
    left_out: list[Estimate]
    result: Result


@dataclass
class Results:
    """What all protocols that were asked for say of an encoder.

    Attributes:
        learnt: (n,) class indices of the images that were learned from.
        asked: (m,) class indices of those that were asked about.
        protocols: By what they are called.
        shots: Accuracy over the draws, by the number of labels of a class.
        blocks: By the protocol's name.
    """

    learnt: np.ndarray
    asked: np.ndarray
    protocols: dict[str, Result] = field(default_factory=dict)
    shots: dict[int, Estimate] = field(default_factory=dict)
    blocks: dict[str, Block] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Protocols:
    """How frozen features are measured.

    Attributes:
        classes: Number of classes.
        names: ``knn``, ``linear``, ``attentive`` or ``fewshot``, those that are wanted.
        blocks: Measure each block, too.
        k: Neighbours that vote.
        seed: Of whatever is drawn.
    """

    classes: int
    names: frozenset[str]
    blocks: bool
    k: int
    seed: int

    def measure(self, train: Readings, test: Readings, say: Say) -> Results:
        """Measure what was read of the images to learn from and of those asked about."""
        found = Results(train.labels, test.labels)
        pieces = (train.pooled, train.labels, test.pooled, test.labels)
        for name, words, probe in self._probes():
            if name in self.names:
                say(0.0, words)
                found.protocols[words] = self._result(test.labels, probe(*pieces))
        if "attentive" in self.names:
            assert train.tokens is not None
            assert test.tokens is not None
            given = (train.tokens, train.labels, test.tokens, test.labels)
            words = "attentive probe"
            told = attentive(
                *given, classes=self.classes, seed=self.seed, say=lambda share: say(share, words)
            )
            found.protocols[words] = self._result(test.labels, told)
        if "fewshot" in self.names:
            found.shots = self._few(train, test, say)
        if self.blocks:
            found.blocks = {
                words: self._best_block(train, test, probe, lambda share: say(share, "blocks"))
                for _, words, probe in self._probes()
            }
        return found

    def _probes(self) -> Iterator[tuple[str, str, Probe]]:
        """Name, words and function of the protocols that take a vector of each image."""

        def vote(*pieces: np.ndarray) -> Score:
            return knn(*pieces, classes=self.classes, k=self.k)

        def fit(*pieces: np.ndarray) -> Score:
            return linear(*pieces, classes=self.classes, seed=self.seed)

        yield "knn", f"k-NN, k = {self.k}, cosine", vote
        yield "linear", "logistic regression", fit

    def _result(self, labels: np.ndarray, score: Score) -> Result:
        right = int((labels == score.predictions).sum())
        return Result(
            Estimate.of_count(right, len(labels)),
            Estimate.of_classes(labels, score.predictions, self.classes, self.seed),
        )

    def _few(self, train: Readings, test: Readings, say: Say) -> dict[int, Estimate]:
        shots = usable_shots(train.labels)
        pieces = (train.pooled, train.labels, test.pooled, test.labels)
        draws = few_shots(*pieces, classes=self.classes, shots=shots, draws=DRAWS, seed=self.seed)
        found: dict[int, list[float]] = {each: [] for each in shots}
        # Products this small take several times as long on two threads as on one.
        with threadpool_limits(1, "blas"):
            for shot in draws:
                found[shot.each].append(shot.score.accuracy)
                done = sum(map(len, found.values())) / (len(shots) * DRAWS)
                say(done, f"few labels, draw {shot.draw} of {DRAWS}")
        return {each: Estimate.of_draws(values) for each, values in found.items()}

    def _best_block(
        self, train: Readings, test: Readings, probe: Probe, say: Callable[[float], None]
    ) -> Block:
        """The block that tells most of the training images right that were left out for that.

        Where no image can be left out, the last one.
        """
        rows, left = split_rows(train.labels, CHOSEN_ON, self.seed)
        shares = []
        for number, block in enumerate(train.blocks if len(left) else []):
            say(number / len(train.blocks))
            told = probe(block[rows], train.labels[rows], block[left], train.labels[left])
            right = int((train.labels[left] == told.predictions).sum())
            shares.append(Estimate.of_count(right, len(left)))
        best = int(np.argmax([each.value for each in shares])) if shares else len(train.blocks) - 1
        told = probe(train.blocks[best], train.labels, test.blocks[best], test.labels)
        return Block(best + 1, shares, self._result(test.labels, told))


def usable_shots(labels: np.ndarray) -> list[int]:
    """The numbers of labels that at least one class has, of those usually asked for."""
    most = int(np.bincount(labels).max())
    return [each for each in SHOTS if each <= most]
