"""RandAugment of a view that was cropped and resized: timm's, drawn from the view's own numbers."""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simmim.config.augment import AugmentConfig, LabelledAugmentConfig
from simmim.config.resolved import PixelFormat
from simmim.data.formats.decode import is_eight_bit
from simmim.tensors.counter import seeded

FORM = "rand-m{}-mstd0.5-inc1"
"""What timm calls the usual RandAugment of a magnitude."""


def is_plain(pixels: PixelFormat) -> bool:
    """Tell whether images are such as RandAugment takes: 8-bit, grey or colour."""
    return is_eight_bit(pixels) and pixels.channels in (1, 3)


def distorted(
    seen: Tensor, config: AugmentConfig, pixels: PixelFormat, key: tuple[int, ...]
) -> Tensor:
    """Return a view (C, H, W) as ``config`` distorts it: a pure function of its arguments.

    Args:
        seen: uint8, of one or three channels, where it is distorted at all.
        config: One of labelled images may ask for RandAugment.
        pixels: Their mean fills what is moved out of the view.
        key: Integers that all random numbers follow from.
    """
    match config:
        case LabelledAugmentConfig(rand_augment=int(magnitude)) if magnitude > 0:
            change = _rand_augment(magnitude, min(seen.shape[1:]), pixels.mean)
            picture = Image.fromarray(np.ascontiguousarray(seen.permute(1, 2, 0).squeeze(2)))
            with seeded(*key):
                after = np.array(change(picture))
            return torch.from_numpy(after.reshape(*seen.shape[1:], -1)).permute(2, 0, 1)
        case _:
            return seen


@lru_cache(maxsize=8)
def _rand_augment(magnitude: int, side: int, mean: tuple[float, ...]):
    from timm.data.auto_augment import rand_augment_transform  # slow to import

    fill = [min(255, round(255 * value)) for value in mean]
    hparams = {
        "translate_const": int(side * 0.45),  # as timm's own training has it
        "img_mean": fill[0] if len(fill) == 1 else tuple(fill),
        "magnitude_max": 9.999,  # at 10 no bit of a posterised image would be kept
    }
    return rand_augment_transform(FORM.format(magnitude), hparams)
