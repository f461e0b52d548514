"""Encoders as Hugging Face transformers has them: ViT, DINOv2, BEiT and Swin."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from simmim.errors import ConfigError
from simmim.interop.layouts.huggingface_names import PREFIXES, Places, split_qkv
from simmim.interop.layouts.huggingface_places import beit_places, swin_places, vit_places
from simmim.models.backbones import BeitEncoder, SwinEncoder, ViTEncoder
from simmim.models.encoder import Encoder

INSTEAD = "The formats timm, onnx, torch and safetensors can hold it: --format timm."
ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu", "ReLU": "relu", "SiLU": "silu"}
"""What transformers calls the activations, by timm's classes."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """An encoder's part of a form, its names yet without a prefix."""

    kind: str
    architecture: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    eps: float
    activation: str = "gelu"
    extra: dict[str, Tensor] = field(default_factory=dict)

    def named(self, *, prefixed: bool) -> dict[str, Tensor]:
        """The weights by the names of the file."""
        prefix = PREFIXES[self.kind] if prefixed else ""
        return {prefix + name: value for name, value in {**self.weights, **self.extra}.items()}


def base_of(encoder: Encoder) -> Base:
    """An encoder alone.

    Raises:
        ConfigError: transformers has no class for it.
    """
    maker = MAKERS.get(type(encoder))
    if maker is None:
        raise ConfigError(
            f"{encoder.model} is of timm's class {type(encoder.net).__name__}, and simmim writes "
            f"Hugging Face's ViT, DINOv2, BEiT and Swin alone. {INSTEAD}"
        )
    return maker(encoder)


def vit(encoder: Encoder, *, as_dino: bool = False) -> Base:
    """ViTModel, or Dinov2Model where its blocks have scales."""
    state, net = split_qkv(encoder.timm_state()), encoder.net
    scaled = "blocks.0.ls1.gamma" in state
    hidden = net.blocks[0].mlp.fc1.out_features
    qkv_bias = "blocks.0.attn.q.bias" in state
    depth, width = encoder.depth, encoder.width
    dino = scaled or as_dino
    if dino and not scaled:
        for n in range(depth):
            state |= {f"blocks.{n}.ls{branch}.gamma": torch.ones(width) for branch in (1, 2)}
    places = vit_places(
        width,
        depth,
        hidden,
        patch=encoder.patch,
        channels=encoder.channels,
        tokens=encoder.grid[0] * encoder.grid[1],
        qkv_bias=qkv_bias,
        scaled=dino,
    )
    if dino and hidden % width:
        raise ConfigError(
            f"Dinov2Model has MLPs whose width is a whole multiple of {width}, and this one has "
            f"{hidden}. {INSTEAD}"
        )
    eps, activation = _eps(encoder), _activation(encoder)
    config = _sizes(encoder) | {
        "model_type": "dinov2" if dino else "vit",
        "num_hidden_layers": depth,
        "num_attention_heads": net.blocks[0].attn.num_heads,
        "qkv_bias": qkv_bias,
        "layer_norm_eps": eps,
        "hidden_act": activation,
    }
    weights = named(places, state, encoder)
    if dino:
        config |= {"mlp_ratio": hidden // width, "use_mask_token": False}
        extra = {}
    else:
        config |= {
            "intermediate_size": hidden,
            "pooler_act": "linear",
            "pooler_output_size": width,
        }
        extra = {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}
    return Base(
        kind=config["model_type"],
        architecture="Dinov2Model" if dino else "ViTModel",
        config=config,
        weights=weights,
        eps=eps,
        activation=activation,
        extra=extra,
    )


def _beit(encoder: Encoder) -> Base:
    """BeitModel without mean pooling, which would have no norm."""
    assert isinstance(encoder, BeitEncoder)
    state, net = split_qkv(encoder.timm_state()), encoder.net
    if encoder.grid[0] != encoder.grid[1]:
        raise ConfigError(
            "BeitModel mixes up the relative positions of images that are not square. " + INSTEAD
        )
    table = tuple(encoder.tables[0].shape)
    scaled = "blocks.0.gamma_1" in state
    hidden = net.blocks[0].mlp.fc1.out_features
    places = beit_places(
        encoder.width,
        encoder.depth,
        hidden,
        patch=encoder.patch,
        channels=encoder.channels,
        positions=state["pos_embed"].shape[1] if "pos_embed" in state else 0,
        table=(table[0], table[1]),
        own=True,
        shared=False,
        scaled=scaled,
    )
    places.layer("norm", (encoder.width,), "layernorm")
    eps = _eps(encoder)
    _exact_gelu(encoder)
    return Base(
        kind="beit",
        architecture="BeitModel",
        config=_sizes(encoder)
        | {
            "model_type": "beit",
            "num_hidden_layers": encoder.depth,
            "num_attention_heads": net.blocks[0].attn.num_heads,
            "intermediate_size": hidden,
            "layer_norm_eps": eps,
            "use_relative_position_bias": True,
            "use_absolute_position_embeddings": "pos_embed" in state,
            "use_mean_pooling": False,
            "layer_scale_init_value": 0.1 if scaled else 0.0,
            "drop_path_rate": 0.0,
        },
        weights=named(places, state, encoder),
        eps=eps,
    )


def _swin(encoder: Encoder) -> Base:
    """SwinModel."""
    state, net = split_qkv(encoder.timm_state()), encoder.net
    blocks: Any = encoder.layers
    windows = {side for block in blocks for side in block.window_size}
    window = max(windows)
    grids = [side // 2**stage for stage in range(len(net.layers)) for side in encoder.token_grid]
    if len(windows) != 1 or any(side % window for side in grids):
        raise ConfigError(
            f"SwinModel has one window for all stages, which must fill their grids: here windows "
            f"of {sorted(windows)} patches on grids of {sorted(set(grids))}. {INSTEAD}"
        )
    depths = [len(stage.blocks) for stage in net.layers]
    heads = [stage.blocks[0].attn.num_heads for stage in net.layers]
    ratio = blocks[0].mlp.fc1.out_features / encoder.token_width
    places = swin_places(
        encoder.token_width,
        depths,
        heads,
        mlp_ratio=ratio,
        window=window,
        patch=encoder.patch,
        channels=encoder.channels,
        qkv_bias="layers.0.blocks.0.attn.q.bias" in state,
    )
    eps = _eps(encoder)
    _exact_gelu(encoder)
    config = _sizes(encoder) | {
        "model_type": "swin",
        "embed_dim": encoder.token_width,
        "depths": depths,
        "num_heads": heads,
        "window_size": window,
        "mlp_ratio": ratio,
        "qkv_bias": "layers.0.blocks.0.attn.q.bias" in state,
        "layer_norm_eps": eps,
        "encoder_stride": encoder.stride,
        "drop_path_rate": 0.0,
    }
    del config["hidden_size"]
    index = {
        f"encoder.layers.{stage}.blocks.{n}.attention.self.relative_position_index": (
            block.attn.relative_position_index
        )
        for stage, part in enumerate(net.layers)
        for n, block in enumerate(part.blocks)
    }  # which transformers 4 expects, and 5 passes over
    return Base(
        kind="swin",
        architecture="SwinModel",
        config=config,
        weights=named(places, state, encoder),
        eps=eps,
        extra=index,
    )


def _sizes(encoder: Encoder) -> dict[str, Any]:
    height, width = encoder.image_size
    return {
        "image_size": height if height == width else [height, width],
        "patch_size": encoder.patch,
        "num_channels": encoder.channels,
        "hidden_size": encoder.width,
    }


def named(places: Places, state: Mapping[str, Tensor], encoder: Encoder) -> dict[str, Tensor]:
    """The weights by the names of the file, once all of them, and no others, have one."""
    own, theirs = state.keys(), places.keys()
    shapes = [n for n in own & theirs if tuple(state[n].shape) != places[n][0]]
    if own != theirs or shapes:
        odd = sorted([*(own - theirs), *shapes])
        lacks = sorted(theirs - own)
        told = [f"there is no place for its {_some(odd)}"] if odd else []
        told += [f"it has no {_some(lacks)}"] if lacks else []
        raise ConfigError(
            f"Hugging Face transformers has no class that simmim could write {encoder.model} as: "
            f"{', and '.join(told)}. {INSTEAD}"
        )
    return {names[0]: state[ours] for ours, (_, names) in places.items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _eps(encoder: Encoder) -> float:
    """What the norms of the blocks, and the last one, add to the variance."""
    norms: list[Any] = [
        m for b in encoder.layers for m in b.modules() if isinstance(m, nn.LayerNorm)
    ]
    found = {norm.eps for norm in [*norms, encoder.net.norm]}
    if len(found) != 1:
        raise ConfigError(
            f"{encoder.model} has norms that add {sorted(found)} to the variance, and transformers "
            f"one value for all. {INSTEAD}"
        )
    return found.pop()


def _activation(encoder: Encoder) -> str:
    blocks: Any = encoder.layers
    act = blocks[0].mlp.act
    name = type(act).__name__
    if name not in ACTIVATIONS or getattr(act, "approximate", "none") != "none":
        raise ConfigError(
            f"{encoder.model} has the activation {act}, which transformers has not so. {INSTEAD}"
        )
    return ACTIVATIONS[name]


def _exact_gelu(encoder: Encoder) -> None:
    if _activation(encoder) != "gelu":
        raise ConfigError(f"{encoder.model} is no GELU network. {INSTEAD}")


MAKERS: dict[type[Encoder], Callable[[Encoder], Base]] = {
    ViTEncoder: vit,
    BeitEncoder: _beit,
    SwinEncoder: _swin,
}
"""By the kind of encoder; subclasses have no place here."""
