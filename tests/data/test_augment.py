import numpy as np
import pytest
import torch

from simmim.config.augment import AugmentConfig
from simmim.data.augment import plain_view, random_view

PLACES = np.stack(np.meshgrid(np.arange(80), np.arange(120), indexing="ij"), -1)  # (y, x)
WHOLE = AugmentConfig(scale=(1.0, 1.0), ratio=(1.5, 1.5), flip=0.0)


def test_a_view_is_a_function_of_its_key():
    array = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    before = array.copy()
    first = random_view(array, AugmentConfig(), (32, 48), (0, 2, 7, 0))
    assert first.shape == (3, 32, 48)
    assert first.dtype == torch.uint8
    assert torch.equal(first, random_view(array, AugmentConfig(), (32, 48), (0, 2, 7, 0)))
    assert not torch.equal(first, random_view(array, AugmentConfig(), (32, 48), (0, 2, 8, 0)))
    assert np.array_equal(array, before)


def test_crops_have_the_shares_and_shapes_asked_for():
    """The values are coordinates, so a view tells where its crop lay."""
    array = PLACES.astype(np.float32)
    config, flipped, shares, ratios = AugmentConfig(), 0, [], []
    for t in range(400):
        view = random_view(array, config, (40, 40), (3, t))
        height, width = (float(view[i].mean((1 - i,)).diff().mean()) * 40 for i in (0, 1))
        flipped += width < 0
        shares.append(height * abs(width) / (80 * 120))
        ratios.append(abs(width) / height)
    assert 160 < flipped < 240
    assert 0.17 < min(shares) < 0.25
    assert 0.8 < max(shares) < 1.02
    assert 0.7 < min(ratios) < 0.8
    assert 1.28 < max(ratios) < 1.42


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_is_antialiased(interpolation: str):
    lines = np.zeros((80, 120, 1), np.uint8)
    lines[:, ::2] = 255
    config = AugmentConfig(
        scale=(1.0, 1.0), ratio=(1.5, 1.5), flip=0.0, interpolation=interpolation
    )
    view = random_view(lines, config, (20, 30), (0,)).float()
    assert (view[:, 2:-2, 2:-2] - 127.5).abs().max() < 6


def test_an_extreme_shape_still_gives_a_view():
    for shape in ((1, 4000, 3), (4000, 1, 3), (1, 1, 3)):
        assert random_view(np.ones(shape, np.uint8), AugmentConfig(), (8, 8), (0,)).sum() == 192
        assert plain_view(np.ones(shape, np.uint8), (8, 8)).sum() == 192


def test_a_plain_view_is_the_centre_scaled_to_cover():
    array = PLACES.astype(np.float32)
    view = plain_view(array, (40, 40))
    assert view.shape == (2, 40, 40)
    assert float(view[0].mean()) == pytest.approx(39.5, abs=0.01)
    assert float(view[1].mean()) == pytest.approx(59.5, abs=0.01)
    assert float(view[1].max() - view[1].min()) == pytest.approx(78, abs=0.6)
    same = plain_view(PLACES.astype(np.uint8), (80, 120))
    assert np.array_equal(same.permute(1, 2, 0).numpy(), PLACES)


def test_grey_that_was_repeated_as_a_view_can_be_cropped():
    array = np.broadcast_to(np.arange(100, dtype=np.uint8).reshape(10, 10, 1), (10, 10, 3))
    view = random_view(array, WHOLE, (10, 10), (0,))
    assert torch.equal(view[0], view[2])
