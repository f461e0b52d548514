"""What the loader hands to a task."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass
class Batch:
    """Images with their places in the run.

    Attributes:
        images: (b, C, H, W), channels last in memory, uint8 or float32, decoded values, not
            normalised.
        t: (b,) int64, places in the run: step · global batch + row; for plain views, indices.
        labels: (b,) int64 class indices, or None.
        index: (b,) int64, which of the images listed each one is.
    """

    images: Tensor
    t: Tensor
    labels: Tensor | None = None
    index: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on ``device``; from pinned memory without waiting."""
        return self._map(lambda value: value.to(device, non_blocking=True))

    def head(self, rows: int) -> "Batch":
        """Return the first ``rows`` images, or all that there are."""
        return self._map(lambda value: value[:rows])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: change(v) for name, v in values.items() if v is not None})
