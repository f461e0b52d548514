"""encoder.safetensors and encoder.json: the encoder as timm builds it, with all that it needs."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file

from simmim.config.resolved import PixelFormat
from simmim.config.run import FORMAT
from simmim.errors import CheckpointError
from simmim.models.encoder import Encoder
from simmim.training.files import share, sync, write_text

WEIGHTS = "encoder.safetensors"
CARD = "encoder.json"


def save_encoder(
    folder: Path, encoder: Encoder, pixels: PixelFormat, lineage: dict[str, object]
) -> None:
    """Write the deployed encoder.

    ``timm.create_model(card["model"], **card["arguments"])`` takes the weights with no key left
    over or missing and gives the same features.

    Args:
        folder: Where to.
        encoder: Its weights are written under timm's names.
        pixels: How images are normalised for it.
        lineage: Where the weights come from: recipe, run, step, what they started from, licence.
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
    state = {
        name: value.detach().cpu().contiguous() for name, value in encoder.timm_state().items()
    }
    temporary = folder / f".tmp-{WEIGHTS}"
    try:
        save_file(state, temporary, metadata={"format": "pt"})
        share(temporary)
        sync(temporary)
        temporary.replace(folder / WEIGHTS)
    finally:
        temporary.unlink(missing_ok=True)
    write_text(folder / CARD, json.dumps(card, indent=1) + "\n")


def read_card(folder: Path) -> dict:
    """What encoder.json says.

    Raises:
        CheckpointError: It is missing, not JSON, or of a format that this version does not read.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(
            f"{folder} has no {CARD} yet: the run has not saved its first checkpoint, or it is not "
            "a run folder."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
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
