"""Rank and deviation of features, and blank patches, on values known beforehand."""

import numpy as np
import pytest
import torch

from simmim.evaluate.spread import blank_patches, deviation, effective_rank
from simmim.tensors.patches import patchify


@pytest.mark.parametrize("directions", [1, 3, 8])
def test_the_rank_is_the_number_of_directions_of_equal_length(directions: int):
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))
    features = np.repeat(basis[:directions], 4, axis=0)
    assert effective_rank(features.astype(np.float32)) == pytest.approx(directions, rel=1e-4)


def test_the_rank_is_the_exponential_of_the_entropy():
    features = np.diag([4.0, 2.0, 1.0, 1.0])
    shares = np.array([4, 2, 1, 1]) / 8
    expected = np.prod(shares**-shares)
    assert effective_rank(features) == pytest.approx(expected, rel=1e-5)
    assert effective_rank(np.zeros((5, 3))) >= 0  # no features: no error
    assert np.isnan(effective_rank(np.array([[1.0, np.inf], [0.0, 1.0]])))


def test_the_deviation_is_a_share_of_the_size():
    values = np.random.default_rng(1).standard_normal((400, 50))
    assert deviation(values) == pytest.approx(1, abs=0.01)
    assert deviation(np.ones((4, 3))) == 0
    assert deviation(values + 10) == pytest.approx(1 / np.sqrt(101), rel=0.03)


def test_a_patch_of_one_colour_is_blank():
    images = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    images[0, :, :4, :4] = torch.tensor([1.0, -2.0, 0.5])[:, None, None]  # a colour, not a grey
    images[1, 0, 4:, 8:] = 0.0  # in one channel alone
    blank = blank_patches(patchify(images, 4), 3)
    assert blank.nonzero().tolist() == [[0, 0]]
