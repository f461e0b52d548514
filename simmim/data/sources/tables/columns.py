"""Which columns hold images, labels, captions and masks, and what a value of the first means."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as kinds

from simmim.data.formats.decode import MAX_FILE, read_file
from simmim.data.formats.image_file import UnreadableError
from simmim.data.sources.classes import CAPTIONS
from simmim.data.sources.remote.transfer import read_whole, scheme_of
from simmim.data.sources.tables.rows import named
from simmim.errors import DataError

IMAGE_COLUMNS = (
    *("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes"),
    *("image_data", "bytes", "content", "data", "image_path", "file_name", "filename", "file"),
    *("path", "pixels", "image_url", "url"),
)
"""Names of a column of images, the likeliest first."""
LABEL_COLUMNS = (
    *("label", "labels", "class", "category", "target", "class_name", "fine_label"),
    *("coarse_label", "cls", "y"),
)
"""Names of a column of labels, the likeliest first."""
MASK_COLUMNS = (
    *("mask", "masks", "label_map", "segmentation_mask", "segmentation", "semantic_segmentation"),
    *("annotation", "annotations", "semantic", "seg", "label", "labels", "gt", "target"),
)
"""Names of a column of masks, which are encoded images too, the likeliest first."""


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are.

    Attributes:
        image: Name of the column of images.
        label: Name of the column of labels, or None.
        caption: Name of the column of captions, or None.
        mask: Name of the column of masks, or None.
        classes: Names that the numbers in the column of labels stand for; [] where they are none.
        notes: Which other columns might have been meant; see ``SourceInfo``.
    """

    image: str
    label: str | None
    caption: str | None
    mask: str | None
    classes: list[str]
    notes: list[str]

    @property
    def told(self) -> list[str]:
        """The columns of labels and captions that there are."""
        return [name for name in (self.label, self.caption) if name is not None]


def find_columns(schema: pa.Schema, file: str) -> Columns:
    """Find the columns of images and labels: by what Hugging Face wrote there, by name, by type.

    Raises:
        DataError: No column, or several without a telling name, can hold images.
    """
    features = _features(schema)
    images = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    possible = images or [field.name for field in schema if _holds_images(field.type)]
    masks = _mask_columns(schema, possible)
    images, possible = ([n for n in each if n not in masks] for each in (images, possible))
    image = next(named(possible, IMAGE_COLUMNS), None)
    if image is None:
        # Text may be anything, but bytes in a single column can hardly be else than images.
        likely = images or [name for name in possible if not _is_text(schema.field(name).type)]
        if len(likely) != 1:
            listed = ", ".join(f"{field.name} ({field.type})"[:80] for field in schema) or "none"
            raise DataError(
                f"{file}: no column of images is found among its columns: {listed}. Name the one "
                f"that holds encoded images, or paths, {IMAGE_COLUMNS[0]}."
            )
        image = likely[0]
    pictures = [name for name in images or possible if not _is_text(schema.field(name).type)]
    pictures = [name for name in pictures if images or _holds_bytes(schema.field(name).type)]
    label, notes = _label_column(schema, {image, *masks}, features)
    classes = features.get(label or "", {}).get("names")
    names = list(map(str, classes)) if isinstance(classes, list) else []
    mask = next(iter(masks), None)
    texts = [each.name for each in schema if _holds_text(each.type) and each.name != image]
    caption = next(named((name for name in texts if name != label), CAPTIONS), None)
    notes = _other("images", image, pictures) + _other("masks", mask, masks) + notes
    return Columns(image, label, caption, mask, names, notes)


def _mask_columns(schema: pa.Schema, possible: Sequence[str]) -> list[str]:
    """Return the columns that are called masks and hold encoded images, beside one of images."""
    encoded = [name for name in possible if _holds_bytes(schema.field(name).type)]
    masks = list(named(encoded, MASK_COLUMNS))
    others = [name for name in possible if name not in masks]
    images = [*named(others, IMAGE_COLUMNS), *(name for name in others if name in encoded)]
    return masks if images else []


def _label_column(
    schema: pa.Schema, others: set[str], features: dict[str, Any]
) -> tuple[str | None, list[str]]:
    """Return the column of labels, not of ``others``, and notes on those that are not taken."""
    called = [*named(schema.names, LABEL_COLUMNS)]
    called += [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    called = [name for name in dict.fromkeys(called) if name not in others]
    fit = [name for name in called if _holds_labels(schema.field(name).type)]
    # Floats may be whole numbers, or measured ones.
    fit.sort(key=lambda name: kinds.is_floating(_plain(schema.field(name).type)))
    notes = [
        f"the column {name!r} holds {str(schema.field(name).type)[:40]}, which are no labels"
        for name in called
        if name not in fit
    ]
    label = fit[0] if fit else None
    return label, _other("labels", label, fit) + notes


def _other(what: str, chosen: str | None, columns: Sequence[str]) -> list[str]:
    """Return a note on columns that hold the same as the chosen one."""
    others = ", ".join(repr(name) for name in columns if name != chosen)
    return [f"{what} are taken from the column {chosen!r}, and not from {others}"] if others else []


def image_bytes(value: Any, folder: str, kind: pa.DataType | None = None) -> bytes:
    """Return the encoded image that a value of the column of images is, or names.

    Args:
        value: Bytes, a path or URL, {"bytes": …, "path": …}, nested lists of numbers, or None.
        folder: What relative paths are relative to.
        kind: Type of the column; lists of uint8 and uint16 keep it, other numbers become float32.

    Raises:
        UnreadableError: It is none, or the file that it names cannot be read.
        OSError: The storage of that file fails.
    """
    if isinstance(value, dict):
        inner = value.get("bytes")
        value = value.get("path") if inner is None else inner
    if value is None:
        raise UnreadableError("the row has no image")
    if isinstance(value, str):
        if scheme_of(value) not in ("", "file"):
            return read_whole(value, MAX_FILE)
        return read_file(Path(folder) / value.removeprefix("file://"))
    if isinstance(value, list):
        return _array_bytes(value, kind)
    return bytes(value)


def npy_bytes(array: np.ndarray) -> bytes:
    """Return an array as the content of a .npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _array_bytes(value: list[Any], kind: pa.DataType | None) -> bytes:
    try:
        array = np.array(value)
    except ValueError as error:
        raise UnreadableError("rows of different lengths in a nested list") from error
    if array.dtype.kind not in "buif" or not array.size:
        raise UnreadableError("a list that is not made of numbers")
    if array.ndim == 1 and array.dtype.kind in "iu" and 0 <= array.min() <= array.max() < 256:
        return array.astype(np.uint8).tobytes()  # encoded bytes, one by one
    # By the type of the column, not by the values: those of one dark image may all be small.
    leaf = _leaf(kind) if kind is not None else None
    whole = {pa.uint8(): np.uint8, pa.uint16(): np.uint16}
    return npy_bytes(array.astype(whole.get(leaf, np.float32)))


def _leaf(kind: pa.DataType) -> pa.DataType:
    while isinstance(kind, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)):
        kind = kind.value_type
    return kind


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Return what the library `datasets` wrote about the columns."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: each for name, each in found.items() if isinstance(each, dict)}


def _is_text(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    return kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)


def _holds_text(kind: pa.DataType) -> bool:
    return _is_text(_leaf(_plain(kind)))


def _is_bytes(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    tests = (kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view)
    return any(test(kind) for test in (*tests, kinds.is_fixed_size_binary))


def _holds_images(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    if isinstance(kind, pa.StructType):
        names = [field.name for field in kind]
        return "bytes" in names or names == ["path"]
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        leaf = _leaf(kind)
        return kinds.is_integer(leaf) or kinds.is_floating(leaf)
    return _is_bytes(kind) or _is_text(kind)


def _holds_bytes(kind: pa.DataType) -> bool:
    return _is_bytes(kind) or isinstance(_plain(kind), pa.StructType)


def _holds_labels(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    tests = (kinds.is_integer, kinds.is_floating, kinds.is_boolean)
    return _is_text(kind) or any(test(kind) for test in tests)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values of a dictionary or an extension."""
    if isinstance(kind, pa.DictionaryType):
        return kind.value_type
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
