"""Images in use are scaled by their own depth, and doubts are told."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from simmim.config.resolved import PixelFormat
from simmim.data.audit.survey import Survey, survey
from simmim.data.formats.decode import bring, read_pixels
from simmim.data.sources.find import find_images

RNG = np.random.default_rng(2)


def photo() -> np.ndarray:
    y, x = np.mgrid[0:64, 0:64] / RNG.uniform(9, 30, 2)[:, None, None]
    return np.clip(0.5 + 0.4 * np.sin(y) * np.cos(x) + RNG.normal(0, 0.2, (64, 64)), 0, 1)


PHOTOS = [photo() for _ in range(10)]


def saved(folder: Path, images: list[np.ndarray], largest: float, kind: type) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        values = largest * image
        values = values if kind == np.float32 else values.round()
        tifffile.imwrite(folder / f"{i}.tif", values.astype(kind))
    return folder


def seen(folder: Path, trained: PixelFormat | None = None) -> Survey:
    return survey(find_images(folder), channels=None, trained=trained)


def scaled(folder: Path, pixels: PixelFormat) -> np.ndarray:
    images = find_images(folder)
    arrays = [bring(read_pixels(images.open(i)), pixels) for i in range(len(images))]
    return (np.stack(arrays).astype(np.float64) - pixels.low) / (np.array(pixels.high) - pixels.low)


DEPTHS = {"8-bit": (255, np.uint8), "12-bit": (4095, np.uint16), "16-bit": (65535, np.uint16)}


@pytest.mark.parametrize("trained", DEPTHS)
@pytest.mark.parametrize("here", DEPTHS)
def test_the_same_photos_are_the_same_in_any_depth(trained: str, here: str, tmp_path: Path):
    run = seen(saved(tmp_path / "run", PHOTOS, *DEPTHS[trained])).pixels
    folder = saved(tmp_path / "here", PHOTOS, *DEPTHS[here])
    found = seen(folder, run)
    assert np.abs(scaled(folder, found.pixels) - np.stack(PHOTOS)[..., None]).max() < 0.003
    assert (found.pixels.mean, found.pixels.std) == (run.mean, run.std)
    assert found.notes == []
    if here == trained:
        assert found.pixels == run
    else:
        how = f"{here} here, {trained} in training: each is scaled by its own depth"
        assert found.depth == how


def test_a_few_dark_images_are_not_taken_for_another_depth(tmp_path: Path):
    run = seen(saved(tmp_path / "run", PHOTOS, 65535, np.uint16)).pixels
    dark = seen(saved(tmp_path / "dark", PHOTOS[:3], 6000, np.uint16), run)
    assert dark.pixels == run
    assert "14-bit here, 16-bit in training: they may only be darker" in dark.depth
    many = seen(saved(tmp_path / "many", PHOTOS * 4, 3900, np.uint16), run)
    assert many.pixels.high == (4095,)


def test_a_few_brighter_images_are_not_taken_for_another_depth(tmp_path: Path):
    run = seen(saved(tmp_path / "run", PHOTOS, 1000, np.uint16)).pixels
    assert run.depth == "10-bit"
    bright = seen(saved(tmp_path / "bright", PHOTOS[:3], 1150, np.uint16), run)
    assert bright.pixels == run
    assert bright.notes[-1].startswith("values far outside the range are clipped: ")


def test_floats_on_integers_are_scaled_by_their_own_range_with_a_warning(tmp_path: Path):
    run = seen(saved(tmp_path / "run", PHOTOS, 255, np.uint8)).pixels
    folder = saved(tmp_path / "float", PHOTOS, 20, np.float32)
    found = seen(folder, run)
    assert 0 <= found.pixels.low[0] < 1
    assert 19 < found.pixels.high[0] <= 20
    assert found.pixels.std == run.std
    assert found.notes[0].startswith("warning: values are float here and 8-bit in training")
    back = seen(tmp_path / "run", seen(folder).pixels)
    assert back.pixels.high == (255,)
    assert back.notes[0].startswith("warning: values are 8-bit here and float in training")


def test_values_of_another_unit_are_doubted(tmp_path: Path):
    run = seen(saved(tmp_path / "run", PHOTOS, 20, np.float32)).pixels
    larger = seen(saved(tmp_path / "larger", PHOTOS, 5000, np.float32), run)
    assert larger.pixels == run
    assert "of the values lie far outside the range of training" in larger.notes[0]
    smaller = seen(saved(tmp_path / "smaller", PHOTOS, 0.5, np.float32), run)
    assert smaller.notes[0].startswith("warning: the values span little of the range of training")
    counts = seen(saved(tmp_path / "counts", PHOTOS, 5, np.uint16)).pixels
    bytes_ = seen(saved(tmp_path / "bytes", PHOTOS, 255, np.uint8), counts)
    assert "lie far outside the range of training, 0 to 5" in bytes_.notes[0]
    dim = seen(tmp_path / "counts", seen(tmp_path / "bytes").pixels)
    assert (dim.pixels.low, dim.pixels.high) == ((0,), (5,))
    assert "scaled by their own range, 0 to 5" in dim.depth


def test_what_cannot_be_brought_to_the_channels_keeps_its_own_format(tmp_path: Path):
    run = seen(saved(tmp_path / "run", PHOTOS, 255, np.uint8)).pixels
    (tmp_path / "four").mkdir()
    four = np.stack(PHOTOS[:4], -1).astype(np.float32)
    tifffile.imwrite(
        tmp_path / "four" / "a.tif", four, photometric="minisblack", planarconfig="contig"
    )
    found = seen(tmp_path / "four", run).pixels
    assert (found.channels, found.depth) == (4, "float")
    assert found.std != run.std * 4
