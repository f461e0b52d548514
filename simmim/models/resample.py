"""Where patches are, for another grid.

There are two rules, and each has its use:

- ``original``: on the weights, once, where an encoder is built for another size (loading,
  fine-tuning, ``load_timm_state``), as the originals' code for fine-tuning does. Absolute positions
  are bicubic as in MAE's; tables of relative ones follow a cubic spline over geometric distances,
  as in SimMIM's, which has it from BEiT.
- ``timm``: on the fly, where an encoder is given another grid than its own (``Encoder.forward``),
  as timm's models do. Absolute positions are bicubic and antialiased, and tables are linear over
  the same distances. Gradients reach the weights as they are.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from simmim.errors import CheckpointError

Grid = tuple[int, int]
Rule = Literal["original", "timm"]
"""Whose code is followed."""


def resample_state(
    state: Mapping[str, Tensor],
    old: Mapping[str, Grid],
    new: Mapping[str, Grid],
    rule: Rule = "original",
) -> dict[str, Tensor]:
    """The weights of ``state`` that another grid changes, resampled.

    Args:
        state: Weights by timm's names.
        old: ``Encoder.places`` of an encoder whose weights they are.
        new: ``Encoder.places`` of the one that they are for.
        rule: See above.
    """
    changed = [n for n in state if n in old and n in new and old[n] != new[n]]
    return {
        name: (resample_table if name.endswith("table") else resample_positions)(
            state[name], old[name], new[name], rule
        )
        for name in changed
    }


def resample_positions(positions: Tensor, old: Grid, new: Grid, rule: Rule = "original") -> Tensor:
    """Absolute positions (1, R + N, D) for another grid; the R first, of prefix tokens, stay.

    Bicubic: without antialiasing as in facebookresearch/mae (util/pos_embed.py), or with it as is
    timm's default. Only a smaller grid makes a difference.
    """
    prefix = positions.shape[1] - old[0] * old[1]
    if prefix < 0:
        raise CheckpointError(
            f"pos_embed has {positions.shape[1]} positions, fewer than the {old[0]}×{old[1]} "
            "patches."
        )
    return resample_abs_pos_embed(
        positions, list(new), list(old), num_prefix_tokens=prefix, antialias=rule == "timm"
    )


def resample_table(table: Tensor, old: Grid, new: Grid, rule: Rule = "original") -> Tensor:
    """A table of relative positions ((2h - 1)(2w - 1) + extra, heads) for another window.

    Near offsets keep their place and far ones are spread: the old offsets are put at geometric
    distances that reach to the new edge, and a cubic spline through them (microsoft/SimMIM,
    utils.py; first in BEiT), or lines between them (timm), are read at the new ones. The extra
    rows, of the class token, stay.
    """
    return spread_table(table, *spread(old, new, rule))


def spread_table(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``resample_table``, by what ``spread`` gives for the two windows."""
    height, width = rows.shape[1], columns.shape[1]
    inner, extra = table.split([height * width, len(table) - height * width])
    inner = inner.float().view(height, 1, width, -1)
    # Sums rather than matrix products, which autocast would round.
    along = (columns[:, :, None] * inner).sum(2)  # height, new width, heads
    across = (rows[:, :, None, None] * along).sum(1)  # new height, new width, heads
    return torch.cat([across.flatten(0, 1).to(table.dtype), extra])


def spread(old: Grid, new: Grid, rule: Rule) -> tuple[Tensor, Tensor]:
    """The matrices (2h' - 1, 2h - 1) and (2w' - 1, 2w - 1) from old offsets to new ones."""
    degree = 3 if rule == "original" else 1
    rows, columns = (_spline(2 * o - 1, 2 * n - 1, degree) for o, n in zip(old, new, strict=True))
    return rows, columns


@torch.compiler.assume_constant_result
def _spline(old: int, new: int, degree: int) -> Tensor:
    """Values at the ``new`` offsets of one axis, of splines through each of the ``old`` ones."""
    if old == 1:
        return torch.ones(new, 1)
    places = _geometric(old, new)
    spline = make_interp_spline(places, np.eye(old), k=min(degree, old - 1))
    offsets = np.arange(-(new // 2), new // 2 + 1)
    return torch.from_numpy(spline(offsets.clip(places[0], places[-1]))).float()


def _geometric(old: int, new: int) -> np.ndarray:
    """Where the ``old`` offsets of one axis lie among the ``new`` ones, from -edge to edge."""
    half, edge = old // 2, new // 2
    low, high, ratio = 1.01, 1.5, 1.0
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**half) / (1 - ratio) > edge:
            high = ratio
        else:
            low = ratio
    distances = np.cumsum(ratio ** np.arange(half))
    return np.concatenate([-distances[::-1], [0.0], distances])
