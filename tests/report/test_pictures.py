from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim.report.pictures import reconstruction_grid, save_png, to_image


def images(n=3, height=16, width=24, channels=3, value=0.5):
    return np.full((n, height, width, channels), value, dtype=np.float32)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_can_be_shown(channels):
    stack = images(channels=channels)
    grid = reconstruction_grid(stack, stack * 0, stack)
    assert grid.mode == "RGB"
    assert grid.width > grid.height


def test_rows_are_original_masked_and_reconstructed():
    grid = reconstruction_grid(images(1, value=0.2), images(1, value=0.4), images(1, value=0.8))
    column = np.asarray(grid)[:, grid.width - 20, 0]
    values = [value for value in dict.fromkeys(column.tolist()) if value != 255]
    assert values == [51, 102, 204]


def test_more_images_than_columns_make_another_band():
    nine = reconstruction_grid(*[images(9)] * 3)
    eight = reconstruction_grid(*[images(8)] * 3)
    assert nine.width == eight.width
    assert abs(nine.height - 2 * eight.height) < 10


def test_small_images_are_repeated_and_not_blurred():
    sharp = np.indices((1, 8, 8, 1)).sum(axis=0) % 2
    tile = np.asarray(reconstruction_grid(*[sharp.astype(float)] * 3))[:100, -100:-4]
    assert set(np.unique(tile)) == {0, 255}


def test_values_out_of_range_and_not_numbers_are_shown():
    array = np.array([[[-1.0], [2.0], [np.nan], [np.inf]]])
    assert np.asarray(to_image(array))[0, :, 0].tolist() == [0, 255, 0, 255]


def test_deep_files_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 1000], [2000, 4000]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(to_image(tmp_path / "a.png"))[..., 0].tolist() == [[0, 64], [128, 255]]


def test_a_picture_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "pictures" / "step-00000001.png"
    save_png(to_image(images(1)[0]), path)
    before = path.read_bytes()

    def torn(file, data):
        with file.open("wb") as half:
            half.write(data[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", torn)
    with pytest.raises(OSError, match="No space"):
        save_png(to_image(images(1)[0]), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
