"""What a segmenter says of images, as files: names, masks, and overlays to look at."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from simmim.config.resolved import PixelFormat
from simmim.data.formats.image_file import ImageFile
from simmim.data.loading.augment import whole_view
from simmim.data.names import plain
from simmim.evaluate.parts import writing
from simmim.runs.files import replacing

OPACITY = 0.5
"""Of the colours of classes in an overlay."""


def mask_names(paths: Sequence[str]) -> list[str]:
    """Names of masks: those of the images with another ending, or one more where two were alike.

    None leads out of the folder that it is in.
    """
    whole = [_within(path) for path in paths]
    stems = [str(PurePosixPath(name).with_suffix("")) for name in whole]
    often, taken, names = Counter(stems), set[str](), list[str]()
    for name, stem in zip(whole, stems, strict=True):
        chosen = stem if often[stem] == 1 else name
        while chosen in taken:
            chosen += "_"
        taken.add(chosen)
        names.append(f"{chosen}.png")
    return names


def _within(path: str) -> str:
    parts = plain(path).lstrip("/").split("/")
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)


def picture(opened: ImageFile, pixels: PixelFormat) -> np.ndarray:
    """An image as it is shown, at its own size (h, w, 3) uint8."""
    shown = whole_view(opened, pixels, (opened.height, opened.width))
    low, high = np.array(pixels.low), np.array(pixels.high)
    values = ((shown - low) / (high - low)).clip(0, 1) * 255
    values = values[..., :3] if values.shape[2] >= 3 else values[..., :1].repeat(3, 2)
    return values.round().astype(np.uint8)


def overlay(shown: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """A picture under the colours of its classes, both (h, w, 3) uint8."""
    return ((1 - OPACITY) * shown + OPACITY * colours).round().astype(np.uint8)


def save_png(file: Path, values: np.ndarray) -> None:
    """Write a picture, whole or not at all.

    Raises:
        ResourceError: It could not be written.
    """
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            Image.fromarray(values).save(temporary, "PNG")
