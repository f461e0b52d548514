"""Fixed two-dimensional sine-cosine positions."""

import torch
from torch import Tensor

from simmim.errors import ConfigError


def sine_cosine(grid: tuple[int, int], width: int) -> Tensor:
    """Positions of the patches of a grid (h, w), in row-major order: (h·w, width) float32.

    The first half of the channels encodes the column, the second half the row; each half is the
    sines, then the cosines, of the coordinate times width/4 frequencies from 1 down to 1e-4 (MAE).

    Raises:
        ConfigError: ``width`` is not a multiple of 4.
    """
    if width % 4:
        raise ConfigError(
            f"sine-cosine positions need a token width that is a multiple of 4, got {width}."
        )
    quarter = width // 4
    frequency = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    row, column = torch.meshgrid(
        *(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij"
    )
    angles = [coordinate.reshape(-1, 1) * frequency for coordinate in (column, row)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1).float()
