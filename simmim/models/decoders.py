"""Decoders: from features to predictions for the masked patches."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim.config.decoder import DecoderConfig, LinearDecoder, TransformerDecoder
from simmim.errors import ConfigError
from simmim.models.attention import prefers_plain
from simmim.models.positions import sine_cosine
from simmim.tensors.features import Features
from simmim.tensors.mask import Mask, pick
from simmim.tensors.parts import Part, Parts, Roles


class Decoder(Part):
    """What a model needs of a decoder."""

    def forward(self, features: Features, mask: Mask) -> Tensor:
        """Predict the masked patches → (B, M, outputs)."""
        raise NotImplementedError


class Attention(nn.Module):
    """Multi-head self-attention whose queries may be a part of the tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, skip: int) -> Tensor:
        """(B, L, w) → (B, L - skip, w): the first ``skip`` tokens are read, not updated."""
        b, length, width = x.shape
        if skip:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(x[:, skip:], weight[:width], bias[:width])
            k, v = F.linear(x, weight[width:], bias[width:]).chunk(2, dim=-1)
        else:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (
            y.view(b, -1, self.heads, width // self.heads).transpose(1, 2) for y in (q, k, v)
        )
        if prefers_plain(x):
            weights = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
            y = weights.softmax(dim=-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, length - skip, width))


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, w) → (B, L, w)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, skip: int = 0) -> Tensor:
        """(B, L, w) → (B, L - skip, w): the first ``skip`` tokens are read, not updated."""
        x = x[:, skip:] + self.attn(self.norm1(x), skip)
        return x + self.mlp(self.norm2(x))


class Transformer(Decoder):
    """Encoded visible tokens and mask tokens through a light transformer (MAE sec. 3).

    Tokens stand in the order prefix, visible, masked: attention does not mind, positions are
    added to each, and the masked ones need no picking. The last block updates the masked tokens
    alone, since nothing reads the others.
    """

    position: Tensor

    def __init__(
        self, config: TransformerDecoder, dim: int, grid: tuple[int, int], outputs: int
    ) -> None:
        super().__init__()
        width = config.width or max(32, 32 * round(dim * config.width_share / 32))
        heads = config.heads or max(1, width // 32)
        if width % heads:
            raise ConfigError(
                f"decoder.heads {heads} does not divide decoder.width {width}; "
                f"use --decoder.heads {max(h for h in range(1, heads + 1) if width % h == 0)}."
            )
        self.heads = heads
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("position", sine_cosine(grid, width), persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, outputs)
        self.layers = list(self.blocks)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=width**-0.5 if config.mask_token == "width" else 0.02)

    def forward(self, features: Features, mask: Mask) -> Tensor:
        """Predict the masked patches → (B, M, outputs)."""
        prefix = features.prefix.shape[1]
        seen = self.embed(torch.cat([features.prefix, features.patches], dim=1))
        position = self.position.to(seen.dtype)  # (N, w)
        visible = seen[:, prefix:] + position[mask.visible_index]
        hidden = self.mask_token.to(seen.dtype) + position[mask.masked_index]
        x = torch.cat([seen[:, :prefix], visible, hidden], dim=1)
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.blocks[-1](x, skip=x.shape[1] - mask.count)
        return self.head(self.norm(x))

    def roles(self, depth: int) -> Roles:
        """All of it lies above the encoder."""
        mask: Roles = {"mask_token": ("mask", depth)}
        return super().roles(depth) | mask


class Linear(Decoder):
    """One linear layer on each token: SimMIM's prediction head (sec. 3.3)."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, outputs)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Features, mask: Mask) -> Tensor:
        """Predict the masked patches → (B, M, outputs)."""
        return self.head(pick(features.patches, mask.masked_index))


def build_decoder(config: DecoderConfig, parts: Parts, outputs: int) -> Decoder:
    """The decoder of a run, predicting ``outputs`` numbers per masked patch."""
    match config:
        case TransformerDecoder():
            return Transformer(config, parts.encoder.width, parts.grid, outputs)
        case LinearDecoder():
            return Linear(parts.encoder.width, outputs)
