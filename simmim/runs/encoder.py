"""encoder.safetensors and encoder.json: the encoder as timm builds it, with all that it needs."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from simmim.config.resolved import PixelFormat
from simmim.config.run import FORMAT
from simmim.config.seal import read_sealed, seal_json
from simmim.errors import CheckpointError
from simmim.models.encoder import Encoder
from simmim.runs.files import replacing, share, write_text

WEIGHTS = "encoder.safetensors"
CARD = "encoder.json"
HASH = "sha256"
AGAIN = (
    "`simmim pretrain --resume RUN` writes it anew; the folders in RUN/checkpoints hold the same "
    "encoder."
)


def save_encoder(
    folder: Path,
    encoder: Encoder,
    pixels: PixelFormat,
    lineage: dict[str, object],
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the deployed encoder.

    ``timm.create_model(card["model"], **card["arguments"])`` takes the weights with no key left
    over or missing and gives the same features.

    Args:
        folder: Where to.
        encoder: Its weights are written under timm's names.
        pixels: How images are normalised for it.
        lineage: Where the weights come from: recipe, run, step, what they started from, licence.
        state: The weights, where the encoder itself holds but this process's part of them.
    """
    card = {
        "format": FORMAT,
        "model": encoder.model,
        "arguments": encoder.arguments,
        "image_size": list(encoder.image_size),
        "patch_size": encoder.patch,
        "channels": encoder.channels,
        "width": encoder.width,
        "pixels": asdict(pixels),
        "mean": list(pixels.mean),
        "std": list(pixels.std),
        "licence": lineage.pop("licence", "yours: the weights were trained on your images alone"),
        "lineage": lineage,
    }
    write_weights(folder / WEIGHTS, encoder.timm_state() if state is None else state)
    write_text(folder / CARD, seal_json(card))


def write_weights(file: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as a whole or not at all, with the hash of them all in the file's metadata."""
    plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with replacing(file) as temporary:
        # One key: the library writes several in any order, and equal weights are equal files.
        save_file(plain, temporary, metadata={HASH: hash_of(plain)})
        share(temporary)


def hash_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_card(folder: Path) -> dict:
    """What encoder.json says.

    Raises:
        CheckpointError: It is missing, not JSON, or of a format that this version does not read.
    """
    path = folder / CARD
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no {CARD} yet: the run has not saved its first checkpoint, or it is not "
            "a run folder."
        )
    try:
        card = json.loads(read_sealed(path, AGAIN, foreign=True).text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}. {AGAIN}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        number = card.get("format") if isinstance(card, dict) else None
        raise CheckpointError(
            f"{path} has format {number}; this simmim reads format {FORMAT}. Use the version that "
            "wrote it."
        )
    return card


def read_pixels(card: dict) -> PixelFormat:
    """The normalisation in a card."""
    values = dict(card["pixels"])
    channels = {name: tuple(values[name]) for name in ("low", "high", "mean", "std")}
    return PixelFormat(**{**values, **channels})
