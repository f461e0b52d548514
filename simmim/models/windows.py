"""ViTDet's attention for large images: in windows, with relative positions (Li et al., 2022)."""

import math

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from simmim.config.optim import Role
from simmim.errors import ConfigError
from simmim.models.backbones import TokenEncoder, ViTEncoder
from simmim.models.encoder import Encoder
from simmim.models.resample import Grid
from simmim.tensors.patches import patchify

WHOLE = 4
"""Blocks that attend everywhere."""


class Windows(nn.Module):
    """The blocks of a plain ViT without its class token, most of which attend in windows.

    All but four, evenly spread, attend within windows alone, which are filled up with zeros where
    the image ends. In all of them the query times a vector for the rows between two places, and
    one for the columns, is added to the logits: these tables start at zero. The encoder keeps its
    weights, and is given anew each time.

    Args:
        encoder: Whose blocks they are, for images of its own size; its class token is not trained.
        side: Of a window in patches.

    Attributes:
        sizes: Height and width of what each block attends in.

    Raises:
        ConfigError: It is no plain ViT.
    """

    def __init__(self, encoder: Encoder, side: int) -> None:
        super().__init__()
        _check_plain(encoder)
        for token in encoder.prefix_tokens():
            token.requires_grad = False
        depth = encoder.depth
        whole = {math.ceil(depth * k / WHOLE) - 1 for k in range(1, WHOLE + 1)}
        self.sizes = [encoder.grid if n in whole else (side, side) for n in range(depth)]
        width = encoder.width // encoder.net.blocks[0].attn.num_heads
        self.rows, self.columns = (
            nn.ParameterList(torch.zeros(2 * size[k] - 1, width) for size in self.sizes)
            for k in (0, 1)
        )

    def forward(self, encoder: TokenEncoder, images: Tensor) -> tuple[Tensor]:
        """The last block's output (B, N, D) of normalised images (B, C, H, W)."""
        tokens = encoder.project(patchify(images, encoder.patch))
        x = encoder.enter(tokens, None, encoder.grid)[:, -tokens.shape[1] :]
        for n, block in enumerate(encoder.net.blocks):
            seen = attend(
                block.attn,
                block.norm1(x).unflatten(1, encoder.grid),
                self.sizes[n],
                (self.rows[n], self.columns[n]),
            )
            x = x + block.drop_path1(block.ls1(seen.flatten(1, 2)))
            x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
        return (x,)

    def roles(self) -> dict[str, tuple[Role, int]]:
        """Role and depth of each table: that of its block; see ``Encoder.roles``."""
        return {name: ("relative", int(name.rpartition(".")[2]) + 1) for name in self.state_dict()}


def attend(attention: Attention, x: Tensor, size: Grid, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Attend within windows.

    Args:
        attention: timm's, whose layers are used.
        x: Normalised (B, h, w, D).
        size: Height and width of a window.
        tables: For the rows (2 · height - 1, d) and the columns between two places; see
            ``relative_logits``.
    """
    height, width = x.shape[1:3]
    tall, wide = -(-height // size[0]), -(-width // size[1])
    x = F.pad(x, (0, 0, 0, wide * size[1] - width, 0, tall * size[0] - height))
    # B tall h wide w D → B·tall·wide h·w D
    windows = x.unflatten(2, (wide, size[1])).unflatten(1, (tall, size[0]))
    windows = windows.transpose(2, 3).flatten(0, 2).flatten(1, 2)
    heads = attention.qkv(windows).unflatten(2, (3, attention.num_heads, -1))
    query, key, value = heads.permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(query), attention.k_norm(key)
    seen = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=relative_logits(query, size, tables).to(query.dtype),
        dropout_p=attention.attn_drop.p if attention.training else 0.0,
    )
    out = attention.proj_drop(attention.proj(seen.transpose(1, 2).flatten(2)))
    out = out.unflatten(1, size).unflatten(0, (-1, tall, wide)).transpose(2, 3)
    return out.flatten(3, 4).flatten(1, 2)[:, :height, :width]


def relative_logits(query: Tensor, size: Grid, tables: tuple[Tensor, Tensor]) -> Tensor:
    """What is added to the logits (B, heads, N, N) of queries (B, heads, N, d), N = h · w.

    Of a query at row i for a key at row j it is their product with line i - j + h - 1 of the table
    for rows, and likewise for columns.
    """
    rows, columns = (_by_place(table, count) for table, count in zip(tables, size, strict=True))
    placed = query.unflatten(2, size)
    by_row = torch.einsum("bnhwd,hkd->bnhwk", placed, rows)
    by_column = torch.einsum("bnhwd,wkd->bnhwk", placed, columns)
    return (by_row[..., None] + by_column[..., None, :]).flatten(4).flatten(2, 3)


def _by_place(table: Tensor, count: int) -> Tensor:
    """(2 · count - 1, d) → (count, count, d), a vector for each place of a query and of a key."""
    places = torch.arange(count, device=table.device)
    return F.embedding(places[:, None] - places + count - 1, table)


def _check_plain(encoder: Encoder) -> None:
    """Raise ``ConfigError`` unless the blocks are those of a plain ViT."""
    plain = type(encoder) is ViTEncoder and all(
        type(block) is Block
        and type(block.attn) is Attention
        and block.attn.gate is None
        and isinstance(block.attn.norm, nn.Identity)
        for block in encoder.layers
    )
    if not plain:
        raise ConfigError(
            f"--task.window is for the plain blocks of timm's VisionTransformer, such as "
            f"vit_base_patch16_224, and {encoder.model} has others. Leave it out."
        )
