"""Bring a checkpoint to other images: another size, patch, or number of channels."""

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import RectBivariateSpline
from timm.layers.patch_embed import resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor

from simmim.config.encoder import EncoderConfig
from simmim.config.resolved import PixelFormat
from simmim.errors import CheckpointError
from simmim.interop.checkpoint import Found
from simmim.models.build import build_encoder

Row = tuple[str, str]
"""What was changed, and how."""
PROJECTION = "patch_embed.proj.weight"
TABLE = "relative_position_bias_table"


def fit(
    found: Found, image_size: tuple[int, int], patch: int, pixels: PixelFormat
) -> tuple[Found, list[Row]]:
    """The checkpoint for other images, and a row for each thing that was changed.

    Absolute positions are resampled as MAE's code does (bicubic), tables of relative ones as
    SimMIM's (geometric), the patch projection so that its answers stay (FlexiViT), and further
    channels repeat the first ones, scaled so that the sum stays (timm). A decoder whose patches
    would be others is left out.

    Raises:
        ConfigError: The patch does not divide the size.
    """
    channels = pixels.channels
    if (image_size, patch, channels) == (found.image_size, found.patch, found.pixels.channels):
        return replace(found, pixels=pixels), []
    weight, rows = _project(found, patch, channels)
    state = {**found.encoder, PROJECTION: weight}
    rows += _place(state, _shapes(found, image_size, patch, channels), found, image_size, patch)
    rest = found.pretraining
    if rest is not None and (patch, channels) != (found.patch, found.pixels.channels):
        rest = None
        rows.append(("decoder", "new: that of the checkpoint predicts patches of other values"))
    elif rest is not None:
        rest = replace(rest, position=None)  # they follow the grid
    fitted = replace(
        found, encoder=state, image_size=image_size, patch=patch, pixels=pixels, pretraining=rest
    )
    return fitted, rows


def _project(found: Found, patch: int, channels: int) -> tuple[Tensor, list[Row]]:
    """The patch projection for another patch and other channels."""
    rows: list[Row] = []
    weight = found.encoder[PROJECTION]
    if channels != found.pixels.channels:
        weight = _adapt_channels(weight, channels)
        how = "summed" if channels == 1 else "repeated and scaled"
        change = f"{found.pixels.channels} → {channels}: the patch projection {how}"
        rows.append(("channels", change))
    if patch != found.patch:
        weight = resample_patch_embed(weight, [patch, patch])
        rows.append(("patch", f"{found.patch} → {patch}: the patch projection resampled"))
    return weight, rows


def _place(
    state: dict[str, Tensor],
    wanted: dict[str, torch.Size],
    found: Found,
    image_size: tuple[int, int],
    patch: int,
) -> list[Row]:
    """Resample what says where patches are, in place, to the shapes that are wanted."""
    rows: list[Row] = []
    old, new = _grid(found.image_size, found.patch), _grid(image_size, patch)
    resampled = 0
    for name in wanted.keys() & state.keys():
        value, shape = state[name], wanted[name]
        if name == "pos_embed" and (old != new or value.shape != shape):
            state[name] = resample_positions(value, old, new)
            rows.append(("positions", f"{_by(old)} → {_by(new)} patches, bicubic"))
        elif name.endswith(TABLE) and (value.shape != shape or (old != new and _beit(value, old))):
            state[name] = resample_table(value, *_windows(value, shape, old, new))
            resampled += 1
    if resampled:
        rows.append(("relative", f"{resampled} tables of positions resampled, geometric"))
    return rows


def resample_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Absolute positions (1, R + N, D) for another grid; the R first, of prefix tokens, stay.

    Bicubic without antialiasing, as in facebookresearch/mae (util/pos_embed.py).
    """
    prefix = positions.shape[1] - old[0] * old[1]
    if prefix < 0:
        raise CheckpointError(
            f"pos_embed has {positions.shape[1]} positions, fewer than the {_by(old)} patches."
        )
    grid = positions[:, prefix:].float().unflatten(1, old).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    grid = grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :prefix], grid], dim=1)


def resample_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A table of relative positions ((2h - 1)(2w - 1) + extra, heads) for another window.

    Near offsets keep their place and far ones are spread: the old offsets are put at geometric
    distances that reach to the new edge, and a bicubic spline through them is read at the new
    ones (microsoft/SimMIM, utils.py; first in BEiT). The extra rows, of the class token, stay.
    """
    sides = (2 * old[0] - 1, 2 * old[1] - 1)
    extra = table.shape[0] - sides[0] * sides[1]
    rows, columns = (_geometric(a, 2 * b - 1) for a, b in zip(sides, new, strict=True))
    at_rows, at_columns = (np.arange(-(side - 1), side, dtype=np.float64) for side in new)
    inner = table[: sides[0] * sides[1]].double().numpy()
    heads = []
    for head in range(table.shape[1]):
        values = inner[:, head].reshape(sides)
        degrees = {"kx": min(3, sides[0] - 1), "ky": min(3, sides[1] - 1)}
        spline = RectBivariateSpline(rows, columns, values, s=0, **degrees)
        heads.append(torch.from_numpy(spline(at_rows, at_columns)).flatten())
    resampled = torch.stack(heads, dim=1).to(table.dtype)
    return torch.cat([resampled, table[table.shape[0] - extra :]])


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
    distances = np.cumsum(ratio ** np.arange(half)) if half else np.empty(0)
    return np.concatenate([-distances[::-1], [0.0], distances])


def _windows(
    table: Tensor, shape: torch.Size, old: tuple[int, int], new: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Old and new window of a table: the grid for BEiT, a square for Swin."""
    if _beit(table, old):
        return old, new
    source, target = (int(math.isqrt(rows) + 1) // 2 for rows in (table.shape[0], shape[0]))
    return (source, source), (target, target)


def _beit(table: Tensor, grid: tuple[int, int]) -> bool:
    return table.shape[0] == (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


def _adapt_channels(weight: Tensor, channels: int) -> Tensor:
    if weight.shape[1] == channels:
        return weight
    if weight.shape[1] == 3 or channels == 1:
        return adapt_input_conv(channels, weight)
    # From one channel, or N: the sum over channels is what a grey image sees.
    grey = weight.sum(1, keepdim=True)
    return grey.expand(-1, channels, -1, -1) / channels


def _shapes(
    found: Found, image_size: tuple[int, int], patch: int, channels: int
) -> dict[str, torch.Size]:
    """Shapes of the weights of the encoder for other images, without making it."""
    config = EncoderConfig(
        model=found.model, patch_size=patch, init="timm", arguments=found.arguments
    )
    with torch.device("meta"):
        encoder = build_encoder(config, image_size=image_size, channels=channels)
    return {name: value.shape for name, value in encoder.timm_state().items()}


def _grid(size: tuple[int, int], patch: int) -> tuple[int, int]:
    return size[0] // patch, size[1] // patch


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]}×{grid[1]}"
