"""What the loader hands to a task."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

IGNORE = -100
"""Class of a pixel or box of which nothing is known: what torch's losses leave out."""


@dataclass
class Batch:
    """Images with their places in the run, and what a task asks for beside them.

    Attributes:
        images: (b, C, H, W), channels last in memory, uint8 or float32, decoded values, not
            normalised.
        t: (b,) int64, places in the run: step · global batch + row; for plain views, indices.
        labels: (b,) int64 class indices; (b, classes) int64, 1 for each class of an image, else 0;
            (b,) float32 numbers; or None.
        index: (b,) int64, which of the images listed each one is.
        frames: (b, 2) int64, height and width of the images that plain views are of; or None.
        views: Further views of the images, each like ``images``, of its own size; or None.
        maps: (b, H, W) int32, the values of the label map at the pixels of the images, ``IGNORE``
            for an image without one; or None.
        boxes: (b, n, 4) float32, left, top, right and bottom of objects in pixels of the view,
            where ``valid``, else 0; or None.
        categories: (b, n) int64, what each box holds, ``IGNORE`` where there is none; or None.
        crowd: (b, n) bool, whether a box holds a group that was not told apart; or None.
        valid: (b, n) bool, whether there is a box; those of an image come first; or None.
        masks: (b, n, H, W / 8 rounded up) uint8, which pixels of the view each box's object covers,
            eight to a byte, the first in its highest bit; none where no mask is told; or None.
        captions: A text for each image, empty where it has none; or None.
    """

    images: Tensor
    t: Tensor
    labels: Tensor | None = None
    index: Tensor | None = None
    views: tuple[Tensor, ...] | None = None
    maps: Tensor | None = None
    boxes: Tensor | None = None
    categories: Tensor | None = None
    crowd: Tensor | None = None
    valid: Tensor | None = None
    masks: Tensor | None = None
    captions: list[str] | None = None
    frames: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on ``device``; from pinned memory without waiting."""
        return self._map(lambda value: _to(value, device))

    def head(self, rows: int) -> "Batch":
        """Return the first ``rows`` images, or all that there are."""
        return self._map(lambda value: value[:rows])

    def _map(self, change: Callable[[Any], Any]) -> "Batch":
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        changed = {
            name: tuple(map(change, value)) if isinstance(value, tuple) else change(value)
            for name, value in values.items()
            if value is not None
        }
        return replace(self, **changed)


def unpack_masks(bits: Tensor, width: int) -> Tensor:
    """Masks (…, H, W), 0 or 1 in uint8, of so many columns, from those of ``Batch.masks``."""
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    return (bits[..., None] >> places).bitwise_and(1).flatten(-2)[..., :width]


def _to(value: Any, device: torch.device | str) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
