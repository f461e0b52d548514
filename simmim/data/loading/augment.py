"""From a decoded image to the view that is trained or evaluated on."""

import numpy as np
import torch

from simmim.config.augment import AugmentConfig
from simmim.config.resolved import PixelFormat
from simmim.data.formats.decode import bring, read_part
from simmim.data.formats.image_file import ImageFile, Region
from simmim.data.loading.geometry import Geometry, Size, centre_geometry, random_geometry

RESIZE = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}
STRIP = 2**22
"""Values of a crop that are brought and resized at once."""


def random_view(
    opened: ImageFile, pixels: PixelFormat, config: AugmentConfig, size: Size, key: tuple[int, ...]
) -> torch.Tensor:
    """Return a random resized crop, perhaps flipped: a pure function of its arguments.

    Args:
        opened: The image; only what the crop needs is decoded.
        pixels: What it is brought to.
        config: How much of the image is kept, and the chance of a flip.
        size: Height and width of the view (H, W) in pixels.
        key: Integers that all random numbers of the view follow from.

    Returns:
        (C, H, W), channels last in memory, uint8 in an 8-bit set, otherwise float32.

    Raises:
        UnreadableError: The image cannot be decoded, or does not fit its set.
    """
    geometry = random_geometry(opened.height, opened.width, config, size, key)
    return view(opened, pixels, geometry, config.interpolation)


def plain_view(opened: ImageFile, pixels: PixelFormat, size: Size) -> torch.Tensor:
    """Return the centre: scaled so that it just covers ``size``, what hangs over cut off.

    See ``random_view`` for what is returned and raised.
    """
    return view(opened, pixels, centre_geometry(opened.height, opened.width, size))


def view(
    opened: ImageFile, pixels: PixelFormat, geometry: Geometry, interpolation: str = "bilinear"
) -> torch.Tensor:
    """Return the view of an image that ``geometry`` tells: (C, H, W); see ``random_view``.

    What is blank has the mean that images are normalised by.
    """
    seen = _part(opened, pixels, geometry.box, geometry.part, interpolation)
    if geometry.part != geometry.size:
        rest = geometry.size[0] - geometry.part[0], geometry.size[1] - geometry.part[1]
        blank = _mean(pixels, seen.dtype).expand(1, -1, *geometry.size)
        blank = blank.contiguous(memory_format=torch.channels_last)
        blank[:, :, : -rest[0] or None, : -rest[1] or None] = seen
        seen = blank
    return (seen.flip(3) if geometry.flip else seen)[0]


def _mean(pixels: PixelFormat, dtype: torch.dtype) -> torch.Tensor:
    """The decoded value, of each channel, that normalises to 0: (1, C, 1, 1)."""
    low, high, mean = (torch.tensor(each) for each in (pixels.low, pixels.high, pixels.mean))
    values = (low + mean * (high - low)).view(1, -1, 1, 1)
    return values.to(dtype) if dtype.is_floating_point else values.round().to(dtype)


def choose_shrink(opened: ImageFile, box: Region, size: Size) -> tuple[int, Region]:
    """Return by how much to shrink while decoding, and where the box then lies.

    It is the largest that leaves the box at least the view's pixels on both sides. The box's edges
    are rounded to the pixels of the smaller picture, so they move by half of one at most.
    """
    for shrink in sorted(opened.shrinks, reverse=True):
        if shrink == 1:
            break
        small = _shrunk(box, shrink)
        if small[2] >= size[0] and small[3] >= size[1]:
            return shrink, small
    return 1, box


def _shrunk(box: Region, shrink: int) -> Region:
    top, left, height, width = box
    # Whole numbers and halves upwards, so that the same edge always falls on the same pixel.
    half = shrink // 2
    first, start = (top + half) // shrink, (left + half) // shrink
    return (
        first,
        start,
        (top + height + half) // shrink - first,
        (left + width + half) // shrink - start,
    )


def _part(
    opened: ImageFile, pixels: PixelFormat, box: Region, size: Size, interpolation: str
) -> torch.Tensor:
    shrink, box = choose_shrink(opened, box, size)
    part = read_part(opened, shrink, box)
    rows = max(1, STRIP // (part.shape[1] * pixels.channels))
    if len(part) <= rows:
        return _brought(part, pixels, size, interpolation)
    # Each strip is resized across; then the whole, far smaller, down: what torch does in one go,
    # without a copy of all pixels as floats.
    strips = [part[top : top + rows] for top in range(0, len(part), rows)]
    narrow = [_brought(each, pixels, (len(each), size[1]), interpolation) for each in strips]
    return _resize(torch.cat(narrow, 2)[0].permute(1, 2, 0).numpy(), size, interpolation)


def _brought(crop: np.ndarray, pixels: PixelFormat, size: Size, interpolation: str) -> torch.Tensor:
    crop = bring(crop, pixels)
    if crop.strides[2] == 0:  # grey as three channels: resized once
        return _resize(crop[..., :1], size, interpolation).expand(-1, crop.shape[2], -1, -1)
    return _resize(crop, size, interpolation)


def whole_view(opened: ImageFile, pixels: PixelFormat, size: Size) -> np.ndarray:
    """Return the whole image brought to ``pixels`` and resized, whatever its shape: (H, W, C).

    Raises:
        UnreadableError: The image cannot be decoded, or does not fit its set.
    """
    box = (0, 0, opened.height, opened.width)
    return _part(opened, pixels, box, size, "bilinear")[0].permute(1, 2, 0).numpy()


def _resize(crop: np.ndarray, size: Size, interpolation: str) -> torch.Tensor:
    """(h, w, C) → (1, C, H, W), channels last in memory."""
    # The copy gives torch writable memory.
    image = torch.from_numpy(np.array(crop, order="C")[None]).permute(0, 3, 1, 2)
    if crop.shape[:2] == size:
        return image
    # What F.interpolate calls; but that would take another 57 µs to put each channel apart.
    resized = torch.empty((1, *size, crop.shape[2]), dtype=image.dtype).permute(0, 3, 1, 2)
    corners = {"align_corners": False, "scales_h": None, "scales_w": None}
    return RESIZE[interpolation](image, list(size), **corners, out=resized)
