"""Readers of Hugging Face's ViTMAE, ViT, Swin, BEiT and DINOv2."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from simmim.config.decoder import LinearDecoder, TransformerDecoder
from simmim.config.mask import RandomMask
from simmim.config.target import PixelTarget
from simmim.errors import CheckpointError
from simmim.interop.checkpoint import ModelCheckpoint, Pretraining
from simmim.interop.layouts.huggingface_names import TABLE, Places, join_qkv
from simmim.interop.layouts.huggingface_open import NamedWeights, ratio_of
from simmim.interop.layouts.huggingface_places import (
    beit_places,
    decoder_places,
    head_places,
    swin_places,
    vit_places,
)
from simmim.interop.layouts.shape import BEIT, POOLED, SWIN, VIT, name_of, unshuffled
from simmim.models.positions import sine_cosine

EXACT = {"gelu": ""}
ACTIVATIONS = {
    **EXACT,
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""timm's names of the activations; "": its own, the exact GELU."""


def _read_vit(file: NamedWeights) -> ModelCheckpoint:
    """ViT and ViTMAE: an encoder, MAE's decoder, or SimMIM's linear head."""
    config = file.config
    width, _, _ = _sizes(file)
    places, model, arguments = _plain(file, config.count("intermediate_size", 4 * width))
    if any(name.startswith("decoder.decoder_") for name in file.state):
        config.activation(EXACT)
        return _read_mae(file, places, model, arguments, width)
    activation = config.activation(ACTIVATIONS)
    if activation:
        arguments["act_layer"] = activation
    return _with_head(file, places, "ViT", model, arguments, stride=file.patch, width=width)


def _sizes(file: NamedWeights) -> tuple[int, int, int]:
    """Width, blocks and attention heads of all but Swin."""
    width = file.config.count("hidden_size", 768)
    heads = _heads(file.config.count("num_attention_heads", 12), width)
    return width, file.config.count("num_hidden_layers", 12, most=1000), heads


def _plain(
    file: NamedWeights, hidden: int, *, scaled: bool = False
) -> tuple[Places, str, dict[str, Any]]:
    """Where a ViT's weights are, and its name and arguments in timm; see ``vit_places``."""
    width, depth, heads = _sizes(file)
    qkv_bias = file.config.flag("qkv_bias", usual=True)
    places = vit_places(
        width,
        depth,
        hidden,
        patch=file.patch,
        channels=file.channels,
        tokens=file.tokens,
        qkv_bias=qkv_bias,
        scaled=scaled,
    )
    model, arguments = name_of(VIT, width, depth, heads)
    arguments |= _mlp(hidden, width) | ({} if qkv_bias else {"qkv_bias": False})
    return places, model, arguments


def _mlp(hidden: int, width: int) -> dict[str, Any]:
    """Timm's argument for the hidden width of an MLP, where it is not usual."""
    return {} if hidden == 4 * width else {"mlp_ratio": ratio_of(hidden, width)}


def _heads(heads: int, width: int) -> int:
    if width % heads:
        raise CheckpointError(f"num_attention_heads {heads} does not divide the width {width}.")
    return heads


def _read_mae(
    file: NamedWeights, places: Places, model: str, arguments: dict[str, Any], encoder_width: int
) -> ModelCheckpoint:
    config = file.config
    width = config.count("decoder_hidden_size", 512)
    heads = _heads(config.count("decoder_num_attention_heads", 16), width)
    depth = config.count("decoder_num_hidden_layers", 8, most=1000)
    hidden = config.count("decoder_intermediate_size", 2048)
    qkv_bias = config.flag("qkv_bias", usual=True)
    outputs = file.channels * file.patch**2
    decoder = decoder_places(
        encoder_width,
        width,
        depth,
        hidden,
        outputs=outputs,
        tokens=file.tokens,
        qkv_bias=qkv_bias,
    )
    encoder, taken = file.take(places, decoder)
    if not qkv_bias:
        taken |= {
            f"blocks.{n}.attn.{c}.bias": torch.zeros(width) for n in range(depth) for c in "qkv"
        }
    weights = join_qkv(taken)
    position, notes = _positions(weights, file.grid)
    ratio = config.number("mask_ratio", 0.75)
    found = file.found(
        layout="ViTMAE, pretraining",
        model=model,
        arguments=arguments,
        encoder=join_qkv(encoder),
        notes=notes,
    )
    return replace(
        found,
        pretraining=Pretraining(
            decoder=TransformerDecoder(
                depth=depth,
                width=width,
                heads=heads,
                mlp_ratio=ratio_of(hidden, width),
                mask_token="0.02",
            ),
            state=weights,
            mask=RandomMask(ratio=ratio if 0 < ratio < 1 else 0.75, rounding="keep-floor"),
            target=PixelTarget(norm_pix=config.flag("norm_pix_loss", usual=False)),
            position=position,
        ),
        left_out={**found.left_out, "decoder.decoder_pos_embed": "follows from the sizes"}
        if position is None
        else found.left_out,
    )


def _positions(
    weights: dict[str, Tensor], grid: tuple[int, int]
) -> tuple[Tensor | None, list[str]]:
    """Take a decoder's positions out of its weights; None: they are the fixed ones.

    Ours adds none to the class token. What another adds goes into the bias before, and is taken
    off again from all patches.
    """
    position = weights.pop("position")[0]
    first, patches = position[0], position[1:].float()
    expected = sine_cosine(grid, position.shape[1])
    if not first.any() and torch.allclose(patches, expected, rtol=0, atol=1e-6):
        return None, []
    if first.any():
        weights["embed.bias"] = weights["embed.bias"] + first
        weights["mask_token"] = weights["mask_token"] + first
        patches = patches - first.float()
    return patches, [
        "the decoder's positions are not MAE's fixed sine-cosine: they are used as they are, and "
        "replaced by those where the decoder is trained further"
    ]


def _with_head(
    file: NamedWeights,
    places: Places,
    name: str,
    model: str,
    arguments: dict[str, Any],
    *,
    stride: int,
    width: int,
    **common: Any,
) -> ModelCheckpoint:
    """An encoder with SimMIM's head, where that is there and fits."""
    outputs = file.channels * stride**2
    token = f"{file.prefix}embeddings.mask_token"
    whole = "decoder.0.weight" in file.state and token in file.state
    if whole and file.config.count("encoder_stride", 32 if name == "Swin" else 16) != stride:
        raise CheckpointError(
            f"config.json has encoder_stride {file.config.given.get('encoder_stride')}, so the "
            f"head predicts no patches of the encoder's stride, {stride} pixels."
        )
    tokens = Places()
    tokens.tensor("mask_token", (1, 1, places["patch_embed.proj.weight"][0][0]), token)
    encoder, *head = file.take(places, *([head_places(outputs, width), tokens] if whole else []))
    found = file.found(
        layout=f"{name}, {'masked image modelling' if whole else 'encoder'}",
        model=model,
        arguments=arguments,
        encoder=join_qkv(encoder),
        **common,
    )
    if not whole:
        return found
    weights, others = head
    return replace(
        found,
        pretraining=Pretraining(
            decoder=LinearDecoder(),
            state=unshuffled(weights["head.weight"], weights["head.bias"], file.channels, stride),
            mask_token=others["mask_token"],
            mask=_published_mask(found.image_size, stride),
            target=PixelTarget(loss="l1"),
        ),
    )


def _published_mask(size: tuple[int, int], stride: int) -> RandomMask:
    """SimMIM's: 60 % of units of 32 pixels, or of the stride where those do not fit."""
    fits = 32 % stride == 0 and not (size[0] % 32 or size[1] % 32) and max(size) > 32
    return RandomMask(ratio=0.6, unit=32 if fits else None, rounding="ceil")


def _read_swin(file: NamedWeights) -> ModelCheckpoint:
    config = file.config
    width = config.count("embed_dim", 96)
    depths = config.counts("depths", [2, 2, 6, 2])
    heads = config.counts("num_heads", [3, 6, 12, 24])
    window = config.count("window_size", 7, most=1000)
    ratio = config.number("mlp_ratio", 4.0)
    qkv_bias = config.flag("qkv_bias", usual=True)
    config.activation(EXACT)
    if len(depths) != len(heads) or sum(depths) > 1000:
        raise CheckpointError(f"config.json has depths {depths} and num_heads {heads}.")
    if config.flag("use_absolute_embeddings", usual=False):
        raise CheckpointError(
            "this Swin adds absolute positions (use_absolute_embeddings), which timm's does not."
        )
    for stage, head in enumerate(heads):
        _heads(head, width * 2**stage)
    smallest = min(file.grid) // 2 ** (len(depths) - 1)
    if smallest < window:
        raise CheckpointError(
            f"config.json has window_size {window}, and the last stage has {smallest} patches a "
            "side: neither transformers nor timm can run it so. Set image_size to what it was "
            "trained with."
        )
    places = swin_places(
        width,
        depths,
        heads,
        mlp_ratio=ratio,
        window=window,
        patch=file.patch,
        channels=file.channels,
        qkv_bias=qkv_bias,
    )
    model, arguments = name_of(SWIN, width, tuple(depths), tuple(heads))
    arguments["window_size"] = window
    if ratio != 4:
        arguments["mlp_ratio"] = ratio
    if not qkv_bias:
        arguments["qkv_bias"] = False
    last = len(depths) - 1
    notes = []
    if any(side // 2**stage % window for stage in range(last + 1) for side in file.grid):
        notes.append(
            f"windows of {window} do not fill its grids: timm pads them after a shift and "
            "transformers before, so features differ a little at the edges"
        )
    return _with_head(
        file,
        places,
        "Swin",
        model,
        arguments,
        stride=file.patch * 2**last,
        width=width * 2**last,
        usual_eps=1e-5,
        timm_eps=1e-5,
        notes=notes,
    )


def _read_beit(file: NamedWeights) -> ModelCheckpoint:
    """The encoder alone: its heads predict visual tokens, or classes."""
    config = file.config
    width, depth, heads = _sizes(file)
    hidden = config.count("intermediate_size", 4 * width)
    config.activation(EXACT)
    own = config.flag("use_relative_position_bias", usual=False)
    shared = config.flag("use_shared_relative_position_bias", usual=False)
    absolute = config.flag("use_absolute_position_embeddings", usual=False)
    scaled = config.number("layer_scale_init_value", 0.1) > 0
    table = ((2 * file.grid[0] - 1) * (2 * file.grid[1] - 1) + 3, heads)
    norm, notes = _beit_norm(file)
    places = beit_places(
        width,
        depth,
        hidden,
        patch=file.patch,
        channels=file.channels,
        positions=file.tokens + 1 if absolute else 0,
        table=table,
        own=own,
        shared=shared,
        scaled=scaled,
    )
    final = Places()
    final.layer("norm", (width,), norm)
    model, arguments = name_of(BEIT, width, depth, heads)
    arguments |= _mlp(hidden, width) | ({} if scaled else {"init_values": 0.0})
    if absolute:
        arguments["use_abs_pos_emb"] = True
    encoder, normed = file.take(places, final)
    weights = join_qkv(encoder, apart=True) | normed
    if not (own or shared) and file.tokens > 5000:
        raise CheckpointError(
            f"this BEiT has no relative positions, and its images {file.tokens:,} patches: it "
            "could not tell where they are."
        )
    common = weights.pop("table") if shared else torch.zeros(table)
    for n in range(depth):
        name = f"blocks.{n}.{TABLE}"
        weights[name] = (
            weights[name] + common if own and shared else weights.get(name, common.clone())
        )
    if not own and not shared:
        notes.append("it has no relative positions: tables of zeros, which change nothing")
    return file.found(
        layout="BEiT, encoder", model=model, arguments=arguments, encoder=weights, notes=notes
    )


def _beit_norm(file: NamedWeights) -> tuple[str, list[str]]:
    """The whole name of the final norm, and what to tell the user."""
    if not file.config.flag("use_mean_pooling", usual=True):
        return f"{file.prefix}layernorm", []
    pooled = f"{file.prefix}pooler.layernorm"
    if f"{pooled}.weight" not in file.state and file.prefix and "layernorm.weight" in file.state:
        return "layernorm", []  # of the head for visual tokens, where it is the only one
    return pooled, [POOLED]


def _read_dinov2(file: NamedWeights) -> ModelCheckpoint:
    config = file.config
    config.activation(EXACT)
    if config.flag("use_swiglu_ffn", usual=False):
        raise CheckpointError(
            "this DINOv2 has gated MLPs (use_swiglu_ffn), which cannot be read from here; "
            "--from timm:vit_giant_patch14_dinov2.lvd142m has the published one."
        )
    hidden = config.count("hidden_size", 768) * config.count("mlp_ratio", 4)
    places, model, arguments = _plain(file, hidden, scaled=True)
    return file.found(
        layout="DINOv2, encoder",
        model=model,
        arguments=arguments | {"init_values": 1e-5},
        encoder=join_qkv(file.take(places)[0]),
        usual_eps=1e-6,
    )


READERS: dict[str, Callable[[NamedWeights], ModelCheckpoint]] = {
    "vit_mae": _read_vit,
    "vit": _read_vit,
    "swin": _read_swin,
    "beit": _read_beit,
    "dinov2": _read_dinov2,
}
"""By ``model_type``."""
