"""A fine-tuned encoder that tells which of several classes an image is of: any number of them."""

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from simmim.evaluate.probe import fit_layer
from simmim.evaluate.scores import SURE, TagScore, score_tags
from simmim.tasks.classifier import CLASSIFIER, STRENGTH, Classifier, Predictions
from simmim.tasks.heads import read_head

BETWEEN = "|"
"""What stands between the names of several classes."""


class Tags(Predictions):
    """See ``Predictions``; each probability for itself, and labels (n, classes) of 0 and 1."""

    @property
    def names(self) -> list[Any]:
        """The classes of each image that are as probable as not, or more."""
        return [self._named(row >= SURE) for row in self.probabilities]

    @property
    def truths(self) -> list[Any]:
        """The true classes of each image."""
        return [self._named(row > 0) for row in self.known()]

    @property
    def metrics(self) -> dict[str, float]:
        """See ``Predictions``."""
        found = self.tag_score
        return {"map": found.mean_ap, "f1": found.f1, "f1_macro": found.f1_macro}

    @cached_property
    def tag_score(self) -> TagScore:
        """See ``score_tags``."""
        return score_tags(self.known(), self.probabilities)

    def _named(self, said: np.ndarray) -> str:
        return BETWEEN.join(self.classes[k] for k in np.flatnonzero(said))


class Tagger(Classifier):
    """See ``Classifier``; each class is told for itself."""

    kind: ClassVar[str] = "multilabel"
    answers: ClassVar[type[Predictions]] = Tags

    def read(self, outputs: Tensor) -> Tensor:
        """What the outputs (B, classes) say: probabilities, each for itself."""
        return outputs.sigmoid()

    def fit(self, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A logistic regression for each class; see ``Classifier``."""
        weights, biases = [], []
        for column in labels.T:
            if column.min() == column.max():  # nothing to tell apart
                weights.append(np.zeros(features.shape[1], np.float32))
                biases.append(
                    np.float32(np.log((column.sum() + 1) / (len(column) + 1 - column.sum())))
                )
                continue
            weight, bias = fit_layer(features, column, classes=2, strength=STRENGTH)
            weights.append(weight[1] - weight[0])
            biases.append(bias[1] - bias[0])
        return np.stack(weights), np.array(biases, np.float32)


def load_tagger(folder: Path) -> Tagger:
    """Read what ``save_classifier`` wrote of one; see ``load_classifier``."""
    files = read_head(folder / CLASSIFIER, Tagger.kind)
    tagger = Tagger(files.encoder, files.pixels, files.classes, **files.settings)
    files.fill(tagger.head, folder / CLASSIFIER)
    return tagger.eval()
