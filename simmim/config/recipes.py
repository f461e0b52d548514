"""Published settings, one function each (numbers and sources: docs/recipes.md)."""

from collections.abc import Callable

from simmim.config.augment import AugmentConfig
from simmim.config.decoder import LinearDecoder, TransformerDecoder
from simmim.config.encoder import EncoderConfig
from simmim.config.extra import LayoutExtra
from simmim.config.mask import RandomMask
from simmim.config.optim import OptimConfig
from simmim.config.run import PretrainConfig
from simmim.config.target import CombinedTarget, HogTarget, PixelTarget


def simmim() -> PretrainConfig:
    """Visible-only encoder, 8-block decoder, raw pixels, squared error, 40 % masked."""
    return PretrainConfig(recipe="simmim")


def simmim_paper() -> PretrainConfig:
    """SimMIM as published: mask tokens in the encoder, linear head, L1, 60 % in 32-pixel units."""
    return PretrainConfig(
        recipe="simmim-paper",
        encoder=EncoderConfig(
            model="beit_base_patch16_224", position="none", init="truncated", drop_path=0.1
        ),
        mask=RandomMask(ratio=0.6, unit=32, rounding="ceil"),
        decoder=LinearDecoder(),
        target=PixelTarget(loss="l1"),
        optim=OptimConfig(
            lr=0.5e-4,  # 1e-4 per 512 images
            betas=(0.9, 0.999),
            no_decay=("vector", "position", "prefix"),
            warmup_epochs=10,
            warmup_share=0.1,
            schedule="multistep",
            initial=5e-3,  # 5e-7 over 1e-4
            clip=5.0,
        ),
        augment=AugmentConfig(scale=(0.67, 1.0)),
    )


def simmim_paper_swin() -> PretrainConfig:
    """SimMIM as published for Swin-B: the same, at 192 pixels, window 6."""
    paper = simmim_paper()
    return PretrainConfig(
        recipe="simmim-paper-swin",
        encoder=EncoderConfig(
            model="swin_base_patch4_window7_224",
            image_size=(192, 192),
            arguments={"window_size": 6},
            position="none",
            init="truncated",
        ),
        mask=paper.mask,
        decoder=paper.decoder,
        target=paper.target,
        optim=OptimConfig(
            lr=1e-4,  # 2e-4 per 512 images
            betas=(0.9, 0.999),
            no_decay=("vector", "position", "relative", "prefix", "mask"),
            warmup_epochs=10,
            warmup_share=0.1,
            initial=5e-3,  # 1e-6 over 2e-4
            final=0.05,  # 1e-5 over 2e-4
            clip=5.0,
        ),
        augment=paper.augment,
    )


def mae() -> PretrainConfig:
    """MAE as published: visible-only encoder, 75 % masked, pixels normalised within each patch."""
    return PretrainConfig(
        recipe="mae",
        encoder=EncoderConfig(model="vit_base_patch16_224", position="fixed"),
        mask=RandomMask(ratio=0.75, rounding="keep-floor"),
        decoder=TransformerDecoder(width=512, heads=16, mask_token="0.02"),
        target=PixelTarget(norm_pix=True),
        optim=OptimConfig(no_decay=("vector",), clip=None),
        augment=AugmentConfig(interpolation="bicubic"),
    )


def simmim_fast() -> PretrainConfig:
    """What learns fastest: Muon, normalised pixels with HOG, the layout, a 1-block decoder."""
    return PretrainConfig(
        recipe="simmim-fast",
        encoder=EncoderConfig(position="fixed"),
        mask=RandomMask(ratio=0.75),
        decoder=TransformerDecoder(depth=1, width_share=0.5, mask_token="0.02"),
        target=CombinedTarget(parts=(PixelTarget(norm_pix=True), HogTarget())),
        extras=(LayoutExtra(weight=0.3),),
        optim=OptimConfig(
            kind="muon", matrices=("block", "weight"), momentum=0.9, schedule="linear"
        ),
        augment=AugmentConfig(scale=(0.5, 1.0)),
        batch_size=32,
    )


RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    "simmim": simmim,
    "simmim-fast": simmim_fast,
    "simmim-paper": simmim_paper,
    "simmim-paper-swin": simmim_paper_swin,
    "mae": mae,
}
