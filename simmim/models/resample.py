"""Where patches are, for another grid: by the rule of the code that each weight comes from.

Absolute positions are resampled as MAE's code does, tables of relative ones as SimMIM's does, which
has it from BEiT. Both are used in two ways: on the weights, once, where an encoder is built for
another size (loading, fine-tuning, ``load_timm_state``), and on the fly, so that gradients reach
the weights as they are, where an encoder is given another grid than its own (``Encoder.forward``).
"""

from collections.abc import Mapping

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from simmim.errors import CheckpointError

Grid = tuple[int, int]


def resample_state(
    state: Mapping[str, Tensor], old: Mapping[str, Grid], new: Mapping[str, Grid]
) -> dict[str, Tensor]:
    """The weights of ``state`` that another grid changes, resampled.

    Args:
        state: Weights by timm's names.
        old: ``Encoder.places`` of an encoder whose weights they are.
        new: ``Encoder.places`` of the one that they are for.
    """
    changed = [n for n in state if n in old and n in new and old[n] != new[n]]
    return {
        name: (resample_table if name.endswith("table") else resample_positions)(
            state[name], old[name], new[name]
        )
        for name in changed
    }


def resample_positions(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """Absolute positions (1, R + N, D) for another grid; the R first, of prefix tokens, stay.

    Bicubic without antialiasing, as in facebookresearch/mae (util/pos_embed.py); timm's own
    default is with it.
    """
    prefix = positions.shape[1] - old[0] * old[1]
    if prefix < 0:
        raise CheckpointError(
            f"pos_embed has {positions.shape[1]} positions, fewer than the {old[0]}×{old[1]} "
            "patches."
        )
    return resample_abs_pos_embed(
        positions, list(new), list(old), num_prefix_tokens=prefix, antialias=False
    )


def resample_table(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """A table of relative positions ((2h - 1)(2w - 1) + extra, heads) for another window.

    Near offsets keep their place and far ones are spread: the old offsets are put at geometric
    distances that reach to the new edge, and a cubic spline through them is read at the new ones
    (microsoft/SimMIM, utils.py; first in BEiT; timm's is linear). The extra rows, of the class
    token, stay.
    """
    return spread_table(table, *spread(old, new))


def spread_table(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``resample_table``, by what ``spread`` gives for the two windows."""
    height, width = rows.shape[1], columns.shape[1]
    inner, extra = table.split([height * width, len(table) - height * width])
    inner = inner.float().view(height, 1, width, -1)
    # Sums rather than matrix products, which autocast would round.
    along = (columns[:, :, None] * inner).sum(2)  # height, new width, heads
    across = (rows[:, :, None, None] * along).sum(1)  # new height, new width, heads
    return torch.cat([across.flatten(0, 1).to(table.dtype), extra])


def spread(old: Grid, new: Grid) -> tuple[Tensor, Tensor]:
    """The matrices (2h' - 1, 2h - 1) and (2w' - 1, 2w - 1) from old offsets to new ones."""
    return _spline(2 * old[0] - 1, 2 * new[0] - 1), _spline(2 * old[1] - 1, 2 * new[1] - 1)


@torch.compiler.assume_constant_result
def _spline(old: int, new: int) -> Tensor:
    """Values at the ``new`` offsets of one axis, of splines through each of the ``old`` ones."""
    if old == 1:
        return torch.ones(new, 1)
    places = _geometric(old, new)
    spline = make_interp_spline(places, np.eye(old), k=min(3, old - 1))
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
