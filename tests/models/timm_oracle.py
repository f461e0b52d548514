"""Small encoders, and what timm itself computes with their weights."""

import json
import math

import timm
import torch
from torch import Tensor, nn

from simmim.config import models
from simmim.config.encoder import EncoderConfig
from simmim.models.build import build_encoder
from simmim.models.encoder import Encoder
from simmim.tensors.mask import pick
from simmim.tensors.patches import patchify

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}
TOKEN_MODELS = [
    "vit_tiny_patch16_224",
    "vit_base_patch16_siglip_224",  # no class token, pooled by attention
    "vit_base_patch32_clip_224",  # norm before the blocks, no bias in the projection
    "vit_small_patch14_reg4_dinov2",  # registers, positions for patches only
    "vit_base_patch16_gap_224",  # the final norm after pooling
    "vit_base_patch16_clip_quickgelu_224",
    "deit_tiny_distilled_patch16_224",
    "eva02_tiny_patch14_224",  # absolute and rotary positions
    "vit_small_patch16_dinov3",  # rotary ones, any image size
    "vit_small_patch16_rope_mixed_224",  # learned rotary ones in each block
    "beit_base_patch16_224",  # relative biases
]
SWIN = "swin_tiny_patch4_window7_224"
SWIN_SMALL = {"depths": (1, 2, 1, 1), "embed_dim": 12}
GRID = (3, 4)


def make(
    model: str, *, grid: tuple[int, int] = GRID, channels: int = 3, **config: object
) -> Encoder:
    """A small encoder in double precision, none of whose parameters is at a special value."""
    torch.manual_seed(0)
    patch = config.get("patch_size") or models.MODELS[model].stride
    config.setdefault("arguments", SWIN_SMALL if "swin" in model else SMALL)
    encoder = build_encoder(
        EncoderConfig(model=model, **config),
        image_size=(grid[0] * patch, grid[1] * patch),
        channels=channels,
    )
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.double().eval()


def images_for(encoder: Encoder, grid: tuple[int, int] | None = None) -> Tensor:
    torch.manual_seed(1)
    sides = [side * encoder.stride for side in grid or encoder.grid]
    return torch.randn(2, encoder.channels, *sides, dtype=torch.float64)


def some_visible(encoder: Encoder, grid: tuple[int, int] | None = None) -> Tensor:
    torch.manual_seed(2)
    count = math.prod(grid or encoder.grid)
    order = torch.rand(2, count).argsort(1)
    return order[:, : max(1, round(0.4 * count))].sort(1).values


def encode(encoder: Encoder, images: Tensor, index: Tensor | None, layers: tuple[int, ...] = ()):
    patches = patchify(images, encoder.patch)
    height, width = (side // encoder.patch for side in images.shape[2:])
    if index is not None:
        patches = pick(patches, index)
    return encoder(encoder.project(patches), index, (height, width), layers)


def deployed(encoder: Encoder) -> nn.Module:
    """What a user gets who has only timm, the written arguments and the written weights."""
    arguments = json.loads(json.dumps(encoder.arguments))
    model = timm.create_model(encoder.model, **arguments).double().eval()
    model.load_state_dict(encoder.timm_state(), strict=True)
    return model


class Keep(nn.Module):
    """In timm's slot for patch dropout: keeps the patches at given places."""

    def __init__(self, index: Tensor, prefix: int, *, report: bool) -> None:
        super().__init__()
        self.index, self.prefix, self.report = index, prefix, report

    def forward(self, x: Tensor):
        x = torch.cat([x[:, : self.prefix], pick(x[:, self.prefix :], self.index)], dim=1)
        return (x, self.index) if self.report else x


def timm_on_visible(
    encoder: Encoder, images: Tensor, index: Tensor, model: nn.Module | None = None
) -> Tensor:
    """timm's own features of the visible patches alone, (B, R + V, D); ``model``: its model."""
    model = model or deployed(encoder)
    if models.MODELS[encoder.model].family == "Beit":
        # Beit has no such slot; instead no token may attend to a masked one.
        x = torch.cat([model.cls_token.expand(len(images), -1, -1), model.patch_embed(images)], 1)
        places = torch.cat([torch.zeros_like(index[:, :1]), index + 1], dim=1)
        hidden = torch.ones(x.shape[:2], dtype=torch.bool).scatter(1, places, value=False)
        closed = torch.zeros(hidden.shape, dtype=x.dtype).masked_fill(hidden, -torch.inf)
        for block in model.blocks:
            x = block(x, shared_rel_pos_bias=closed[:, None, None, :])
        return pick(model.norm(x), places)
    report = models.MODELS[encoder.model].family == "Eva"
    model.patch_drop = Keep(index, model.num_prefix_tokens, report=report)
    return model.forward_features(images)
