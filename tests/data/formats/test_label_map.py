"""Label maps come with the values that are stored, whatever they look like."""

import io

import numpy as np
import pytest
from PIL import Image

from simmim.data.formats.image_file import UnreadableError
from simmim.data.formats.label_map import read_map

VALUES = np.random.default_rng(0).integers(0, 200, (13, 17)).astype(np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def palette() -> Image.Image:
    image = Image.fromarray(VALUES)
    image.putpalette([7 * i % 256 for i in range(768)])
    return image


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


FORMS = {
    "grey": lambda: saved(Image.fromarray(VALUES)),
    "palette": lambda: saved(palette()),
    "palette in GIF": lambda: saved(palette(), "GIF", optimize=False),
    "palette with a clear colour": lambda: saved(palette(), transparency=3),
    "grey with a clear value": lambda: saved(Image.fromarray(VALUES), transparency=5),
    "grey and alpha": lambda: saved(
        Image.merge("LA", [Image.fromarray(VALUES), Image.new("L", (17, 13), 9)])
    ),
    "three equal channels": lambda: saved(Image.fromarray(VALUES).convert("RGB")),
    "with alpha": lambda: saved(Image.fromarray(VALUES).convert("RGBA")),
    "TIFF": lambda: saved(Image.fromarray(VALUES), "TIFF"),
    "npy": lambda: npy(VALUES),
    "whole floats": lambda: npy(VALUES.astype(np.float32)),
}


@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_stored(form: str):
    found = read_map(FORMS[form]())
    assert found.dtype == np.int32
    assert np.array_equal(found, VALUES)


def test_deep_and_binary_maps_keep_their_values():
    deep = VALUES.astype(np.uint16) * 300
    assert np.array_equal(read_map(saved(Image.fromarray(deep))), deep)
    assert np.array_equal(read_map(npy(deep)), deep)
    assert np.array_equal(read_map(saved(Image.fromarray(VALUES > 99))), VALUES > 99)


def test_colours_are_one_number_for_each_pixel():
    colours = np.stack([VALUES, VALUES, 255 - VALUES], 2)
    red = VALUES.astype(np.int32)
    expected = (1 << 24) + 65536 * red + 256 * red + (255 - red)
    assert np.array_equal(read_map(saved(Image.fromarray(colours))), expected)


def test_what_tells_no_classes_is_refused():
    for data, reason in (
        (saved(Image.fromarray(VALUES), "JPEG"), "in JPEG, which changes values"),
        (npy(VALUES / np.float32(3)), "fractions; whole numbers"),
        (saved(Image.fromarray(VALUES))[:90], "truncated|damaged|cannot"),
    ):
        with pytest.raises(UnreadableError, match=reason):
            read_map(data)
