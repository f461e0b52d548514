"""encoder.safetensors and encoder.json: the smallest that timm and simmim can read."""

from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from simmim.interop.export.check import differences, largest
from simmim.interop.export.model import Graph, Subject
from simmim.interop.export.timm import compare_weights, timm_features
from simmim.interop.load import load_encoder
from simmim.runs.encoder import WEIGHTS, read_card, save_encoder


def write_plain(folder: Path, subject: Subject, *, licence: str, lineage: dict[str, Any]) -> None:
    """Write the two files into a folder that exists; the head of ``subject`` is left out."""
    save_encoder(folder, subject.encoder, subject.pixels, {**lineage, "licence": licence})


def compare_plain(folder: Path, subject: Subject, images: Tensor) -> dict[str, float]:
    """Load what ``write_plain`` wrote with timm and with simmim, and run both.

    ``images`` are normalised (B, C, H, W). Returns the largest relative difference of each output,
    and of the weights.
    """
    card = read_card(folder)
    net = timm.create_model(
        card["model"], checkpoint_path=folder / WEIGHTS, **card["arguments"]
    ).eval()
    loaded = load_encoder(folder)
    ours = Graph(Subject(encoder=subject.encoder, pixels=subject.pixels)).named(images)
    again = Graph(Subject(encoder=loaded.encoder, pixels=loaded.pixels)).named(images)
    found = largest(differences(ours, timm_features(net, images)), differences(ours, again))
    return found | {"weights": compare_weights(subject, folder / WEIGHTS)}
