"""State dicts of timm, and of codes that name weights as it does: DeiT, DINO, fine-tuned MAE."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from simmim.config.encoder import EncoderConfig
from simmim.config.models import MODELS, find, suggest
from simmim.errors import CheckpointError, ConfigError
from simmim.interop.checkpoint import ModelCheckpoint, Settings
from simmim.interop.layouts.shape import (
    HEADS,
    VIT,
    count,
    name_of,
    pick_grid,
    pick_heads,
    pick_pixels,
    sort_out,
    take,
)
from simmim.models.build import build_encoder

State = Mapping[str, Tensor]

DERIVED = {"num_classes", "img_size", "patch_size", "in_chans", "global_pool", "fc_norm",
           "use_fc_norm", "pool_include_prefix", "drop_path_rate", "drop_rate"}  # fmt: skip
"""Arguments that follow from the rest, or that only a head or training needs."""
PLAIN = re.compile(
    r"(cls_token|reg_token|dist_token|pos_embed|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)"
    r"|blocks\.\d+\.(norm[12]\.(weight|bias)|attn\.(qkv|proj)\.(weight|bias)|ls[12]\.gamma"
    r"|mlp\.fc[12]\.(weight|bias)))"
)
"""Names of a plain ViT, whose shapes say all but the number of heads."""
DISTILLED = {192: "deit_tiny", 384: "deit_small", 768: "deit_base"}


def is_timm(state: State) -> bool:
    """A ViT, EVA, BEiT or Swin with timm's names."""
    return "patch_embed.proj.weight" in state and (
        "blocks.0.norm1.weight" in state or "layers.0.blocks.0.norm1.weight" in state
    )


def read_timm(state: State, settings: Settings) -> ModelCheckpoint:
    """An encoder with timm's names; the model's own name is found from names and shapes.

    Raises:
        CheckpointError: No supported model has these weights.
    """
    name = settings.get("model", "architecture")
    if isinstance(name, str) and find(name) is not None:
        return read_named(name, state, settings)
    kept, _, _ = sort_out(state)
    if all(PLAIN.fullmatch(name) for name in kept):
        return read_vit(state, settings)
    return read_named(_match(kept), state, settings)


def read_named(name: str, state: State, settings: Settings) -> ModelCheckpoint:
    """Weights of a timm model whose name, and further arguments, are known."""
    known = find(name)
    if known is None:
        near = suggest(name)
        raise CheckpointError(
            f"these are weights of timm's {name}, which cannot be an encoder here."
            + (f" The nearest that can: {', '.join(near)}." if near else "")
        )
    kept, left_out, notes = sort_out(state)
    channels, patch = take(kept, "patch_embed.proj.weight").shape[1:3]
    given = settings.size()
    height, width = given or (known.size, known.size)
    height, width = height - height % patch, width - width % patch  # which timm ignores
    positions = kept.get("pos_embed")
    if given is None and positions is not None:
        tokens = positions.shape[1]
        grids = [(height // patch) * (width // patch) + extra for extra in range(11)]
        if tokens not in grids:
            height, width = pick_grid(_square(tokens), patch, settings)
    arguments = settings.get("model_args") or {}
    return ModelCheckpoint(
        layout=f"timm's {name}",
        model=name.partition(".")[0],
        arguments={k: v for k, v in arguments.items() if k not in DERIVED},
        image_size=(height, width),
        patch=patch,
        pixels=pick_pixels(channels, settings),
        encoder=kept,
        left_out=left_out,
        notes=tuple(notes),
        licence=settings.get("license", "licence"),
    )


def read_vit(state: State, settings: Settings) -> ModelCheckpoint:
    """A plain ViT of any size, from its shapes."""
    kept, left_out, notes = sort_out(state)
    projection = take(kept, "patch_embed.proj.weight")
    width, channels, patch = projection.shape[:3]
    depth = count(kept, "blocks.")
    heads, guessed = pick_heads(width, settings, "num_heads", usual=HEADS, size=64)
    model, arguments = name_of(VIT, width, depth, heads)
    if "dist_token" in kept and width in DISTILLED:
        model = f"{DISTILLED[width]}_distilled_patch16_224"
    hidden = take(kept, "blocks.0.mlp.fc1.weight").shape[0]
    if hidden != 4 * width:
        arguments["mlp_ratio"] = hidden / width
    if "blocks.0.attn.qkv.bias" not in kept:
        arguments["qkv_bias"] = False
    if "blocks.0.ls1.gamma" in kept:
        arguments["init_values"] = 1e-5
    if "cls_token" not in kept:
        arguments["class_token"] = False
    registers = kept["reg_token"].shape[1] if "reg_token" in kept else 0
    if registers:
        arguments["reg_tokens"] = registers
    prefix = registers + ("cls_token" in kept) + ("dist_token" in kept)
    tokens = take(kept, "pos_embed").shape[1]
    if prefix and settings.size() is None and _square(tokens) == tokens:
        arguments["no_embed_class"] = True
        prefix = 0
    return ModelCheckpoint(
        layout="a ViT with timm's names, encoder",
        model=model,
        arguments=arguments,
        image_size=pick_grid(tokens - prefix, patch, settings),
        patch=patch,
        pixels=pick_pixels(channels, settings),
        encoder=kept,
        left_out=left_out,
        notes=(*notes, *guessed),
    )


def _square(tokens: int) -> int:
    return int(tokens**0.5) ** 2


def _match(state: State) -> str:
    """The supported model whose weights have these names and shapes."""
    projection = take(state, "patch_embed.proj.weight")
    first, patch = projection.shape[0], projection.shape[2]
    swin = "layers.0.blocks.0.norm1.weight" in state
    width = take(state, "norm.weight").shape[0] if swin else first
    depth = count(state, "blocks.") or sum(
        count(state, f"layers.{n}.blocks.") for n in range(count(state, "layers."))
    )
    likely = [n for n, m in MODELS.items() if (m.width, m.depth, m.patch) == (width, depth, patch)]
    for name in sorted(likely, key=lambda name: (len(name), name)):
        if _fits(name, state):
            return name
    raise CheckpointError(
        f"no supported model has these weights ({width} wide, {depth} blocks, patches of {patch} "
        "pixels). If timm has it by a name, say model=NAME; `simmim models` lists those that can "
        "be encoders."
    )


def _fits(name: str, state: State) -> bool:
    """Whether a model has weights of the same names, and of the same shapes but for sizes."""
    side = MODELS[name].size
    config = EncoderConfig(model=name, init="timm")
    try:
        with torch.device("meta"):
            encoder = build_encoder(config, image_size=(side, side), channels=3)
    except (ConfigError, NotImplementedError, RuntimeError):
        return False
    own = encoder.timm_state()
    free = ("pos_embed", "relative_position_bias_table", "patch_embed.proj.weight")
    return own.keys() == state.keys() and all(
        name.endswith(free) or own[name].shape == state[name].shape for name in own
    )


def named_settings(config: Mapping[str, Any]) -> Settings:
    """What the config.json of a timm folder says."""
    card = config.get("pretrained_cfg") or {}
    arguments = config.get("model_args") or {}
    size = arguments.get("img_size")
    if size is None and card.get("input_size"):
        size = list(card["input_size"][1:])
    return Settings(
        {
            "architecture": config.get("architecture"),
            "model_args": arguments,
            "img_size": size,
            "mean": card.get("mean"),
            "std": card.get("std"),
            "license": card.get("license"),
        }
    )
