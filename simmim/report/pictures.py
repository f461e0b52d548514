"""Grids of images, for the run folder and the report."""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont, ImageOps

from simmim.runs.files import replacing

Photo = np.ndarray | Image.Image | Path
"""An image to show: (H, W, C) floats 0 … 1 or uint8, a PIL image, or a file."""

_PAPER, _INK = (255, 255, 255), (70, 70, 70)
_GAP = 4
_TILE = 112
"""Least side in pixels at which a small image is shown: it is repeated up to that, not blurred."""
_WIDE = 10
"""Images side by side on a contact sheet."""
_ACROSS = 8
"""Images side by side; more make another band of three rows below."""


def to_image(photo: Photo) -> Image.Image:
    """``photo`` as an RGB picture: (H, W) or (H, W, C) with C = 1, 3 or N.

    Of N channels the first three are shown as red, green and blue; two give their grey mean.
    Floats outside 0 … 1 are clipped, values that are not numbers become black, and PIL images
    deeper than 8 bits are scaled by their own largest value.

    Raises:
        OSError: ``photo`` is a file that is missing or no image.
    """
    if isinstance(photo, Path):
        with Image.open(photo) as file:
            return to_image(ImageOps.exif_transpose(file))
    if isinstance(photo, Image.Image):
        if not photo.mode.startswith(("I", "F")):
            return photo.convert("RGB")
        photo = np.asarray(photo)  # convert("RGB") would clip it to white
        photo = photo / max(float(photo.max()), 1e-12)
    array = np.asarray(photo)
    if array.dtype != np.uint8:
        array = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
        array = (np.clip(array, 0, 1) * 255 + 0.5).astype(np.uint8)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == 2:
        array = array.mean(axis=2, keepdims=True).astype(np.uint8)
    array = array[:, :, :3] if array.shape[2] >= 3 else array[:, :, :1].repeat(3, axis=2)
    return Image.fromarray(np.ascontiguousarray(array))


def reconstruction_grid(
    original: np.ndarray,
    masked: np.ndarray,
    reconstructed: np.ndarray,
) -> Image.Image:
    """Originals, what the encoder saw of them, and what the model filled in, one below the other.

    Args:
        original: (n, H, W, C) floats 0 … 1; C as in ``to_image``.
        masked: The same images with their masked patches blanked.
        reconstructed: The same images with the prediction in place of the masked patches.
    """
    rows = {"original": original, "masked": masked, "reconstructed": reconstructed}
    height, width = original.shape[1:3]
    size = _tile_size(width, height)
    font = ImageFont.load_default(13)
    margin = round(max(font.getlength(name) for name in rows)) + 3 * _GAP
    across = min(_ACROSS, len(original))
    band = 3 * (size[1] + _GAP) + 2 * _GAP
    bands = -(-len(original) // _ACROSS)
    page = Image.new("RGB", (margin + across * (size[0] + _GAP), bands * band - _GAP), _PAPER)
    draw = ImageDraw.Draw(page)
    for at in range(bands):
        here = range(at * _ACROSS, min((at + 1) * _ACROSS, len(original)))
        for row, (name, images) in enumerate(rows.items()):
            top = at * band + row * (size[1] + _GAP)
            draw.text((_GAP, top + size[1] // 2), name, fill=_INK, font=font, anchor="lm")
            for column, index in enumerate(here):
                tile = to_image(images[index]).resize(size, Image.Resampling.NEAREST)
                page.paste(tile, (margin + column * (size[0] + _GAP), top))
    return page


def square(image: Image.Image, side: int) -> Image.Image:
    """The whole of ``image`` centred in a white square of ``side`` pixels."""
    scale = side / max(image.size)
    size = tuple(max(1, round(length * scale)) for length in image.size)
    filters = Image.Resampling
    small = image.resize((size[0], size[1]), filters.LANCZOS if scale < 1 else filters.BICUBIC)
    page = Image.new("RGB", (side, side), _PAPER)
    page.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return page


def contact_sheet(photos: Iterable[Photo], captions: Sequence[str]) -> Image.Image:
    """Photos in rows, each whole in a square with its caption below."""
    across, side, below = min(_WIDE, len(captions)), _TILE, 18
    rows = -(-len(captions) // across)
    page = Image.new("RGB", (across * (side + _GAP), rows * (side + below + _GAP)), _PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for place, (photo, caption) in enumerate(zip(photos, captions, strict=True)):
        left, top = place % across * (side + _GAP), place // across * (side + below + _GAP)
        page.paste(square(to_image(photo), side), (left, top))
        draw.text((left + _GAP, top + side), caption, fill=_INK, font=font)
    return page


def data_uri(image: Image.Image, quality: int) -> Markup:
    """``image`` as JPEG in the address of a picture inside a page."""
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=quality, optimize=True)
    return Markup("data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode())


def save_png(image: Image.Image, path: Path) -> Path:
    """Write ``image`` to ``path``, whole or not at all, making its folder."""
    data = io.BytesIO()
    image.save(data, format="PNG", optimize=True)
    return write_whole(path, data.getvalue())


def write_whole(path: Path, data: bytes) -> Path:
    """Write ``data`` to ``path``, whole or not at all, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


def _tile_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of a tile: a multiple of a small image, a large one shrunk to 224."""
    side = min(width, height)
    if side > 2 * _TILE:
        scale = 2 * _TILE / side
        return max(1, round(width * scale)), max(1, round(height * scale))
    repeat = -(-_TILE // side)
    return width * repeat, height * repeat
