"""A fine-tuned encoder with its head: predicting, and the files it is kept in."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from simmim.config.resolved import PixelFormat
from simmim.data.loading.images import ImageSet
from simmim.data.names import plain
from simmim.errors import DataError
from simmim.evaluate.features import Progress, run_over
from simmim.evaluate.probe import Score, score
from simmim.interop.load import images_for, to_input
from simmim.models.encoder import Encoder
from simmim.runs.files import replacing, write_text
from simmim.tasks.heads import head_state, read_head, save_head
from simmim.training.world import ALONE, World

if TYPE_CHECKING:
    import pyarrow as pa

CLASSIFIER = "classifier.safetensors"


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
    def names(self) -> list[str]:
        """The most probable class of each image."""
        return [self.classes[best] for best in self.probabilities.argmax(1)]

    def score(self) -> Score:
        """Compare with the labels.

        Raises:
            DataError: There are none.
        """
        if self.labels is None:
            raise DataError("these images have no labels to compare the predictions with.")
        return score(self.labels, self.probabilities, len(self.classes))

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
        best = self.names
        for row, path in enumerate(self.paths):
            label = [] if self.labels is None else [self.classes[self.labels[row]]]
            shares = [f"{value:.6f}" for value in self.probabilities[row]]
            writer.writerow([plain(path), *label, best[row], *shares])
        write_text(file, text.getvalue())

    def table(self) -> "pa.Table":
        """The same as columns: texts, and float32 for each class."""
        import pyarrow as pa  # slow to import

        columns = [pa.array(list(map(plain, self.paths)), pa.string())]
        names = ["path"]
        if self.labels is not None:
            columns.append(pa.array([self.classes[label] for label in self.labels], pa.string()))
            names.append("label")
        columns.append(pa.array(self.names, pa.string()))
        columns += [pa.array(np.ascontiguousarray(each)) for each in self.probabilities.T]
        return pa.Table.from_arrays(columns, names=[*names, "prediction", *self.classes])


class Classifier(nn.Module):
    """A linear layer on the mean of an encoder's patch tokens after its final norm.

    Args:
        encoder: The backbone.
        pixels: How images are read and normalised for it.
        classes: Names of the classes.
    """

    def __init__(self, encoder: Encoder, pixels: PixelFormat, classes: Sequence[str]) -> None:
        super().__init__()
        self.encoder = encoder
        self.pixels = pixels
        self.classes = list(classes)
        self.head = nn.Linear(encoder.width, len(self.classes))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of normalised images (B, C, H, W)."""
        return self.head(self.encoder.features(images).patches.mean(1))

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
        probabilities = torch.from_numpy(table.features).softmax(1).numpy()
        return Predictions(table.paths, probabilities, self.classes, table.labels, table.skipped)


def save_classifier(
    folder: Path,
    classifier: Classifier,
    lineage: dict[str, object],
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a classifier, and its encoder as any other run's.

    ``classifier.safetensors`` holds the encoder's weights under timm's names, ``head.weight`` and
    ``head.bias``. For the ViT and EVA models, ``timm.create_model(model, **arguments)`` as in
    encoder.json, but with ``num_classes`` set, takes it with no key left over or missing and gives
    the same logits.

    Args:
        folder: Of the run; it exists.
        classifier: What to write.
        lineage: Where the weights come from; see ``save_encoder``.
        state: The weights, where the classifier holds but this process's part of them.
    """
    save_head(
        folder / CLASSIFIER,
        "classify",
        classifier.encoder,
        classifier.pixels,
        classes=classifier.classes,
        settings={},
        lineage=lineage,
        state=classifier.timm_state() if state is None else state,
    )


def load_classifier(folder: Path) -> Classifier:
    """Read what ``save_classifier`` wrote, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: A file is missing, damaged, of another format, or does not fit the others.
    """
    files = read_head(folder / CLASSIFIER, "classify")
    classifier = Classifier(files.encoder, files.pixels, files.classes)
    files.fill(classifier.head, folder / CLASSIFIER)
    return classifier.eval()
