"""Heads that say something of every pixel, on maps of an encoder's tokens.

Where the published heads normalise over the batch, these do over the channels of each place, as
ViTDet does: what becomes of an image does not depend on the others of its micro-batch, and a pool
of one place can be normalised too.
"""

from collections.abc import Sequence
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from simmim.errors import ConfigError
from simmim.models.encoder import Encoder

POOLS = (1, 2, 3, 6)
"""Sides of what the pyramid pools to (Zhao et al., 2017; Xiao et al., 2018)."""

HeadKind = Literal["linear", "upernet", "dpt"]


def usual_blocks(encoder: Encoder, kind: HeadKind) -> tuple[int, ...]:
    """Four blocks of the encoder: of 12 those that BEiT's UPerNet reads, or DPT does.

    Of Swin each stage's last. Numbers from 0; fewer blocks than four come twice.
    """
    if encoder.stages > 1:
        ends = [len(stage.blocks) for stage in encoder.net.layers]
        return tuple(sum(ends[: n + 1]) - 1 for n in range(len(ends)))
    depth = encoder.depth
    shares = (1 / 4, 1 / 2, 3 / 4, 1) if kind == "dpt" else (1 / 3, 1 / 2, 2 / 3, 1)
    return tuple(max(0, round(depth * share) - 1) for share in shares)


def build_head(
    kind: HeadKind, widths: Sequence[int], width: int, classes: int, patch: int | None
) -> nn.Module:
    """What says something of every pixel; see the heads for what they are given."""
    match kind:
        case "linear":
            return LinearHead(widths, classes)
        case "upernet":
            return UPerNetHead(widths, width, classes, patch)
        case "dpt":
            return DPTHead(widths, width, classes, patch)
        case _:
            assert_never(kind)


class Maps(nn.Module):
    """Outputs of blocks as maps; that of the last block after the encoder's final norm.

    Args:
        encoder: Gives widths and strides; it is not kept.
        blocks: Numbers of the blocks, from 0, ascending, the last one among them: what comes after
            them would not be trained.

    Attributes:
        widths: Channels of each map.
        strides: Side in pixels of a place of each map.
    """

    def __init__(self, encoder: Encoder, blocks: Sequence[int]) -> None:
        super().__init__()
        last = encoder.depth - 1
        if list(blocks) != sorted(blocks) or blocks[-1] != last or blocks[0] < 0:
            raise ConfigError(
                f"task.blocks must be ascending numbers of blocks from 0 that end with the last "
                f"one, {last}, got {', '.join(map(str, blocks))}."
            )
        self.blocks = tuple(blocks)
        self.widths = [encoder.width] * len(blocks)
        self.strides = [encoder.patch] * len(blocks)
        if encoder.stages > 1:
            stages = [n for n, stage in enumerate(encoder.net.layers) for _ in stage.blocks]
            self.widths = [encoder.token_width * 2 ** stages[n] for n in blocks]
            self.strides = [encoder.patch * 2 ** stages[n] for n in blocks]

    def forward(self, encoder: Encoder, images: Tensor) -> list[Tensor]:
        """Maps (B, D, h, w) of normalised images (B, C, H, W)."""
        found = encoder.features(images, self.blocks[:-1])
        height, width = images.shape[2:]
        tokens = zip((*found.layers, found.patches), self.strides, strict=True)
        return [
            each.transpose(1, 2).unflatten(2, (height // stride, width // stride))
            for each, stride in tokens
        ]


class LinearHead(nn.Module):
    """One linear layer on the normalised tokens of one or several blocks."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm2d(width) for width in widths)
        self.classify = _classify(sum(widths), classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, classes, h, w) at the size of the first map."""
        size = maps[0].shape[2:]
        normed = [norm(each) for norm, each in zip(self.norms, maps, strict=True)]
        return self.classify(torch.cat([_resize(each, size) for each in normed], 1))


class Pyramid(nn.Module):
    """Maps of a plain ViT at four strides (BEiT, MAE): of patch 16 at 4, 8, 16 and 32 pixels.

    ×4 is two transposed convolutions with a norm and a GELU between, ×2 is one, and below the
    stride of the patches maps are max-pooled. Patches of 8 pixels or less begin with ×2.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()

        def up() -> nn.Module:
            return nn.ConvTranspose2d(width, width, 2, 2)

        four = nn.Sequential(up(), LayerNorm2d(width), nn.GELU(), up())
        levels = [up(), nn.Identity(), nn.MaxPool2d(2, ceil_mode=True)]
        if patch <= 8:
            levels.append(nn.MaxPool2d(4, ceil_mode=True))
        else:
            levels.insert(0, four)
        self.levels = nn.ModuleList(levels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four maps of one size to four of falling sizes."""
        return [level(each) for level, each in zip(self.levels, maps, strict=True)]


class UPerNetHead(nn.Module):
    """A feature pyramid whose top is pooled to four sizes (Xiao et al., 2018).

    Args:
        widths: Channels of the four maps, the finest first.
        width: Channels within.
        classes: Outputs.
        patch: Of a plain ViT, whose maps become a pyramid first; None: they are one.
    """

    def __init__(self, widths: Sequence[int], width: int, classes: int, patch: int | None) -> None:
        super().__init__()
        self.neck = None if patch is None else Pyramid(widths[0], patch)
        self.pools = nn.ModuleList(_convolve(widths[-1], width, 1) for _ in POOLS)
        self.top = _convolve(widths[-1] + len(POOLS) * width, width, 3)
        self.laterals = nn.ModuleList(_convolve(each, width, 1) for each in widths[:-1])
        self.smooths = nn.ModuleList(_convolve(width, width, 3) for _ in widths[:-1])
        self.fuse = _convolve(len(widths) * width, width, 3)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = _classify(width, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, classes, h, w) at the size of the finest map."""
        if self.neck is not None:
            maps = self.neck(maps)
        *others, top = maps
        size = top.shape[2:]
        pooled = [
            _resize(convolve(F.adaptive_avg_pool2d(top, side)), size)
            for side, convolve in zip(POOLS, self.pools, strict=True)
        ]
        levels = [self.top(torch.cat([top, *pooled], 1))]
        for each, lateral in zip(reversed(others), reversed(self.laterals), strict=True):
            levels.insert(0, lateral(each) + _resize(levels[0], each.shape[2:]))
        smooth = [convolve(each) for convolve, each in zip(self.smooths, levels, strict=False)]
        size = levels[0].shape[2:]
        whole = torch.cat([_resize(each, size) for each in (*smooth, levels[-1])], 1)
        return self.classify(self.dropout(self.fuse(whole)))


class DPTHead(nn.Module):
    """Four maps fused from the coarsest to the finest, and beyond it (Ranftl et al., 2021).

    Args:
        widths: Channels of the four maps, the finest first.
        width: Channels within.
        classes: Outputs.
        patch: Of a plain ViT, whose maps are brought to four sizes first; None: they have them.
    """

    def __init__(self, widths: Sequence[int], width: int, classes: int, patch: int | None) -> None:
        super().__init__()
        self.neck = None
        if patch is not None:
            inner, shares = widths[0], (8, 4, 2, 1)
            widths = [max(1, inner // share) for share in shares]
            scales = (2, 1, 1 / 2, 1 / 4) if patch <= 8 else (4, 2, 1, 1 / 2)
            pairs = zip(widths, scales, strict=True)
            self.neck = nn.ModuleList(
                nn.Sequential(nn.Conv2d(inner, each, 1), _scaled(each, scale))
                for each, scale in pairs
            )
        self.laterals = nn.ModuleList(
            nn.Conv2d(each, width, 3, padding=1, bias=False) for each in widths
        )
        self.fusions = nn.ModuleList(
            Fusion(width, last=each == len(widths) - 1) for each in range(len(widths))
        )
        self.fuse = _convolve(width, width, 3)
        self.dropout = nn.Dropout(0.1)
        self.classify = _classify(width, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, classes, h, w) at twice the size of the finest map."""
        if self.neck is not None:
            maps = [scale(each) for scale, each in zip(self.neck, maps, strict=True)]
        levels = [lateral(each) for lateral, each in zip(self.laterals, maps, strict=True)]
        height, width = levels[0].shape[2:]
        sizes = [(2 * height, 2 * width), *(each.shape[2:] for each in levels[:-1])]
        fused = None
        for fusion, level, size in reversed(list(zip(self.fusions, levels, sizes, strict=True))):
            fused = fusion(fused, level, size)
        assert fused is not None
        return self.classify(self.dropout(self.fuse(fused)))


class Fusion(nn.Module):
    """What coarser maps came to, and one more map, at a larger size."""

    def __init__(self, width: int, *, last: bool) -> None:
        super().__init__()
        self.lateral = None if last else Residual(width)
        self.mix = Residual(width)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, fused: Tensor | None, level: Tensor, size: Sequence[int]) -> Tensor:
        """(B, D, h, w) of the coarser, if there are any, and of this map, to ``size``."""
        if self.lateral is not None:
            assert fused is not None
            level = fused + self.lateral(level)
        mixed = self.mix(level)
        larger = F.interpolate(mixed, tuple(size), mode="bilinear", align_corners=True)
        return self.project(larger)


class Residual(nn.Module):
    """Two convolutions, each after a rectifier and before a norm, beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()

        def step() -> nn.Module:
            convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
            return nn.Sequential(nn.ReLU(), convolution, LayerNorm2d(width))

        self.steps = nn.Sequential(step(), step())

    def forward(self, values: Tensor) -> Tensor:
        """(B, D, h, w), as it is given."""
        return values + self.steps(values)


def _scaled(width: int, scale: float) -> nn.Module:
    """What brings a map to a multiple, or to a part, of its size."""
    if scale > 1:
        return nn.ConvTranspose2d(width, width, int(scale), int(scale))
    step = int(1 / scale)
    if step == 1:
        return nn.Identity()
    return nn.Conv2d(width, width, step + 1, step, padding=step // 2)


def _convolve(inputs: int, outputs: int, side: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
    return nn.Sequential(convolution, LayerNorm2d(outputs), nn.ReLU())


def _classify(inputs: int, classes: int) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, classes, 1)
    nn.init.normal_(convolution.weight, std=0.01)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


def _resize(values: Tensor, size: Sequence[int]) -> Tensor:
    if values.shape[2:] == tuple(size):
        return values
    return F.interpolate(values, tuple(size), mode="bilinear", align_corners=False)
