"""From decoded values to normalised patches, and back."""

import torch
from torch import Tensor

from simmim.config.resolved import PixelFormat


def _tensor(values: tuple[float, ...], device: torch.device) -> Tensor:
    # A GPU would be waited for until it has done all that it was told before.
    wait = device.type != "cuda"
    tensor = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
    return tensor.to(device, non_blocking=not wait)


def _scale_and_shift(pixels: PixelFormat) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What a value less ``low`` is multiplied by, and what is then added, of each channel."""
    ends = zip(pixels.low, pixels.high, pixels.std, strict=True)
    scale = tuple(1 / (std * (high - low)) for low, high, std in ends)
    return scale, tuple(-mean / std for mean, std in zip(pixels.mean, pixels.std, strict=True))


def normalise(images: Tensor, pixels: PixelFormat) -> Tensor:
    """((value - low)/(high - low) - mean)/std: decoded (B, C, H, W) → float32 (B, C, H, W).

    Values are not clipped here: ``bring`` did. The order in memory stays that of ``images``.
    """
    scale, shift = (_tensor(each, images.device) for each in _scale_and_shift(pixels))
    if any(pixels.low):
        # By itself, since a small range far from 0 would be lost in the rounding of the sum.
        images = images.float() - _tensor(pixels.low, images.device)
    if images.device.type != "cpu":
        return torch.addcmul(shift, images.float(), scale)
    rows = images.permute(0, 2, 3, 1)
    # A loop over the images would become part of a graph, and fix how many there are.
    if torch.compiler.is_compiling() or not rows.is_contiguous():
        return images.float().mul(scale).add_(shift)
    # Vector instructions need long rows, not one scale for each three numbers; and image by image,
    # the numbers between the two steps stay in the core's own cache.
    rows = rows.view(len(rows), rows.shape[1], -1)
    width = images.shape[3]
    scale, shift = scale.flatten().repeat(width), shift.flatten().repeat(width)
    out, wide = torch.empty(rows.shape), torch.empty(rows.shape[1:])
    for row, place in zip(rows, out, strict=True):
        torch.addcmul(shift, wide.copy_(row), scale, out=place)
    return out.view(images.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)


def denormalise(images: Tensor, pixels: PixelFormat) -> Tensor:
    """Back to 0 … 1, unclipped: (B, C, H, W) → float32 (B, C, H, W)."""
    std = torch.tensor(pixels.std, device=images.device).view(-1, 1, 1)
    mean = torch.tensor(pixels.mean, device=images.device).view(-1, 1, 1)
    return images.float() * std + mean


def clip(images: Tensor, pixels: PixelFormat) -> Tensor:
    """Decoded values (B, C, H, W) as ``bring`` clips them, for who did not read them by it."""
    least, most = (_tensor(ends, images.device) for ends in pixels.limits)
    return images.clamp(least, most)


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) → (B, N, K): patches in row-major order, values in (row, column, channel)."""
    b, c, height, width = images.shape
    h, w = height // patch, width // patch
    x = images.view(b, c, h, patch, w, patch).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(b, h * w, patch * patch * c)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int], channels: int) -> Tensor:
    """The inverse of ``patchify``: (B, N, K) → (B, C, H, W)."""
    h, w = grid
    x = patches.view(-1, h, w, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(-1, channels, h * patch, w * patch)
