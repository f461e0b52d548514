import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from simmim.data.audit.survey import Survey, survey
from simmim.data.formats.decode import bring, read_pixels
from simmim.data.sources.find import find_images
from simmim.errors import DataError
from simmim.tensors.patches import normalise

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


def test_pages_that_are_not_used_are_told(tmp_path: Path):
    save(tmp_path, "a.png", noise(20, 30, 3))
    assert look(tmp_path).notes == []
    frames = [Image.fromarray(noise(20, 30, 3)) for _ in range(2)]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    (note,) = look(tmp_path).notes
    assert note == (
        "1 of 2 images looked at hold more than the picture that is used, such as b.gif: "
        "animated: only the first is used"
    )


def photo() -> np.ndarray:
    """A scene of waves and noise, from 0 to 1."""
    y, x = np.mgrid[0:96, 0:96] / RNG.uniform(9, 30, 2)[:, None, None]
    return np.clip(0.5 + 0.3 * np.sin(y) * np.cos(x) + RNG.normal(0, 0.1, (96, 96)), 0, 1)


def sprinkled(image: np.ndarray, count: int, value: float) -> np.ndarray:
    out = image.copy()
    out.reshape(-1)[RNG.choice(out.size, count, replace=False)] = value
    return out


def inputs(folder: Path, found: Survey) -> np.ndarray:
    """What the encoder gets of all images: (C, n)."""
    images, columns = find_images(folder), []
    for i in range(len(images)):
        brought = bring(read_pixels(images.open(i)), found.pixels)
        values = torch.from_numpy(np.array(brought)).permute(2, 0, 1)[None]
        columns.append(normalise(values, found.pixels)[0].flatten(1).numpy())
    return np.concatenate(columns, 1)


def ordinary(values: np.ndarray, share: float = 0.002) -> np.ndarray:
    """Deviation of each channel but for the farthest values."""
    ends = np.quantile(values, (share, 1 - share), axis=1)
    return np.array([c[(c >= a) & (c <= b)].std() for c, a, b in zip(values, *ends, strict=True)])


def test_channels_of_other_units_all_get_deviation_one(tmp_path: Path):
    for i in range(6):
        g = photo()
        planes = np.stack([0.3 * g**2, 0.08 * g**2, 1200 + 900 * g, 7e-9 * g, 1e4 + 1e-2 * g], -1)
        save(tmp_path, f"{i}.tif", planes.astype(np.float32))
    found = look(tmp_path)
    values = inputs(tmp_path, found)
    assert values.std(1) == pytest.approx([1] * 5, abs=0.01)
    assert values.mean(1) == pytest.approx([0] * 5, abs=0.01)
    assert found.notes == []
    assert "by channel" in found.depth


FOREIGN = {
    "hot": (lambda g: sprinkled((100 + 80 * g).astype(np.uint16), 1, 65535), "8-bit values"),
    "counts": (lambda g: sprinkled((5 * g).round().astype(np.uint16), 4, 12_000), "from 0 to 5"),
    "offset": (
        lambda g: sprinkled(sprinkled((3e4 + 3e3 * g).astype(np.uint16), 3, 0), 3, 65535),
        "16-bit, scaled from 30",
    ),
    "float": (lambda g: sprinkled(g.astype(np.float32), 3, 1e6), "float"),
    "below": (lambda g: sprinkled(g.astype(np.float32), 3, -1e6), "float"),
    "signed": (lambda g: sprinkled((3e3 * g - 900).astype(np.int16), 3, 32767), "float"),
    "wide": (lambda g: sprinkled((4e5 * g).astype(np.uint32), 3, 2**32 - 1), "float"),
    "bytes": (lambda g: sprinkled((5 * g).round().astype(np.uint8), 4, 255), "8-bit, scaled"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("images", [1, 12])
def test_a_few_foreign_values_flatten_nothing_and_are_told(kind: str, images: int, tmp_path: Path):
    make, words = FOREIGN[kind]
    for i in range(images):
        save(tmp_path, f"{i}.tif", make(photo()))
    found = look(tmp_path)
    values = inputs(tmp_path, found)
    assert words in found.depth
    assert ordinary(values)[0] == pytest.approx(1, abs=0.06)
    assert np.abs(values).max() < 12
    (note,) = found.notes
    assert note.startswith("values far outside the range are clipped: 0.0")
    assert ".tif" in note


def test_ordinary_deep_photos_keep_their_whole_depth_and_are_not_clipped(tmp_path: Path):
    for bits in (10, 12, 14, 16):
        folder = tmp_path / str(bits)
        for i in range(3):
            save(folder, f"{i}.png", ((2**bits - 1) * photo()).astype(np.uint16))
        found = look(folder)
        assert (found.pixels.low, found.pixels.high) == ((0,), (2**bits - 1,))
        assert found.notes == []


def test_tails_that_are_real_lose_less_than_one_in_a_thousand(tmp_path: Path):
    for i in range(8):
        save(tmp_path, f"{i}.tif", RNG.lognormal(0, 1.5, (96, 96)).astype(np.float32))
    found = look(tmp_path)
    images = find_images(tmp_path)
    raw = np.stack([read_pixels(images.open(i)) for i in range(8)])
    assert 0 < (raw > found.pixels.limits[1]).mean() < 1e-3
    assert not (raw < found.pixels.limits[0]).any()
    assert "% above" in found.notes[0]


def test_a_constant_channel_is_named_and_becomes_zero(tmp_path: Path):
    for i in range(4):
        g = photo()
        planes = np.stack([200 * g, 90 * g, np.full_like(g, 255), 40 + 200 * g], -1)
        save(tmp_path, f"{i}.tif", planes.astype(np.uint8))
    found = look(tmp_path)
    assert found.notes == [
        "of one value in all that was looked at, so that it becomes 0: channel 3 (255)"
    ]
    values = inputs(tmp_path, found)
    assert values.std(1) == pytest.approx([1, 1, 0, 1], abs=0.01)
    assert np.abs(values[2]).max() < 1e-6
    assert found.depth == "8-bit"


@pytest.mark.parametrize("missing", [np.nan, -np.inf, -3.4028234663852886e38, 1e35])
@pytest.mark.parametrize("share", [1e-4, 0.6])
def test_what_no_measurement_has_counts_for_nothing_and_is_told(
    missing: float, share: float, tmp_path: Path
):
    for i in range(4):
        g = (500 + 200 * photo()).astype(np.float32)
        save(tmp_path, f"{i}.tif", sprinkled(g, max(1, round(share * g.size)), missing))
    found = look(tmp_path)
    assert 500 <= found.pixels.low[0] < found.pixels.high[0] <= 700
    assert inputs(tmp_path, found).std() == pytest.approx(1, abs=0.02)
    (note,) = found.notes
    assert note.startswith("4 of 4 images looked at hold values that are not measured")
    assert ("60 % of all" if share > 0.1 else "0.011 % of all") in note


def test_one_image_in_other_units_does_not_flatten_the_others(tmp_path: Path):
    for i in range(12):
        save(tmp_path, f"{i:02}.tif", (photo() * (255 if i == 5 else 1)).astype(np.float32))
    found = look(tmp_path)
    assert found.pixels.high[0] <= 1
    assert found.notes[0].startswith("1 of 12 images looked at have values far from those of all")
    assert found.notes[0].endswith("such as 05.tif")
    assert "clipped: 8" in found.notes[1]  # all but the darkest of one in twelve


def test_files_of_another_depth_are_counted(tmp_path: Path):
    for i in range(3):
        save(tmp_path, f"{i}.png", (4095 * photo()).astype(np.uint16))
    save(tmp_path, "3.png", (255 * photo()).astype(np.uint8))
    found = look(tmp_path)
    assert found.depth == "12-bit in 16-bit files, and 1 file of another depth"
    assert inputs(tmp_path, found).std() == pytest.approx(1, abs=0.02)
