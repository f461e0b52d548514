import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from simmim.data.find import find_images
from simmim.data.survey import Survey, survey
from simmim.errors import DataError

RNG = np.random.default_rng(1)


def look(folder: Path, channels: int | None = None, sample: int = 512) -> Survey:
    return survey(find_images(folder), channels=channels, sample=sample)


def save(folder: Path, name: str, array: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    if name.endswith("tif"):
        kind = "minisblack" if array.ndim == 2 or array.shape[2] != 3 else "rgb"
        tifffile.imwrite(folder / name, array, photometric=kind, planarconfig="contig")
    else:
        Image.fromarray(array).save(folder / name)


def noise(*shape: int, high: int = 256, kind: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, high, shape).astype(kind)


def test_photos_are_three_channels_with_imagenets_mean(tmp_path: Path):
    save(tmp_path, "a.jpg", noise(20, 30, 3))
    save(tmp_path, "b.png", noise(10, 50))
    (tmp_path / "c.jpg").write_bytes(b"no image at all")
    found = look(tmp_path)
    assert (found.pixels.channels, found.pixels.high, found.depth) == (3, (255,) * 3, "8-bit")
    assert found.pixels.mean == (0.485, 0.456, 0.406)
    assert found.channels == {"1": 1, "3": 1}
    assert found.formats == {"JPEG": 1, "PNG": 1}
    assert found.sizes == {"height": (10, 15, 20), "width": (30, 40, 50)}
    assert found.bad == [("c.jpg", "not an image of a known format")]
    assert json.loads(json.dumps(found.as_dict()))["pixels"]["channels"] == 3


def test_grey_is_one_channel_only_where_all_are_grey_and_its_mean_is_measured(tmp_path: Path):
    for i in range(4):
        save(tmp_path, f"{i}.png", np.full((20, 20), 50 * i, np.uint8))
    found = look(tmp_path).pixels
    assert found.channels == 1
    assert found.mean == pytest.approx([75 / 255], abs=1e-5)
    assert found.std == pytest.approx([np.std([0, 50, 100, 150]) / 255], abs=1e-5)
    assert look(tmp_path, channels=3).pixels.channels == 3


def test_the_range_is_that_of_the_bit_depth_in_use_over_the_set(tmp_path: Path):
    for i, high in enumerate((700, 3000, 4096)):
        save(tmp_path, f"{i}.png", noise(64, 64, high=high, kind=np.uint16))
    found = look(tmp_path)
    assert (found.pixels.high, found.pixels.depth) == ((4095,), "12-bit")
    assert "16-bit files" in found.depth
    assert 0.2 < found.pixels.mean[0] < 0.4
    save(tmp_path, "c.png", noise(64, 64))
    assert look(tmp_path).pixels.high == (4095,)


def test_floats_range_over_their_percentiles_and_channels_are_kept(tmp_path: Path):
    for i in range(3):
        save(tmp_path, f"{i}.tif", RNG.normal(10, 2, (60, 60, 5)).astype(np.float32))
    outlier = RNG.normal(10, 2, (60, 60, 5)).astype(np.float32)
    outlier[0, 0, 0] = 1e9
    save(tmp_path, "3.tif", outlier)
    found = look(tmp_path).pixels
    assert (found.channels, found.depth) == (5, "float")
    assert found.low == pytest.approx([10 - 3.09 * 2] * 5, abs=0.5)
    assert found.high == pytest.approx([10 + 3.09 * 2] * 5, abs=0.5)
    save(tmp_path, "odd.png", noise(9, 9, 3))
    assert look(tmp_path).bad == [("odd.png", "3 channels, where the data set has 5")]


def test_what_cannot_be_used_ends_in_one_error(tmp_path: Path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 3 .* the file is empty"):
        look(tmp_path)
    save(tmp_path / "five", "a.tif", noise(9, 9, 5))
    with pytest.raises(DataError, match=r"3 channels: those found have 5.*--channels"):
        look(tmp_path / "five", channels=3)


def test_a_sample_of_a_large_set_is_the_same_every_time(tmp_path: Path):
    for i in range(60):
        save(tmp_path, f"{i}.png", noise(4 + i, 5))
    found = look(tmp_path, sample=12)
    assert found.as_dict() == look(tmp_path, sample=12).as_dict()
    assert (found.images, found.sampled) == (60, 12)
    heights = found.sizes["height"]
    assert heights[0] < 20 < heights[1] < 50 < heights[2]
