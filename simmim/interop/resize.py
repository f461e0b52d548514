"""Bring a checkpoint to other images: another size, patch, or number of channels."""

from dataclasses import replace

import torch
from timm.layers.patch_embed import resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor

from simmim.config.encoder import EncoderConfig
from simmim.config.resolved import PixelFormat
from simmim.interop.checkpoint import ModelCheckpoint
from simmim.models.build import build_encoder
from simmim.models.encoder import Encoder
from simmim.models.resample import resample_state

Row = tuple[str, str]
"""What was changed, and how."""
PROJECTION = "patch_embed.proj.weight"


def resize(
    found: ModelCheckpoint, image_size: tuple[int, int], patch: int, pixels: PixelFormat
) -> tuple[ModelCheckpoint, list[Row]]:
    """The checkpoint for other images, and a row for each thing that was changed.

    Positions are resampled by ``simmim.models.resample``, the patch projection so that its answers
    stay (FlexiViT), and further channels repeat the first ones, scaled so that the sum stays
    (timm). A decoder whose patches would be others is left out.

    Raises:
        ConfigError: The patch does not divide the size.
    """
    channels = pixels.channels
    if (image_size, patch, channels) == (found.image_size, found.patch, found.pixels.channels):
        return replace(found, pixels=pixels), []
    weight, rows = _project(found, patch, channels)
    state = {**found.encoder, PROJECTION: weight}
    rows += _place(state, found, image_size, patch)
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


def _project(found: ModelCheckpoint, patch: int, channels: int) -> tuple[Tensor, list[Row]]:
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
    state: dict[str, Tensor], found: ModelCheckpoint, image_size: tuple[int, int], patch: int
) -> list[Row]:
    """Resample what says where patches are, in place, for another grid."""
    old, new = _shell(found, found.image_size, found.patch), _shell(found, image_size, patch)
    resampled = resample_state(state, old.places(), new.places())
    state |= resampled
    rows: list[Row] = []
    if "pos_embed" in resampled:
        grids = f"{_by(old.token_grid)} → {_by(new.token_grid)} patches"
        rows.append(("positions", f"{grids}, bicubic"))
    tables = len(resampled.keys() - {"pos_embed"})
    if tables:
        rows.append(("relative", f"{tables} tables of positions resampled, geometric"))
    return rows


def _adapt_channels(weight: Tensor, channels: int) -> Tensor:
    if weight.shape[1] == channels:
        return weight
    if weight.shape[1] == 3 or channels == 1:
        return adapt_input_conv(channels, weight)
    # From one channel, or N: the sum over channels is what a grey image sees.
    grey = weight.sum(1, keepdim=True)
    return grey.expand(-1, channels, -1, -1) / channels


def _shell(found: ModelCheckpoint, image_size: tuple[int, int], patch: int) -> Encoder:
    """The encoder for images of a size, without memory for its weights."""
    config = EncoderConfig(
        model=found.model, patch_size=patch, init="timm", arguments=found.arguments
    )
    with torch.device("meta"):
        return build_encoder(config, image_size=image_size, channels=found.pixels.channels)


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]}×{grid[1]}"
