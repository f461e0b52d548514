"""What is exported, and what it gives for images: the same terms for every format."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simmim.config.resolved import PixelFormat
from simmim.data.audit.scaling import range_in_words
from simmim.models.encoder import Encoder
from simmim.tensors.patches import clip, normalise

INPUT = "images"
"""Name of what a graph takes."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An encoder, perhaps with the head of a task.

    Attributes:
        encoder: In evaluation mode, on the CPU.
        pixels: How decoded values are normalised for it.
        net: The encoder with its head: what it gives for normalised images, its ``read`` turns into
            what that says, by the names in its ``outputs``; None: features alone.
        classes: Names of what it tells apart.
    """

    encoder: Encoder
    pixels: PixelFormat
    net: Any = None
    classes: Sequence[str] = ()

    @property
    def kind(self) -> str | None:
        """The task that it is for."""
        return None if self.net is None else self.net.kind

    @property
    def head(self) -> nn.Linear | None:
        """The linear layer of a classifier, where it lies on the mean of the patch tokens."""
        head = self.net.head if self.kind == "classify" else None
        return head if isinstance(head, nn.Linear) else None


class Graph(nn.Module):
    """From images to named outputs, as one call that can be traced.

    Args:
        subject: What is exported.
        normalised: True: it takes normalised images; False: decoded values as float, which it
            normalises itself.

    Attributes:
        outputs: Names of what ``forward`` returns.
    """

    def __init__(self, subject: Subject, *, normalised: bool = True) -> None:
        super().__init__()
        self.encoder = subject.encoder
        self.net = subject.net
        self.pixels = subject.pixels
        self.classes = list(subject.classes)
        self.normalised = normalised
        self.outputs: tuple[str, str] = ("features", "tokens")
        if subject.net is not None:
            self.outputs = subject.net.outputs
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) → pooled (B, D) and tokens (B, N, D), or what the head gives and says."""
        if not self.normalised:
            images = normalise(clip(images, self.pixels), self.pixels)
        if self.net is not None:
            given = self.net(images)
            return given, self.net.read(given).float()
        tokens = self.encoder.features(images).patches
        return tokens.mean(1), tokens

    @property
    def example(self) -> Tensor:
        """Two images to trace with: a batch of one would be taken for a constant."""
        return torch.zeros(2, self.encoder.channels, *self.encoder.image_size)

    def named(self, images: Tensor) -> dict[str, Tensor]:
        """``forward`` by name, without gradients."""
        with torch.inference_mode():
            return dict(zip(self.outputs, self(images), strict=True))


def facts_of(graph: Graph, *, licence: str) -> dict[str, str]:
    """What a user of the graph alone must know, as text by name."""
    encoder, pixels = graph.encoder, graph.pixels
    takes = (
        "float32 (batch, channels, height, width), normalised: ((value - low)/(high - low) - mean)"
        "/std"
        if graph.normalised
        else f"float32 (batch, channels, height, width), decoded values {range_in_words(pixels)}"
    )
    facts = {
        "input": takes,
        "image_size": json.dumps(list(encoder.image_size)),
        "channels": str(encoder.channels),
        "low": json.dumps(list(pixels.low)),
        "high": json.dumps(list(pixels.high)),
        "mean": json.dumps(list(pixels.mean)),
        "std": json.dumps(list(pixels.std)),
        "normalised_inside": json.dumps(not graph.normalised),
        "licence": licence,
        "model": encoder.model,
    }
    if graph.classes:
        facts["classes"] = json.dumps(graph.classes, ensure_ascii=False)
    return facts
