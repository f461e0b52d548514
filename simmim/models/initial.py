"""How an encoder's weights and positions start."""

import math
from typing import Any, Literal

import torch
from torch import nn

from simmim.models.positions import sine_cosine

RESIDUAL_OUTPUTS = frozenset({"proj", "fc2", "attn_out_proj", "mlp_out_proj"})
"""timm's names of the layers whose output is added to a block's residual stream."""


@torch.no_grad()
def start_xavier(net: Any, tokens: list[nn.Parameter]) -> None:
    """MAE's start: xavier-uniform matrices, zero biases, normal tokens of deviation 0.02.

    The patch projection is treated as the linear layer that it is.
    """
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for token in tokens:
        nn.init.normal_(token, std=0.02)


@torch.no_grad()
def start_truncated(net: Any, tokens: list[nn.Parameter], blocks: list[nn.Module]) -> None:
    """SimMIM's start for a ViT: normal of deviation 0.02, truncated at one deviation, zero biases.

    The layers that end a branch of block l, counted from 1, are then divided by √(2l).
    """
    modules = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for tensor in [*(module.weight for module in modules), *tokens]:
        nn.init.trunc_normal_(tensor, std=0.02, a=-0.02, b=0.02)
    for module in modules:
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    for number, block in enumerate(blocks, start=1):
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] in RESIDUAL_OUTPUTS:
                module.weight.div_(math.sqrt(2 * number))


@torch.no_grad()
def start_positions(
    pos_embed: nn.Parameter, grid: tuple[int, int], mode: Literal["trained", "fixed"]
) -> None:
    """Sine-cosine positions for the patches and zeros for the tokens before them, in place.

    Args:
        pos_embed: (1, R + N, D), or (1, N, D) where the prefix tokens have no positions.
        grid: Patches per column and row (h, w); N = h·w.
        mode: "fixed" takes the positions out of training.
    """
    patches = grid[0] * grid[1]
    pos_embed.zero_()
    pos_embed[0, -patches:] = sine_cosine(grid, pos_embed.shape[-1])
    pos_embed.requires_grad_(mode == "trained")
