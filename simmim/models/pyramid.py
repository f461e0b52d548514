"""Maps of several resolutions from an encoder, as detectors read them."""

from collections import OrderedDict
from itertools import accumulate

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from simmim.config.optim import Role
from simmim.models.encoder import Encoder
from simmim.models.windows import Windows
from simmim.tensors.parts import usual_roles


class SimplePyramid(nn.Module):
    """Maps of 4, 2, 1 and ½ times the resolution of one map ("ViTDet"; Li et al., 2022).

    Transposed convolutions, nothing, or a max-pool; then a 1×1 and a 3×3 convolution without bias,
    each followed by a layer norm over the channels.

    Args:
        width: Channels of the map.
        channels: Those of each map that is made.
        finest: Whether the first of the four is made.
    """

    def __init__(self, width: int, channels: int, *, finest: bool = True) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        four = [nn.ConvTranspose2d(width, half, 2, 2), LayerNorm2d(half), nn.GELU()]
        scales = [
            (quarter, [*four, nn.ConvTranspose2d(half, quarter, 2, 2)]),
            (half, [nn.ConvTranspose2d(width, half, 2, 2)]),
            (width, []),
            (width, [nn.MaxPool2d(2, 2)]),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                *scale,
                nn.Conv2d(wide, channels, 1, bias=False),
                LayerNorm2d(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                LayerNorm2d(channels),
            )
            for wide, scale in scales[0 if finest else 1 :]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, D, h, w) → (B, C, 4h, 4w), (B, C, 2h, 2w), (B, C, h, w), (B, C, h/2, w/2)."""
        return [level(x) for level in self.levels]


class Blocks(nn.Module):
    """Reads the outputs of some blocks of an encoder, as it is.

    Args:
        read: Which, from 0.
    """

    def __init__(self, read: tuple[int, ...]) -> None:
        super().__init__()
        self.read = read

    def forward(self, encoder: Encoder, images: Tensor) -> tuple[Tensor, ...]:
        """Each (B, N, D), of normalised images (B, C, H, W)."""
        return encoder.features(images, self.read).layers


class Pyramid(nn.Module):
    """An encoder with maps on top: torchvision's detectors call it their backbone.

    Of a plain encoder the last block's output is read, without the final norm, which is not trained
    therefore, and by ``Windows`` if asked for; of Swin, the last block's of each stage, each after
    a norm, through a pyramid with steps from above (Lin et al., 2017).

    Args:
        encoder: The backbone.
        channels: Channels of each map.
        finest: Whether the finest of four maps is wanted.
        window: Side of the windows that blocks attend in, in patches; 0: they attend everywhere.

    Attributes:
        out_channels: ``channels``, as torchvision asks for them.
        strides: Pixels between two places of each map, the last of half the resolution among them.

    Raises:
        ConfigError: The encoder's blocks cannot attend in windows.
    """

    def __init__(self, encoder: Encoder, channels: int, *, finest: bool, window: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        self.out_channels = channels
        encoder.net.norm.requires_grad_(requires_grad=False)
        first = 0 if finest else 1
        if encoder.stages > 1:
            ends = list(accumulate(len(stage.blocks) for stage in encoder.net.layers))
            read = tuple(end - 1 for end in ends[first:])
            widths = [encoder.token_width * 2**k for k in range(first, len(ends))]
            self.norms = nn.ModuleList(LayerNorm2d(width) for width in widths)
            self.neck: nn.Module = FeaturePyramidNetwork(widths, channels, norm_layer=LayerNorm2d)
            self.strides = [encoder.patch * 2.0**k for k in range(first, len(ends))]
        else:
            read = (encoder.depth - 1,)
            self.neck = SimplePyramid(encoder.width, channels, finest=finest)
            self.strides = [encoder.patch * 2.0 ** (k - 2) for k in range(first, 4)]
        self.strides.append(2 * self.strides[-1])
        self.blocks = Windows(encoder, window) if window else Blocks(read)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Maps of normalised images (B, C, H, W), the finest first, named "0", "1", …, "pool"."""
        found = self.blocks(self.encoder, images)
        if self.encoder.stages > 1:
            stages = zip(self.norms, found, self.strides[:-1], strict=True)
            normed = [norm(_as_map(x, images, int(stride))) for norm, x, stride in stages]
            made = list(self.neck({str(k): each for k, each in enumerate(normed)}).values())
        else:
            made = self.neck(_as_map(found[0], images, self.encoder.patch))
        named = {str(k): each for k, each in enumerate(made)}
        return OrderedDict(**named, pool=F.max_pool2d(made[-1], 1, 2))

    def roles(self) -> dict[str, tuple[Role, int]]:
        """Those of the encoder, and what is on top beside its final norm."""
        top = self.encoder.depth + 1
        inside = {f"encoder.{name}": role for name, role in self.encoder.roles().items()}
        if isinstance(self.blocks, Windows):
            inside |= {f"blocks.{name}": role for name, role in self.blocks.roles().items()}
        return {**{name: (role, top) for name, role in usual_roles(self, []).items()}, **inside}


def _as_map(tokens: Tensor, images: Tensor, stride: int) -> Tensor:
    """(B, h·w, D) → (B, D, h, w)."""
    grid = images.shape[2] // stride, images.shape[3] // stride
    return tokens.transpose(1, 2).unflatten(2, grid).contiguous()
