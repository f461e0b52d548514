"""What Python data holds: images in their many forms, with or without labels."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from simmim.data.formats.decode import read_file
from simmim.data.formats.image_file import UnreadableError, channels_first
from simmim.data.sources.classes import CAPTIONS

IMAGE_KEYS = ("image", "img", "images", "pixel_values", "x", "bytes", "path")
LABEL_KEYS = ("label", "labels", "class", "target", "category", "y")
PLAIN_MODES = ("L", "RGB")
"""Modes of Pillow whose values are the pixels."""


def split_item(item: Any) -> tuple[Any, Any]:
    """Return the image and the label of an item; the label is None where it has none.

    An item is an image, a pair (image, label), or a mapping with `image` and perhaps `label`. What
    comes after the image and is no number or text, such as a mask, is no label.
    """
    image, label = item, None
    if isinstance(item, Mapping):
        image = next((item[key] for key in IMAGE_KEYS if key in item), None)
        label = next((item[key] for key in LABEL_KEYS if key in item), None)
        if image is None and item.get("path") is not None:  # {"bytes": None, "path": …}
            image = item["path"]
    elif isinstance(item, (tuple, list)) and item and not isinstance(item[0], (int, float, list)):
        image, label = item[0], item[1] if len(item) == 2 else None
    return image, label


def caption_key(item: Any) -> str | None:
    """Return the key of an item that holds a caption; None where there is none."""
    return next((key for key in CAPTIONS if isinstance(item, Mapping) and key in item), None)


def caption_value(item: Any) -> Any:
    """Return what an item holds for a caption; None where it has none."""
    key = caption_key(item)
    return None if key is None else item[key]


def label_value(label: Any) -> int | float | str | None:
    """Return a label as a plain number or text; what is neither, such as a mask, is none."""
    if isinstance(label, (torch.Tensor, np.ndarray)):
        label = label.item() if label.ndim == 0 or label.size == 1 else None  # type: ignore[operator]
    if isinstance(label, np.generic):
        label = int(label) if isinstance(label, np.bool_) else label.item()
    return label if isinstance(label, (int, float, str)) else None


def image_of(image: Any) -> bytes | np.ndarray:
    """Return an image as encoded bytes, or as pixels (h, w, C) of any numeric type.

    Args:
        image: Array (h, w) or (h, w, C), or (C, h, w) where that is plain; tensor (C, h, w) or
            (h, w); Pillow image; bytes; or path.

    Raises:
        UnreadableError: None of these, or of an impossible shape.
        OSError: The storage of a path fails.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, Path)):
        return read_file(Path(image))
    if isinstance(image, Image.Image):
        return _pillow(image)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = image.float() if image.is_floating_point() else image
        return _array(image.permute(1, 2, 0).numpy() if image.ndim == 3 else image.numpy())
    if isinstance(image, Mapping):
        return image_of(split_item(image)[0])
    if isinstance(image, np.ndarray):
        return _array(image.transpose(1, 2, 0) if channels_first(image.shape) else image)
    raise UnreadableError(
        f"a {type(image).__name__} is no image: an array, tensor, Pillow image, path or encoded "
        f"bytes is needed"
    )


def digest_of(image: Any) -> bytes:
    """Return a hash of an image; for a path, of its name and of the file's size and time."""
    if isinstance(image, (str, Path)):
        try:
            status = Path(image).stat()
        except OSError:
            return hashlib.sha256(str(image).encode("utf-8", "replace")).digest()
        text = f"{image} {status.st_size} {status.st_mtime_ns}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    found = image_of(image)
    if isinstance(found, bytes):
        return hashlib.sha256(found).digest()
    head = f"{found.shape} {found.dtype.str} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(found).tobytes()).digest()


def _array(array: np.ndarray) -> np.ndarray:
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.dtype.kind not in "buif" or not array.size:
        raise UnreadableError(
            f"an array of {array.dtype} and shape {array.shape} is no image: (h, w), (h, w, C), or "
            f"as a tensor (C, h, w), of numbers is needed"
        )
    return array


def _pillow(image: Image.Image) -> bytes | np.ndarray:
    try:
        image = ImageOps.exif_transpose(image) or image
        if image.mode in PLAIN_MODES and "transparency" not in image.info:
            return _array(np.asarray(image))
        # Palettes, alpha and deep modes are left to the decoder, which knows what to do.
        stream = io.BytesIO()
        if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
            image.save(stream, "PNG", compress_level=0)
        else:
            image.save(stream, "TIFF")
    except Exception as error:  # Pillow reads late, and raises whatever it likes
        raise UnreadableError(f"a Pillow image that cannot be read: {error}") from error
    return stream.getvalue()
