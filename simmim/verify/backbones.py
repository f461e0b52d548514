"""Encoders with patches left out, against timm's own code for that."""

from dataclasses import replace

import numpy as np
import timm
import torch
from torch import Tensor, nn

from simmim.config.run import PretrainConfig
from simmim.tensors.mask import Mask
from simmim.verify.check import Figure, Ground
from simmim.verify.subjects import GRID, SIZE, VIT, build, normals, some_masked


class Keep(nn.Module):
    """In timm's slot for patch dropout: keeps the patches at given places."""

    def __init__(self, index: Tensor, prefix: int, *, report: bool) -> None:
        super().__init__()
        self.index, self.prefix, self.report = index, prefix, report

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens (B, R + N, D) → (B, R + V, D), with their places for Eva."""
        rows = torch.arange(len(x))[:, None]
        x = torch.cat([x[:, : self.prefix], x[:, self.prefix :][rows, self.index]], dim=1)
        return (x, self.index) if self.report else x


def against_timm(ground: Ground, config: PretrainConfig) -> Figure:
    """Features of the visible patches, against the deployed timm model on the whole images.

    timm's ``patch_drop`` leaves the masked patches out; Beit, which has none, may not attend to
    them. Relative to the largest feature, 1e-5.
    """
    # Visible patches alone, whatever the recipe's own decoder reads.
    model = build(replace(config, decoder=VIT.decoder))
    encoder = model.encoder
    images = normals(ground, "timm", 2, 3, *SIZE)
    masked = some_masked(ground, 2, GRID[0] * GRID[1], 10)
    index = torch.from_numpy(np.stack([np.flatnonzero(~row) for row in masked.numpy()]))
    net = timm.create_model(encoder.model, **encoder.arguments).eval()
    net.load_state_dict(encoder.timm_state(), strict=True)
    with torch.no_grad():
        found = model.encode(images, Mask.given(masked, GRID))
        ours = torch.cat([found.prefix, found.patches], dim=1)
        theirs = _attending(net, images, index) if _is_beit(net) else _dropping(net, images, index)
    worst = float((ours - theirs).abs().max() / theirs.abs().max())
    return Figure(worst, 1e-5, "largest relative difference")


def _is_beit(net: nn.Module) -> bool:
    return type(net).__name__ == "Beit"


def _dropping(net: nn.Module, images: Tensor, index: Tensor) -> Tensor:
    report = type(net).__name__ == "Eva"
    net.patch_drop = Keep(index, net.num_prefix_tokens, report=report)  # type: ignore[arg-type]
    return net.forward_features(images)  # type: ignore[operator]


def _attending(net: nn.Module, images: Tensor, index: Tensor) -> Tensor:
    x = net.patch_embed(images)  # type: ignore[operator]
    x = torch.cat([net.cls_token.expand(len(x), -1, -1), x], dim=1)  # type: ignore[operator]
    places = torch.cat([torch.zeros_like(index[:, :1]), index + 1], dim=1)
    closed = torch.full(x.shape[:2], -torch.inf).scatter(1, places, 0.0)
    for block in net.blocks:  # type: ignore[union-attr]
        x = block(x, shared_rel_pos_bias=closed[:, None, None, :])
    return net.norm(x)[torch.arange(len(x))[:, None], places]  # type: ignore[operator]
