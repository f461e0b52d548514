"""A fine-tuned encoder with its head: predicting, and the files it is kept in."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from simmim.config.resolved import PixelFormat
from simmim.config.task import Pool
from simmim.data.loading.images import ImageSet
from simmim.data.names import plain
from simmim.errors import DataError
from simmim.evaluate.attentive import AttentiveHead
from simmim.evaluate.features import Progress, run_over
from simmim.evaluate.probe import Score, fit_layer, score
from simmim.interop.load import images_for, to_input
from simmim.models.encoder import Encoder
from simmim.runs.files import replacing, write_text
from simmim.tasks.heads import head_state, read_head, save_head
from simmim.training.world import ALONE, World

if TYPE_CHECKING:
    import pyarrow as pa

CLASSIFIER = "classifier.safetensors"
STRENGTH = 0.01
"""C of the logistic regression that a head starts from; more is as good, but too sure of itself
from 30 labels."""


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of images, one row each.

    Attributes:
        paths: Relative paths of the images that could be read, in the order of the image set.
        probabilities: (n, classes) float32, rows sum to 1.
        classes: Names, in the order of the columns.
        labels: (n,) int64 class indices, or None where the images have none.
        skipped: Relative paths of the images that could not be read, which have no row, each with
            its reason.
    """

    paths: list[str]
    probabilities: np.ndarray
    classes: list[str]
    labels: np.ndarray | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[Any]:
        """The most probable class of each image."""
        return [self.classes[best] for best in self.probabilities.argmax(1)]

    @property
    def truths(self) -> list[Any]:
        """The true class of each image; see ``labels``."""
        assert self.labels is not None
        return [self.classes[label] for label in self.labels]

    @property
    def metrics(self) -> dict[str, float]:
        """What metrics.jsonl says of them, compared with the labels."""
        found = self.score()
        return {"accuracy": found.accuracy, "balanced_accuracy": found.balanced_accuracy}

    def score(self) -> Score:
        """Compare with the labels.

        Raises:
            DataError: There are none.
        """
        return score(self.known(), self.probabilities, len(self.classes))

    def known(self) -> np.ndarray:
        """The labels.

        Raises:
            DataError: There are none.
        """
        if self.labels is None:
            raise DataError("these images have no labels to compare the predictions with.")
        return self.labels

    def write(self, file: Path) -> None:
        """Write path, label (where known), prediction, and a column for each class.

        Args:
            file: Ends in .csv or .parquet.
        """
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq  # slow to import

            with replacing(file) as temporary, temporary.open("wb") as stream:
                pq.write_table(self.table(), stream)
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        known = [] if self.labels is None else ["label"]
        writer.writerow(["path", *known, "prediction", *self.classes])
        best, truths = self.names, [] if self.labels is None else self.truths
        for row, path in enumerate(self.paths):
            shares = [f"{value:.6f}" for value in self.probabilities[row, : len(self.classes)]]
            writer.writerow([plain(path), *truths[row : row + 1], best[row], *shares])
        write_text(file, text.getvalue())

    def table(self) -> "pa.Table":
        """The same as columns: texts or numbers, and float32 for each class."""
        import pyarrow as pa  # slow to import

        columns = [pa.array(list(map(plain, self.paths)), pa.string())]
        names = ["path"]
        if self.labels is not None:
            columns.append(pa.array(self.truths, self.form()))
            names.append("label")
        columns.append(pa.array(self.names, self.form()))
        shares = self.probabilities.T[: len(self.classes)]
        columns += [pa.array(np.ascontiguousarray(each)) for each in shares]
        return pa.Table.from_arrays(columns, names=[*names, "prediction", *self.classes])

    @staticmethod
    def form() -> "pa.DataType":
        """The type of a prediction in a table."""
        import pyarrow as pa  # slow to import

        return pa.string()


class Classifier(nn.Module):
    """A linear layer on what is pooled of an encoder's patch tokens after its final norm.

    Args:
        encoder: The backbone.
        pixels: How images are read and normalised for it.
        classes: Names of the classes.
        outputs: Of the head, where there are none of classes.
        pool: Their mean, or what a learned query sees in them.
        seed: Of the query's first weights.

    Attributes:
        kind: The kind of the task that it answers.
        answers: What it says of images.
        outputs: Names of what it gives, and of what ``read`` makes of that.
    """

    kind: ClassVar[str] = "classify"
    answers: ClassVar[type[Predictions]] = Predictions
    outputs: ClassVar[tuple[str, str]] = ("logits", "probabilities")

    def __init__(
        self,
        encoder: Encoder,
        pixels: PixelFormat,
        classes: Sequence[str],
        *,
        outputs: int | None = None,
        pool: Pool = "mean",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pixels = pixels
        self.classes = list(classes)
        count = outputs or len(self.classes)
        if pool == "attentive":
            self.head: AttentiveHead | nn.Linear = AttentiveHead(encoder.width, count, seed)
            return
        self.head = nn.Linear(encoder.width, count)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def top(self) -> nn.Linear:
        """The linear layer."""
        return self.head.top if isinstance(self.head, AttentiveHead) else self.head

    def pool(self, tokens: Tensor) -> Tensor:
        """What the linear layer reads (B, D) of patch tokens (B, N, D)."""
        return self.head.pool(tokens) if isinstance(self.head, AttentiveHead) else tokens.mean(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of normalised images (B, C, H, W)."""
        return self.top(self.pool(self.encoder.features(images).patches))

    def read(self, outputs: Tensor) -> Tensor:
        """What the outputs (B, classes) say: probabilities."""
        return outputs.softmax(1)

    def fit(self, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights and biases of the linear layer that suits features (n, D) as they are."""
        classes = len(self.classes)
        return fit_layer(features, labels, classes=classes, strength=STRENGTH)

    @property
    def settings(self) -> dict[str, Any]:
        """What else it is built with, as JSON."""
        return {"pool": "attentive" if isinstance(self.head, AttentiveHead) else "mean"}

    @property
    def among(self) -> str:
        """What it chooses from, in words."""
        return f"among {len(self.classes)} classes"

    def timm_state(self) -> dict[str, Tensor]:
        """The encoder's weights under timm's names, and the head's."""
        return head_state(self.encoder, self.head)

    def transform(self, image: str | Path | np.ndarray) -> Tensor:
        """A path, or decoded values, as (C, H, W) float32; see ``LoadedEncoder.transform``."""
        return to_input(image, self.pixels, self.encoder.image_size)

    def predict(
        self,
        images: ImageSet | str | Path,
        *,
        batch: int = 64,
        workers: int = 0,
        progress: Progress | None = None,
        world: World = ALONE,
    ) -> Predictions:
        """Probabilities of the classes for the plain view of each image.

        Args:
            images: Read as the classifier's pixel format says, whatever their own; or where they
                are, and how deep their values lie is looked at.
            batch: Images per forward pass.
            workers: Background processes; 0 decodes in this one.
            progress: Told of each batch.
            world: The processes, each of which takes a share of the images.

        Raises:
            DataError: None of the images could be read.
        """
        own = images_for(self.pixels, images)
        size = self.encoder.image_size
        options = {"batch": batch, "workers": workers, "progress": progress, "world": world}
        table = run_over(self, own, size, **options)
        said = self.read(torch.from_numpy(table.features)).numpy()
        return self.answers(table.paths, said, self.classes, table.labels, table.skipped)


def save_classifier(
    folder: Path,
    classifier: Classifier,
    lineage: dict[str, object],
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a classifier, and its encoder as any other run's.

    ``classifier.safetensors`` holds the encoder's weights under timm's names, ``head.weight`` and
    ``head.bias``, or those of an ``AttentiveHead``. With the mean of the tokens, for the ViT and
    EVA models, ``timm.create_model(model, **arguments)`` as in encoder.json, but with
    ``num_classes`` set, takes it with no key left over or missing and gives the same logits.

    Args:
        folder: Of the run; it exists.
        classifier: What to write.
        lineage: Where the weights come from; see ``save_encoder``.
        state: The weights, where the classifier holds but this process's part of them.
    """
    save_head(
        folder / CLASSIFIER,
        classifier.kind,
        classifier.encoder,
        classifier.pixels,
        classes=classifier.classes,
        settings=classifier.settings,
        lineage=lineage,
        state=classifier.timm_state() if state is None else state,
    )


def load_classifier(folder: Path) -> Classifier:
    """Read what ``save_classifier`` wrote, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: A file is missing, damaged, of another format, or does not fit the others.
    """
    files = read_head(folder / CLASSIFIER, "classify")
    classifier = Classifier(files.encoder, files.pixels, files.classes, **files.settings)
    files.fill(classifier.head, folder / CLASSIFIER)
    return classifier.eval()
