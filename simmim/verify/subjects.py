"""What is checked on: small models of every kind, random images, real photos."""

import tarfile
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from simmim.config.decoder import LinearDecoder, TransformerDecoder
from simmim.config.encoder import Arguments, EncoderConfig
from simmim.config.mask import RandomMask
from simmim.config.recipes import RECIPES
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.config.target import PixelTarget
from simmim.data.demo import ARCHIVE
from simmim.models.mim import MaskedImageModel, build_model
from simmim.verify.check import Ground

RGB = PixelFormat(
    channels=3,
    low=(0.0,) * 3,
    high=(255.0,) * 3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
SIZE = (32, 48)
"""Not square, so that rows and columns cannot be mixed up unseen."""
PATCH = 8
"""Side of a patch in pixels; Swin's features stand for 32."""
GRID = (SIZE[0] // PATCH, SIZE[1] // PATCH)

_NARROW: Arguments = {"embed_dim": 48, "depth": 2, "num_heads": 3}

VIT = PretrainConfig(
    encoder=EncoderConfig(model="vit_tiny_patch16_224", patch_size=PATCH, arguments=_NARROW),
    decoder=TransformerDecoder(depth=2, width=32, heads=2),
)
"""The default recipe, narrow."""


def _kind(model: str) -> PretrainConfig:
    encoder = EncoderConfig(model=model, patch_size=PATCH, arguments=_NARROW)
    return replace(VIT, encoder=encoder)


DEIT = _kind("deit_tiny_distilled_patch16_224")
"""Two tokens before the patches."""
EVA = _kind("eva02_tiny_patch14_224")
"""Rotary positions beside the absolute ones."""
BEIT = replace(
    VIT,
    encoder=EncoderConfig(
        model="beit_base_patch16_224",
        patch_size=PATCH,
        position="none",
        init="truncated",
        arguments=_NARROW,
    ),
    decoder=LinearDecoder(),
    target=PixelTarget(loss="l1"),
)
"""simmim-paper, narrow: relative positions, mask tokens inside the encoder."""
SWIN = replace(
    BEIT,
    encoder=EncoderConfig(
        model="swin_tiny_patch4_window7_224",
        position="none",
        init="truncated",
        arguments={
            "embed_dim": 12,
            "depths": (1, 1, 1, 1),  # pyright: ignore[reportArgumentType]
            "num_heads": (1, 1, 2, 2),  # pyright: ignore[reportArgumentType]
            "window_size": 2,
        },
    ),
    mask=RandomMask(ratio=0.5, unit=32),
)
"""simmim-paper-swin, narrow: windows and merged patches."""
_RECIPE = RECIPES["simmim-fast"]()
FAST = replace(_RECIPE, encoder=VIT.encoder, optim=replace(_RECIPE.optim, lr=1e-2))
"""simmim-fast, narrow: Muon, targets that combine, the layout."""


def build(
    config: PretrainConfig, size: tuple[int, int] = SIZE, pixels: PixelFormat = RGB
) -> MaskedImageModel:
    """A model none of whose parameters is at a special value, in evaluation mode."""
    torch.manual_seed(0)
    model = build_model(config, pixels, size)
    stir(model)
    return model.eval()


def stir(module: nn.Module) -> None:
    """Move zeros and ones away from where they start, so that no term is hidden by them."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def normals(ground: Ground, purpose: str, *shape: int) -> Tensor:
    """Standard normal float32."""
    return torch.from_numpy(ground.numbers(purpose).standard_normal(shape, dtype=np.float32))


def some_masked(ground: Ground, rows: int, patches: int, count: int) -> Tensor:
    """A boolean (rows, patches): ``count`` of each row are True."""
    order = ground.numbers("masked").random((rows, patches)).argsort(1).argsort(1)
    return torch.from_numpy(order < count)


def photos(folder: Path, count: int = 24) -> Path:
    """The first photos that come with simmim, as files below ``folder``."""
    root = folder / "photos"
    root.mkdir()
    with as_file(files("simmim.data").joinpath(ARCHIVE)) as archive, tarfile.open(archive) as tar:
        names = (member for member in tar if member.name.endswith(".jpg"))
        for number, member in zip(range(count), names, strict=False):
            file = tar.extractfile(member)
            if file is not None:
                (root / f"{number:02}.jpg").write_bytes(file.read())
    return root
