"""Checkpoints of the original SimMIM and MAE code, and of BEiT's.

Sources: microsoft/SimMIM (models/simmim.py, vision_transformer.py, swin_transformer.py),
facebookresearch/mae (models_mae.py, models_vit.py), microsoft/unilm (beit, beit2).
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from simmim.config.decoder import LinearDecoder, TransformerDecoder
from simmim.config.mask import RandomMask
from simmim.config.target import PixelTarget
from simmim.errors import CheckpointError
from simmim.interop.checkpoint import HALVES, IMAGENET, ModelCheckpoint, Pretraining, Settings
from simmim.interop.layouts.shape import (
    BEIT,
    SWIN,
    count,
    name_of,
    pick_grid,
    pick_heads,
    pick_pixels,
    sort_out,
    take,
    unshuffled,
)
from simmim.interop.layouts.timm import read_vit
from simmim.models.positions import sine_cosine

State = Mapping[str, Tensor]

TABLE = "attn.relative_position_bias_table"


def is_simmim(state: State) -> bool:
    """Pretrained by the original SimMIM code."""
    return "decoder.0.weight" in state and "encoder.mask_token" in state


def is_mae(state: State) -> bool:
    """Pretrained by the original MAE code, with its decoder."""
    return "decoder_blocks.0.attn.qkv.weight" in state and "decoder_pred.weight" in state


def is_beit(state: State) -> bool:
    """In BEiT's layout, which SimMIM's ViT shares, and timm's Beit."""
    return "blocks.0.mlp.fc1.weight" in state and (
        "rel_pos_bias.relative_position_bias_table" in state or f"blocks.0.{TABLE}" in state
    )


def is_swin(state: State) -> bool:
    """A Swin, in the original layout or timm's."""
    return f"layers.0.blocks.0.{TABLE}" in state and "layers.1.blocks.0.norm1.weight" in state


def read_simmim(state: State, settings: Settings) -> ModelCheckpoint:
    """Encoder, mask token and linear head; see ``is_simmim``."""
    inner = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    token = inner.pop("mask_token")
    swin = is_swin(inner)
    found = read_swin(inner, settings) if swin else read_beit(inner, settings)
    kind = "Swin" if swin else "ViT"
    stride = found.patch * 8 if swin else found.patch
    head = Pretraining(
        decoder=LinearDecoder(),
        state=_linear_head(state, stride, found.pixels.channels),
        mask_token=token,
        mask=RandomMask(
            ratio=settings.share("mask_ratio") or 0.6,
            unit=settings.count("mask_patch_size") or max(32, stride),
            rounding="ceil",
        ),
        target=PixelTarget(loss="l1"),
    )
    known = {"decoder.0.weight", "decoder.0.bias"}
    rest = [k for k in state if not k.startswith("encoder.") and k not in known]
    return replace(
        found,
        layout=f"SimMIM's original code, {kind}, pretraining",
        pretraining=head,
        licence="MIT, where it is one of the SimMIM authors' checkpoints",
        left_out={
            **{f"encoder.{name}": why for name, why in found.left_out.items()},
            **dict.fromkeys(rest, "not known"),
        },
    )


def _linear_head(state: State, stride: int, channels: int) -> dict[str, Tensor]:
    weight, bias = take(state, "decoder.0.weight"), take(state, "decoder.0.bias")
    if weight.shape[0] != channels * stride**2:
        raise CheckpointError(
            f"decoder.0.weight predicts {weight.shape[0]} values, and a patch of {stride} pixels "
            f"has {channels * stride**2}."
        )
    return unshuffled(weight, bias, channels, stride)


def read_beit(state: State, settings: Settings) -> ModelCheckpoint:
    """An encoder in BEiT's layout; a table that all blocks share is copied to each."""
    shared = state.get("rel_pos_bias.relative_position_bias_table")
    depth = count(state, "blocks.")
    table = shared if shared is not None else take(state, f"blocks.0.{TABLE}")
    projection = take(state, "patch_embed.proj.weight")
    width, channels, patch = projection.shape[:3]
    model, arguments = name_of(BEIT, width, depth, table.shape[1])
    tokens = _places(state, table)
    hidden = take(state, "blocks.0.mlp.fc1.weight").shape[0]
    if hidden != 4 * width:
        arguments["mlp_ratio"] = hidden / width
    if "blocks.0.gamma_1" not in state:
        arguments["init_values"] = 0.0  # which timm reads as none
    if "blocks.0.attn.q_bias" not in state:
        arguments["qkv_bias"] = False
    if "pos_embed" in state:
        arguments["use_abs_pos_emb"] = True

    encoder, left_out, notes = sort_out(state)
    if encoder.pop("rel_pos_bias.relative_position_bias_table", None) is not None:
        encoder |= {f"blocks.{n}.{TABLE}": table.clone() for n in range(depth)}
    first = "lm_head.weight" in state and not any(k.startswith("cls_pt_layers.") for k in state)
    if first:
        notes.append("mean and standard deviation 0.5, as in the first BEiT")
    return ModelCheckpoint(
        layout="BEiT's layout, encoder",
        model=model,
        arguments=arguments,
        image_size=pick_grid(tokens, patch, settings),
        patch=patch,
        pixels=pick_pixels(channels, settings, HALVES if first else IMAGENET),
        encoder=encoder,
        left_out=left_out,
        notes=tuple(notes),
    )


def _places(state: State, table: Tensor) -> int:
    """Patches of the images that a table of relative positions is for."""
    for name, value in state.items():
        if name.endswith("relative_position_index"):
            return value.shape[0] - 1
    side = ((table.shape[0] - 3) ** 0.5 + 1) / 2
    if side != int(side):
        raise CheckpointError(
            f"a table of {table.shape[0]} relative positions belongs to no square image, and the "
            "checkpoint has no relative_position_index to say which."
        )
    return int(side) ** 2


def read_swin(state: State, settings: Settings) -> ModelCheckpoint:
    """A Swin encoder; originally a stage ends with the merging of patches, in timm it begins so."""
    stages = count(state, "layers.")
    depths = tuple(count(state, f"layers.{n}.blocks.") for n in range(stages))
    heads = tuple(take(state, f"layers.{n}.blocks.0.{TABLE}").shape[1] for n in range(stages))
    window = int((take(state, f"layers.0.blocks.0.{TABLE}").shape[0] ** 0.5 + 1) / 2)
    width, channels, patch = take(state, "patch_embed.proj.weight").shape[:3]
    model, arguments = name_of(SWIN, width, depths, heads)
    arguments["window_size"] = window
    hidden = take(state, "layers.0.blocks.0.mlp.fc1.weight").shape[0]
    if hidden != 4 * width:
        arguments["mlp_ratio"] = hidden / width
    size, note = _swin_size(state, patch, window, stages, settings)
    encoder, left_out, notes = sort_out(state)
    original = "layers.0.downsample.reduction.weight" in state
    if original:
        encoder = {_moved(name): value for name, value in encoder.items()}
    return ModelCheckpoint(
        layout="Swin's original layout, encoder" if original else "timm's Swin, encoder",
        model=model,
        arguments=arguments,
        image_size=size,
        patch=patch,
        pixels=pick_pixels(channels, settings),
        encoder=encoder,
        left_out=left_out,
        notes=(*notes, *([note] if note else [])),
    )


def _moved(name: str) -> str:
    stage = re.match(r"layers\.(\d+)\.downsample\.(.*)", name)
    return f"layers.{int(stage[1]) + 1}.downsample.{stage[2]}" if stage else name


def _swin_size(
    state: State, patch: int, window: int, stages: int, settings: Settings
) -> tuple[tuple[int, int], str | None]:
    """Image size, which masks of shifted windows show, or a window that is cut short."""
    given = settings.size()
    if given is not None:
        return given, None
    for stage in range(stages):
        for name, value in state.items():
            if name.startswith(f"layers.{stage}.blocks.") and name.endswith("attn_mask"):
                side = int(value.shape[0] ** 0.5) * window * patch * 2**stage
                return (side, side), None
    for stage in range(stages):  # a window is never larger than the stage's image
        rows = take(state, f"layers.{stage}.blocks.0.{TABLE}").shape[0]
        own = int((rows**0.5 + 1) / 2)
        if own < window:
            return (own * patch * 2**stage,) * 2, None
    side = patch * 2 ** (stages - 1) * window
    return (side, side), f"img_size {side} was guessed from the window {window}; say img_size=…"


def read_mae(state: State, settings: Settings) -> ModelCheckpoint:
    """Encoder and decoder; see ``is_mae``."""
    own = ("decoder_", "mask_token")
    found = read_vit({k: v for k, v in state.items() if not k.startswith(own)}, settings)
    width = take(state, "decoder_embed.weight").shape[0]
    heads, guessed = pick_heads(width, settings, "decoder_num_heads", usual={512: 16}, size=32)
    grid = (found.image_size[0] // found.patch, found.image_size[1] // found.patch)
    _check_positions(take(state, "decoder_pos_embed"), grid, width)
    normalised = settings.flag("norm_pix_loss", "norm_pix")
    notes = [*found.notes, *guessed]
    if normalised is None:
        notes.append(
            "norm_pix_loss was taken to be true, as weights do not show it; give it as false if "
            "they predict raw pixels (the `visualize` checkpoints do)"
        )
    hidden = take(state, "decoder_blocks.0.mlp.fc1.weight").shape[0]
    decoder = TransformerDecoder(
        depth=count(state, "decoder_blocks."),
        width=width,
        heads=heads,
        mlp_ratio=hidden / width,
        mask_token="0.02",
    )
    renamed: dict[str, Tensor] = {"mask_token": take(state, "mask_token")}
    for name, value in state.items():
        if name.startswith("decoder_") and name != "decoder_pos_embed":
            inner = name.removeprefix("decoder_")
            renamed[re.sub(r"^pred\.", "head.", inner)] = value
    return replace(
        found,
        layout="MAE's original code, pretraining",
        pretraining=Pretraining(
            decoder=decoder,
            state=renamed,
            mask=RandomMask(ratio=settings.share("mask_ratio") or 0.75, rounding="keep-floor"),
            target=PixelTarget(norm_pix=normalised is not False),
        ),
        left_out={**found.left_out, "decoder_pos_embed": "follows from the sizes"},
        notes=tuple(notes),
        licence="CC-BY-NC 4.0, where it is one of the MAE authors' checkpoints",
    )


def _check_positions(positions: Tensor, grid: tuple[int, int], width: int) -> None:
    """Raise ``CheckpointError`` unless a decoder's positions are the fixed ones."""
    expected: Any = sine_cosine(grid, width)
    if positions.shape[1] != len(expected) + 1 or not torch.allclose(
        positions[0, 1:], expected, atol=1e-5
    ):
        raise CheckpointError(
            "decoder_pos_embed is not the fixed 2-d sine-cosine of MAE's code, which is the only "
            "one that simmim's decoder has. The encoder alone can be loaded."
        )
