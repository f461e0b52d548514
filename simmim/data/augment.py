"""From a decoded image to the view that is trained or evaluated on."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from simmim.config.augment import AugmentConfig
from simmim.data.order import GOLDEN, MASK, hash64, mix64

Size = tuple[int, int]


def random_view(
    array: np.ndarray, config: AugmentConfig, size: Size, key: tuple[int, ...]
) -> torch.Tensor:
    """Return a random resized crop, perhaps flipped: a pure function of its arguments.

    Args:
        array: Pixels (h, w, C), uint8 or float32; left as they are.
        config: How much of the image is kept, and the chance of a flip.
        size: Height and width of the view (H, W) in pixels.
        key: Integers that all random numbers of the view follow from.

    Returns:
        (C, H, W) of the array's type.
    """
    draw = _Uniform(key)
    top, left, height, width = _box(array.shape[0], array.shape[1], config, draw)
    view = _resize(array[top : top + height, left : left + width], size, config.interpolation)
    return view.flip(2) if draw() < config.flip else view


def plain_view(array: np.ndarray, size: Size) -> torch.Tensor:
    """Return the centre: scaled so that it just covers ``size``, what hangs over cut off.

    Args:
        array: Pixels (h, w, C), uint8 or float32; left as they are.
        size: Height and width of the view (H, W) in pixels.

    Returns:
        (C, H, W) of the array's type.
    """
    height, width = array.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    # What would be cut off after scaling is cut off before: less work.
    rows = min(height, max(1, round(size[0] / scale)))
    columns = min(width, max(1, round(size[1] / scale)))
    top, left = (height - rows) // 2, (width - columns) // 2
    return _resize(array[top : top + rows, left : left + columns], size, "bilinear")


class _Uniform:
    """Uniform numbers in [0, 1), of 53 bits, by splitmix64 from a key."""

    def __init__(self, key: tuple[int, ...]) -> None:
        self.state = hash64(*key)

    def __call__(self) -> float:
        self.state = (self.state + GOLDEN) & MASK
        return (mix64(self.state) >> 11) * 2.0**-53


def _box(
    height: int, width: int, config: AugmentConfig, draw: _Uniform
) -> tuple[int, int, int, int]:
    """Draw top, left, height and width as torchvision's RandomResizedCrop does."""
    low, high = config.scale
    narrow, wide = math.log(config.ratio[0]), math.log(config.ratio[1])
    for _ in range(10):
        area = height * width * (low + (high - low) * draw())
        ratio = math.exp(narrow + (wide - narrow) * draw())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draw() * (height - h + 1)), int(draw() * (width - w + 1)), h, w
    # A long, narrow image: its centre, of the nearest shape allowed.
    ratio = min(max(width / height, config.ratio[0]), config.ratio[1])
    w = min(width, max(1, round(height * ratio)))
    h = min(height, max(1, round(width / ratio)))
    return (height - h) // 2, (width - w) // 2, h, w


def _resize(crop: np.ndarray, size: Size, interpolation: str) -> torch.Tensor:
    # The copy gives torch writable memory, channels last, where its uint8 kernels are fastest.
    image = torch.from_numpy(np.array(crop, order="C")).permute(2, 0, 1)
    if crop.shape[:2] == size:
        return image.contiguous()
    return F.interpolate(image[None], size=size, mode=interpolation, antialias=True)[0]
