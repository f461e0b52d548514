"""The mask of a batch."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simmim.errors import ConfigError


@dataclass(frozen=True)
class Mask:
    """Masked patches of a batch, in row-major patch order.

    Every image masks the same number, so visible and masked patches are dense tensors and shapes
    are static.

    Attributes:
        masked: bool (B, N), True where the patch is masked.
        count: Masked patches per image, M.
        grid: Patches per column and per row, (h, w); N = h·w.
        visible_index: int64 (B, N - M), ascending.
        masked_index: int64 (B, M), ascending.
    """

    masked: Tensor
    count: int
    grid: tuple[int, int]
    visible_index: Tensor
    masked_index: Tensor

    @classmethod
    def _of(cls, masked: Tensor, count: int, grid: tuple[int, int]) -> "Mask":
        # A stable sort lists visible patches first, without the host's wait that nonzero() needs.
        order = masked.byte().argsort(dim=1, stable=True)
        visible = masked.shape[1] - count
        return cls(masked, count, grid, order[:, :visible], order[:, visible:])

    @classmethod
    def top(cls, scores: Tensor, count: int, grid: tuple[int, int]) -> "Mask":
        """Mask the ``count`` patches of the highest score, of each row of ``scores`` (B, N)."""
        chosen = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
        masked = torch.zeros_like(scores, dtype=torch.bool).scatter(1, chosen, value=True)
        return cls._of(masked, count, grid)

    @classmethod
    def given(cls, masked: Tensor, grid: tuple[int, int]) -> "Mask":
        """The mask that a caller made.

        Args:
            masked: bool (B, N), True where a patch is masked; the same count in every row.
            grid: Patches per column and per row.

        Raises:
            ConfigError: Another shape or type, rows that differ in count, or nothing masked or
                nothing visible.
        """
        patches = math.prod(grid)
        if masked.dtype != torch.bool or masked.ndim != 2 or masked.shape[1] != patches:
            raise ConfigError(
                f"masked must be boolean of shape (B, {patches}), one value per patch of the "
                f"{grid[0]}×{grid[1]} grid; got {masked.dtype} {tuple(masked.shape)}."
            )
        counts = masked.sum(1).unique().tolist()
        if len(counts) != 1:
            raise ConfigError(
                f"every image must mask the same number of patches; the rows have {counts}."
            )
        if not 0 < counts[0] < patches:
            raise ConfigError(f"{counts[0]} of {patches} patches are masked; need 1 to N - 1.")
        return cls._of(masked, counts[0], grid)

    def refine(self, factor: int) -> "Mask":
        """The same mask on a grid that is ``factor`` times finer in both directions."""
        if factor == 1:
            return self
        h, w = self.grid
        fine = self.masked.view(-1, h, w)
        fine = fine.repeat_interleave(factor, 1).repeat_interleave(factor, 2).flatten(1)
        return Mask._of(fine, self.count * factor**2, (h * factor, w * factor))


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Rows of ``values`` (B, N, …) at ``index`` (B, L) → (B, L, …)."""
    rows = torch.arange(len(index), device=index.device)[:, None]
    return values[rows, index]
