"""A fine-tuned encoder with its head, of whatever task."""

from pathlib import Path

from simmim.errors import CheckpointError
from simmim.tasks.classifier import Classifier, load_classifier
from simmim.tasks.detector import Detector, load_detector
from simmim.tasks.heads import CLASSES, read_document
from simmim.tasks.regressor import Regressor, load_regressor
from simmim.tasks.segmenter import Segmenter, load_segmenter
from simmim.tasks.tagger import Tagger, load_tagger


def load_head(folder: Path) -> Classifier | Segmenter | Detector:
    """Read what a fine-tuning wrote, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: A file is missing, damaged, of another format, or does not fit the others.
    """
    task = read_document(folder).get("task")
    match task:
        case "classify":
            return load_classifier(folder)
        case Tagger.kind:
            return load_tagger(folder)
        case Regressor.kind:
            return load_regressor(folder)
        case "segment":
            return load_segmenter(folder)
        case "detect":
            return load_detector(folder)
        case _:
            raise CheckpointError(f"{folder / CLASSES} is of the task {task}, which is not known.")
