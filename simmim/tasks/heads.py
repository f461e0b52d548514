"""A fine-tuned encoder with its head, as files: weights, and what else builds it again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from simmim.config.resolved import PixelFormat
from simmim.config.run import FORMAT
from simmim.config.seal import read_sealed, seal_json
from simmim.errors import CheckpointError
from simmim.interop.load import load_encoder
from simmim.interop.weight_files import read_own_weights
from simmim.models.encoder import Encoder
from simmim.runs.encoder import save_encoder, write_weights
from simmim.runs.files import write_text

CLASSES = "classes.json"
HEAD = "head."
"""How the names of a head's weights begin; the other names are timm's."""


@dataclass(frozen=True)
class HeadFiles:
    """What is in the files.

    Attributes:
        encoder: With its weights.
        pixels: How images are read for it.
        classes: Names of the classes.
        settings: What else the head is built with.
        head: Its weights, by their names in it.
    """

    encoder: Encoder
    pixels: PixelFormat
    classes: list[str]
    settings: dict[str, Any]
    head: dict[str, Tensor]

    def fill(self, head: nn.Module, file: Path) -> None:
        """Load the weights of the head into it.

        Raises:
            CheckpointError: They do not fit.
        """
        try:
            head.load_state_dict(self.head)
        except RuntimeError as error:
            raise CheckpointError(
                f"{file} does not fit {file.parent / CLASSES}: {error}"
            ) from error


def head_state(encoder: Encoder, head: nn.Module) -> dict[str, Tensor]:
    """The encoder's weights under timm's names, and the head's."""
    own = {HEAD + name: value for name, value in head.state_dict().items()}
    return {**encoder.timm_state(), **own}


def save_head(
    file: Path,
    task: str,
    encoder: Encoder,
    pixels: PixelFormat,
    *,
    classes: list[str],
    settings: Mapping[str, Any],
    lineage: dict[str, object],
    state: Mapping[str, Tensor],
) -> None:
    """Write weights, classes.json beside them, and the encoder as any other run's.

    Args:
        file: Of the weights, in a folder that exists.
        task: The kind of the task.
        encoder: What ``state`` was taken of, or a part of it.
        pixels: How images are read for it.
        classes: Names of the classes.
        settings: What else the head is built with, as JSON.
        lineage: Where the weights come from; see ``save_encoder``.
        state: As ``head_state`` gives it.
    """
    own = {name: value for name, value in state.items() if not name.startswith(HEAD)}
    save_encoder(file.parent, encoder, pixels, lineage, own)
    write_weights(file, state)
    document = {"format": FORMAT, "task": task, "classes": classes, "settings": dict(settings)}
    write_text(file.parent / CLASSES, seal_json(document))


def read_head(file: Path, task: str) -> HeadFiles:
    """Read what ``save_head`` wrote.

    Raises:
        CheckpointError: A file is missing, damaged, or of another format or task.
    """
    folder = file.parent
    document = read_document(folder)
    if document.get("task") != task:
        raise CheckpointError(
            f"{folder / CLASSES} is of the task {document.get('task')}, and {task} is needed here."
        )
    try:
        state = read_own_weights(file)
    except CheckpointError as error:
        raise _not_whole(folder, error) from error
    loaded = load_encoder(folder)
    head = {n.removeprefix(HEAD): state.pop(n) for n in list(state) if n.startswith(HEAD)}
    loaded.encoder.load_timm_state(state)
    settings = document.get("settings", {})
    return HeadFiles(loaded.encoder, loaded.pixels, document["classes"], settings, head)


def read_document(folder: Path) -> dict[str, Any]:
    """Read classes.json, which names the task.

    Raises:
        CheckpointError: It is missing, damaged or of another format.
    """
    try:
        document = json.loads(read_sealed(folder / CLASSES, "", foreign=True).text)
    except (CheckpointError, ValueError) as error:
        raise _not_whole(folder, error) from error
    if document.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / CLASSES} has format {document.get('format')}; this simmim reads format "
            f"{FORMAT}. Use the version that wrote it."
        )
    return document


def _not_whole(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{folder} holds no whole encoder with its head: {error}. `simmim finetune` writes one."
    )
