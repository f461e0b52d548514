"""What a frozen encoder says of images, at several places, in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim.data.loading.images import ImageSet
from simmim.errors import ResourceError
from simmim.evaluate.features import Progress, run_over
from simmim.interop.load import LoadedEncoder
from simmim.machine import available_memory
from simmim.training.world import ALONE, World


@dataclass(frozen=True)
class Readings:
    """Features of labelled images, a row each.

    Attributes:
        labels: (n,) int64 class indices.
        pooled: (n, D) float32, the mean of the patch tokens after the final norm.
        blocks: Of each block, if asked for, (n, width) float32: its patch tokens, each brought to
            mean 0 and deviation 1 by a layer norm without parameters, and then their mean.
        tokens: (n, N, D) float32, the patch tokens after the final norm, if asked for.
        skipped: Images that could not be read, which have no row, each with its reason.
    """

    labels: np.ndarray
    pooled: np.ndarray
    blocks: Sequence[np.ndarray] = ()
    tokens: np.ndarray | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    def part(self, rows: np.ndarray) -> "Readings":
        """Those of some images."""
        return replace(
            self,
            labels=self.labels[rows],
            pooled=self.pooled[rows],
            blocks=[block[rows] for block in self.blocks],
            tokens=None if self.tokens is None else self.tokens[rows],
        )


class Reader(nn.Module):
    """Everything that is read of an image, in one row.

    Args:
        encoder: It stays as it is.
        blocks: Read each block.
        tokens: Read every patch token.
    """

    def __init__(self, encoder: LoadedEncoder, *, blocks: bool, tokens: bool) -> None:
        super().__init__()
        self.encoder = encoder.encoder
        self.layers = tuple(range(self.encoder.depth)) if blocks else ()
        self.tokens = tokens
        self.shapes: list[torch.Size] = []

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) → (B, values); ``shapes`` tells how they are cut."""
        found = self.encoder.features(images, self.layers)
        parts = [found.patches.mean(1)]
        parts += [F.layer_norm(x, x.shape[-1:]).mean(1) for x in found.layers]
        parts += [found.patches] if self.tokens else []
        self.shapes = [part.shape[1:] for part in parts]
        return torch.cat([part.flatten(1) for part in parts], 1)


def read(
    encoder: LoadedEncoder,
    images: ImageSet,
    *,
    blocks: bool = False,
    tokens: bool = False,
    batch: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
    world: World = ALONE,
) -> Readings:
    """Read labelled images; see ``simmim.evaluate.features.extract``.

    Args:
        encoder: It stays as it is.
        images: With labels; they are read as the encoder's pixel format says.
        blocks: Read each block.
        tokens: Read every patch token.
        batch: Images per forward pass.
        workers: Background processes.
        progress: Told of each batch.
        world: The processes.

    Raises:
        DataError: None of the images could be read.
        ResourceError: The tokens do not fit in the memory.
    """
    size = encoder.image_size
    if tokens:
        _check_memory(encoder, len(images))
    reader = Reader(encoder, blocks=blocks, tokens=tokens)
    own = replace(images, pixels=encoder.pixels)
    table = run_over(
        reader, own, size, batch=batch, workers=workers, progress=progress, world=world
    )
    assert table.labels is not None
    shapes = reader.shapes
    ends = np.cumsum([shape.numel() for shape in shapes])
    cut = np.split(table.features, ends[:-1], axis=1)
    parts = [part.reshape(-1, *shape) for part, shape in zip(cut, shapes, strict=True)]
    pooled, *rest = parts
    last = rest.pop() if tokens else None
    return Readings(table.labels, pooled, rest, last, table.skipped)


def _check_memory(encoder: LoadedEncoder, images: int) -> None:
    height, width = encoder.image_size
    inner = encoder.encoder
    values = height // inner.stride * (width // inner.stride) * inner.width
    need = 2 * 4 * images * values  # once as rows, once as a table
    free = available_memory(torch.device("cpu"))
    if need > free:
        raise ResourceError(
            f"the patch tokens of {images:,} images take {need / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free. Probe with fewer images, or with --protocol linear."
        )
