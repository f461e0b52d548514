"""From the shapes of weights to a timm name and its arguments."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from simmim.config.resolved import PixelFormat
from simmim.errors import CheckpointError
from simmim.interop.checkpoint import IMAGENET, Settings, eight_bit

VIT = {
    (192, 12, 3): "vit_tiny_patch16_224",
    (384, 12, 6): "vit_small_patch16_224",
    (768, 12, 12): "vit_base_patch16_224",
    (1024, 24, 16): "vit_large_patch16_224",
    (1280, 32, 16): "vit_huge_patch14_224",
}
BEIT = {(768, 12, 12): "beit_base_patch16_224", (1024, 24, 16): "beit_large_patch16_224"}
SWIN: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2), (3, 6, 12, 24)): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2), (3, 6, 12, 24)): "swin_small_patch4_window7_224",
    (128, (2, 2, 18, 2), (4, 8, 16, 32)): "swin_base_patch4_window7_224",
    (192, (2, 2, 18, 2), (6, 12, 24, 48)): "swin_large_patch4_window7_224",
}
HEADS = {width: heads for width, _, heads in VIT}
"""Attention heads of the published widths."""


def name_of(
    published: Mapping[Any, str], width: int, depth: Any, heads: Any
) -> tuple[str, dict[str, Any]]:
    """Name in timm of a ``VIT``, ``BEIT`` or ``SWIN``, and the arguments that differ from its own.

    Args:
        published: One of these three.
        width: Of the tokens, of a Swin's first stage.
        depth: Number of blocks; a tuple of them, one for each stage of a Swin.
        heads: Likewise.
    """
    known = published.get((width, depth, heads))
    if known:
        return known, {}
    base = next(name for name in published.values() if "_base_" in name)
    if isinstance(depth, int):
        return base, {"embed_dim": width, "depth": depth, "num_heads": heads}
    return base, {"embed_dim": width, "depths": list(depth), "num_heads": list(heads)}


def unshuffled(weight: Tensor, bias: Tensor, channels: int, stride: int) -> dict[str, Tensor]:
    """A 1×1 convolution before a pixel shuffle, as a linear head that predicts patches.

    The shuffle takes (channel, row, column) and a patch has (row, column, channel).
    """
    order = torch.arange(len(bias)).view(channels, stride, stride).permute(1, 2, 0).flatten()
    return {"head.weight": weight.flatten(1)[order], "head.bias": bias[order]}


POOLED = (
    "its head read the normed mean of the tokens: that norm (fc_norm) is applied to each token "
    "before the mean"
)
NOT_ENCODER = {
    "head.": "a classifier's head",
    "head_dist.": "the distilled classifier's head",
    "attn_pool.": "pools the tokens for a head",
    "pre_logits.": "a layer of a head",
    "lm_head.": "BEiT's head for visual tokens",
    "cls_pt_layers.": "BEiT v2's layers for pretraining alone",
    "mask_token": "used in pretraining alone",
}
"""What an encoder does not have, by the start of its name."""
COMPUTED = ("relative_position_index", "attn_mask", "k_bias")
"""Buffers that follow from the sizes, by the end of their names."""


def sort_out(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """An encoder's weights with its final norm as ``norm``, and what was left out.

    Returns:
        The weights; names left out, with the reasons; and what to tell the user.
    """
    kept, left_out = {}, {}
    pooled = "fc_norm.weight" in state and "norm.weight" not in state
    for name, value in state.items():
        reason = next((why for start, why in NOT_ENCODER.items() if name.startswith(start)), None)
        if name.endswith(COMPUTED):
            left_out[name] = "follows from the sizes"
        elif reason is not None:
            left_out[name] = reason
        elif name.startswith("fc_norm.") and not pooled:
            left_out[name] = "a norm before a head"
        else:
            kept[name.removeprefix("fc_") if name.startswith("fc_norm.") else name] = value
    return kept, left_out, [POOLED] if pooled else []


def count(state: Mapping[str, Tensor], before: str, after: str = ".") -> int:
    """How many numbers follow ``before`` in the names, and stand before ``after``."""
    found = {name.removeprefix(before).split(after)[0] for name in state if name.startswith(before)}
    return len({number for number in found if number.isdigit()})


def take(state: Mapping[str, Tensor], name: str) -> Tensor:
    """One tensor, which must be there.

    Raises:
        CheckpointError: It is not.
    """
    if name not in state:
        raise CheckpointError(f"the checkpoint has no {name}, so it is not whole.")
    return state[name]


def pick_heads(
    width: int, settings: Settings, *names: str, usual: Mapping[int, int], size: int
) -> tuple[int, list[str]]:
    """Attention heads, which the weights of a ViT do not show.

    Args:
        width: Token width.
        settings: Asked first.
        names: What they may be called there.
        usual: Heads of the published widths, asked next.
        size: Width of a head otherwise; half of it for tokens under 192 wide.

    Returns:
        The heads, and notes on what was guessed.

    Raises:
        CheckpointError: The given heads do not divide the width.
    """
    heads = settings.count(*names)
    if heads is not None:
        if width % heads:
            raise CheckpointError(f"{names[0]} {heads} does not divide the width {width}.")
        return heads, []
    if width in usual:
        return usual[width], []
    side = size if width >= 192 else size // 2
    heads = width // side if width % side == 0 else 1
    return heads, [
        f"{names[0]} was guessed to be {heads}, as weights do not show it; give it if it is not"
    ]


def pick_grid(tokens: int, patch: int, settings: Settings) -> tuple[int, int]:
    """Height and width in pixels of the images behind ``tokens`` patches.

    Raises:
        CheckpointError: They form no square, and no ``img_size`` is given.
    """
    given = settings.size()
    if given is not None:
        height, width = given
        if (height // patch) * (width // patch) != tokens:
            raise CheckpointError(
                f"img_size {height}×{width} has {(height // patch) * (width // patch)} patches of "
                f"{patch} pixels, and the checkpoint has positions for {tokens}."
            )
        return height, width
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise CheckpointError(
            f"the checkpoint has positions for {tokens} patches, which form no square: say "
            "img_size=(height, width)."
        )
    return side * patch, side * patch


def pick_pixels(channels: int, settings: Settings, usual: PixelFormat = IMAGENET) -> PixelFormat:
    """How images are normalised: as given, or as usual for weights of that kind."""
    mean = settings.channels("mean") or usual.mean
    std = settings.channels("std") or usual.std
    if len(mean) != len(std):
        raise CheckpointError(f"mean has {len(mean)} channels and std has {len(std)}.")
    return eight_bit(mean, std, channels)
