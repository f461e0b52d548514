"""Ranges that few foreign values do not decide."""

import numpy as np
import pytest

from simmim.data.audit.ranges import foreign_images, measured_range, range_in_use

RNG = np.random.default_rng(5)


def test_one_value_in_a_thousand_is_left_out_at_either_end():
    values = RNG.permutation(np.arange(10_000, dtype=np.float32))
    assert measured_range(values) == (10, 9989)
    values[:10] = 1e9
    assert measured_range(values)[1] < 10_000
    assert measured_range(np.array([3.0, 1.0, 2.0])) == (1, 3)  # of a few none
    few = np.arange(100.0)
    few[7] = -1e9
    assert measured_range(few)[0] == 0


@pytest.mark.parametrize("filler", [-9999, -32768, 65535])
def test_a_value_that_fills_in_for_no_data_counts_for_nothing(filler: float):
    values = RNG.uniform(500, 700, 5000).astype(np.float32)
    values[:3000] = filler
    low, high = measured_range(values)
    assert 499 < low < high < 701
    assert filler in measured_range(values, fillers=False)


def test_a_black_ground_is_no_filler_and_a_few_values_on_it_are_seen():
    values = np.zeros(5000, np.float32)
    values[:3000] = RNG.uniform(500, 700, 3000)
    assert measured_range(values)[0] == 0
    sparse = np.zeros(100_000, np.float32)
    sparse[:50] = np.linspace(1, 5, 50)
    assert measured_range(sparse) == (0, 5)


def test_integers_use_their_bit_depth_where_they_fill_some_of_it():
    photo = RNG.integers(100, 3000, 9216)
    photo[5] = 65535
    assert range_in_use(photo, "uint16") == (0, 4095)
    assert range_in_use(np.append(RNG.integers(0, 6, 9216), [12_000] * 4), "uint16") == (0, 5)
    assert range_in_use(RNG.integers(30_000, 31_000, 9216), "uint16")[0] > 29_999
    assert range_in_use(RNG.integers(0, 6, 9216), "uint8") == (0, 255)


def test_an_image_that_reaches_far_beyond_all_others_is_foreign_and_a_bright_one_is_not():
    images = RNG.random((16, 500))
    assert not foreign_images(images).any()
    images[3] *= 255
    assert np.flatnonzero(foreign_images(images)).tolist() == [3]
    assert not foreign_images(images[1:5]).any()  # three against one tell nothing
    images[3] = RNG.random(500)
    images[5] *= 4
    images[7, 0] = -300
    assert not foreign_images(images).any()
    images[7, :40] = -RNG.uniform(50, 300, 40)
    assert np.flatnonzero(foreign_images(images)).tolist() == [7]
    assert not foreign_images(images[:7]).any()
    assert not foreign_images(np.stack([np.zeros(9)] * 7 + [np.ones(9)])).any()
