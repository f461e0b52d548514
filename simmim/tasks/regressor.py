"""A fine-tuned encoder that tells a number of an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from sklearn.linear_model import Ridge
from torch import Tensor

from simmim.config.resolved import PixelFormat
from simmim.evaluate.scores import NumberScore, score_numbers
from simmim.models.encoder import Encoder
from simmim.tasks.classifier import CLASSIFIER, STRENGTH, Classifier, Predictions
from simmim.tasks.heads import read_head

if TYPE_CHECKING:
    import pyarrow as pa


class Numbers(Predictions):
    """See ``Predictions``; of no classes, with numbers (n, 1) in place of probabilities."""

    @property
    def names(self) -> list[Any]:
        """What was told of each image."""
        return self.probabilities[:, 0].astype(float).tolist()

    @property
    def truths(self) -> list[Any]:
        """The true number of each image."""
        return self.known().tolist()

    @property
    def metrics(self) -> dict[str, float]:
        """See ``Predictions``."""
        found = self.number_score
        return {"r2": found.r2, "mae": found.mae}

    @property
    def number_score(self) -> NumberScore:
        """See ``score_numbers``."""
        return score_numbers(self.known(), self.probabilities[:, 0])

    @staticmethod
    def form() -> "pa.DataType":
        """See ``Predictions``."""
        import pyarrow as pa  # slow to import

        return pa.float64()


class Regressor(Classifier):
    """See ``Classifier``; its output is a number in deviations from the mean.

    Args:
        encoder: The backbone.
        pixels: How images are read and normalised for it.
        mean: Of the numbers that are learned from.
        deviation: Theirs, above 0.
    """

    kind: ClassVar[str] = "regress"
    answers: ClassVar[type[Predictions]] = Numbers

    def __init__(
        self, encoder: Encoder, pixels: PixelFormat, mean: float, deviation: float
    ) -> None:
        super().__init__(encoder, pixels, (), outputs=1)
        self.mean = mean
        self.deviation = deviation

    @classmethod
    def of(cls, encoder: Encoder, pixels: PixelFormat, numbers: Sequence[float]) -> "Regressor":
        """One for such numbers, which are not all the same."""
        return cls(encoder, pixels, float(np.mean(numbers)), float(np.std(numbers)))

    def read(self, outputs: Tensor) -> Tensor:
        """The numbers (B, 1) that the outputs say."""
        return outputs.double() * self.deviation + self.mean

    def fit(self, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A ridge regression on standardised features; see ``Classifier``."""
        mean, deviation = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
        deviation[deviation <= 1e-6 * np.abs(mean).max()] = 1.0
        wanted = (labels - self.mean) / self.deviation
        found = Ridge(alpha=1 / STRENGTH).fit((features - mean) / deviation, wanted)
        weight = found.coef_ / deviation
        bias = found.intercept_ - weight @ mean
        return weight[None].astype(np.float32), np.array([bias], np.float32)

    @property
    def settings(self) -> dict[str, Any]:
        """See ``Classifier``."""
        return {"mean": self.mean, "deviation": self.deviation}

    @property
    def among(self) -> str:
        """See ``Classifier``."""
        return "of a number"


def load_regressor(folder: Path) -> Regressor:
    """Read what ``save_classifier`` wrote of one; see ``load_classifier``."""
    files = read_head(folder / CLASSIFIER, Regressor.kind)
    regressor = Regressor(files.encoder, files.pixels, **files.settings)
    files.fill(regressor.head, folder / CLASSIFIER)
    return regressor.eval()
